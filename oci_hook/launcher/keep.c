/* keep.c - keep a refusal for `vgpu doctor --last-failure`, as oci_hook/audit.py does for those of shim and hook: the
 * same file, the same bounds. Only who writes to the folder anyway may have made it, and no link is followed in it.
 */
#define _GNU_SOURCE
#include "keep.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_ID   200
#define MAX_TEXT 4096 /* bytes of one value */
#define MAX_KEPT 100
#define UNNAMED  ".unnamed"

static bool is_id(const char *text)
{
    static const char characters[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.+-";
    const size_t length = strlen(text);
    return length > 0 && length <= MAX_ID && text[0] != '.' && strspn(text, characters) == length;
}

/* The open folder <state>/failures, -1 if there is none that only we or root can write. */
static int open_folder(const char *state)
{
    char path[PATH_MAX];
    struct stat found;
    if (snprintf(path, sizeof path, "%s/failures", state) >= (int)sizeof path)
        return -1;
    mkdir(path, 0755); /* it mostly is there */
    const int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder >= 0 && fstat(folder, &found) == 0 && (found.st_uid == 0 || found.st_uid == geteuid()) &&
        (found.st_mode & 022) == 0)
        return folder;
    if (folder >= 0)
        close(folder);
    return -1;
}

static void put(FILE *out, const char *name, const char *text)
{
    fprintf(out, ",\"%s\":\"", name);
    for (size_t i = 0; i < MAX_TEXT && text[i] != '\0'; i++) {
        const unsigned char byte = (unsigned char)text[i];
        if (byte == '"' || byte == '\\')
            fputc('\\', out);
        if (byte < 0x20 || byte == 0x7f)
            fprintf(out, "\\u%04x", (unsigned int)byte);
        else
            fputc(byte, out);
    }
    fputc('"', out);
}

static bool write_entry(int descriptor, const char *name, const struct refusal *told)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    FILE *out = fdopen(descriptor, "w");
    if (out == NULL) {
        close(descriptor);
        return false;
    }
    fprintf(out, "{\"schema\":1,\"time_ns\":%lld%09ld", (long long)now.tv_sec, now.tv_nsec);
    put(out, "id", name);
    put(out, "code", told->code);
    put(out, "message", told->message);
    put(out, "remedy", told->remedy);
    put(out, "part", told->part);
    put(out, "bundle", told->bundle);
    fputs("}\n", out);
    const bool whole = ferror(out) == 0;
    return fclose(out) == 0 && whole;
}

/* The name of the oldest file, "" if there are no more than MAX_KEPT. */
static void find_oldest(int folder, char *oldest, size_t room)
{
    int64_t least = INT64_MAX;
    int count = 0;
    oldest[0] = '\0';
    const int again = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = again < 0 ? NULL : fdopendir(again);
    if (entries == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        struct stat found;
        if (fstatat(folder, entry->d_name, &found, AT_SYMLINK_NOFOLLOW) != 0 || S_ISDIR(found.st_mode))
            continue;
        count++;
        const int64_t changed = (int64_t)found.st_mtim.tv_sec * 1000000000 + found.st_mtim.tv_nsec;
        if (changed < least && strlen(entry->d_name) < room) {
            least = changed;
            strcpy(oldest, entry->d_name);
        }
    }
    closedir(entries);
    if (count <= MAX_KEPT)
        oldest[0] = '\0';
}

static void keep_newest(int folder)
{
    char oldest[NAME_MAX + 1];
    for (int left = 2; left > 0; left--) { /* two: each that is kept brings one, so what is too much gets less */
        find_oldest(folder, oldest, sizeof oldest);
        if (oldest[0] == '\0' || unlinkat(folder, oldest, 0) != 0)
            return;
    }
}

void keep_refusal(const char *state, const struct refusal *told)
{
    const char *name = is_id(told->id) ? told->id : UNNAMED;
    char temporary[MAX_ID + 32], kept[MAX_ID + 8];
    snprintf(temporary, sizeof temporary, ".new-%s-%d", name, getpid());
    snprintf(kept, sizeof kept, "%s.json", name);
    const int folder = open_folder(state);
    if (folder < 0)
        return;
    const int file = openat(folder, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (file >= 0) {
        if (!write_entry(file, name, told) || renameat(folder, temporary, folder, kept) != 0)
            unlinkat(folder, temporary, 0);
        keep_newest(folder);
    }
    close(folder);
}

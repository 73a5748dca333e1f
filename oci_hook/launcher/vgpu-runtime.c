/* vgpu-runtime.c - what the engine starts in place of runc or crun.
 *
 * It becomes the low-level runtime at once (execv, argument for argument) for every verb but `create` and `run`, and
 * for those too if nothing in the bundle can be a request for a slice. Otherwise it asks oci_hook/shim.py first, which
 * decides. The look into the bundle is coarse and errs on one side: what might be a request goes to the shim. One
 * variable is added to the environment, VGPU_LAUNCHER_DEPTH: it ends a loop of launchers that start each other.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH_VARIABLE "VGPU_LAUNCHER_DEPTH"
#define MAX_DEPTH      8
#define MAX_SCAN       ((off_t)64 << 20)

static const char *const NEEDLES[] = {"vgpu.", "VGPU_", "NVIDIA_GPU_MEMORY_LIMIT", "CUDA_DEVICE_MEMORY_LIMIT",
                                      "CUDA_DEVICE_SM_LIMIT"};

/* <prefix>/etc/launcher.conf for <prefix>/bin/<this program>. */
static void config_path(const struct call *call, char *path, size_t room)
{
    char self[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0)
        refuse(call, "VGPU-HOST-001", "the launcher cannot tell where it is installed: /proc/self/exe cannot be read",
               "mount /proc");
    self[length] = '\0';
    for (int parts = 0; parts < 2; parts++) {
        char *slash = strrchr(self, '/');
        if (slash != NULL)
            *slash = '\0';
    }
    if (snprintf(path, room, "%s/etc/launcher.conf", self) >= (int)room)
        refuse(call, "VGPU-HOST-001", "the launcher's path is too long", "install into a shorter prefix");
}

static _Noreturn void refuse_path(const struct call *call, const char *code, const char *path, const char *why,
                                  const char *remedy)
{
    char message[PATH_MAX + 256];
    snprintf(message, sizeof message, "%s %s", path, why);
    refuse(call, code, message, remedy);
}

/* Whether the host's root has no number here: in a rootless engine's user namespace, whose owner is the only one whom
 * the launcher's files could betray, and who has named the launcher. */
static bool is_rootless(uid_t owner)
{
    static const uid_t overflow = 65534; /* how the kernel shows an owner that has no number here */
    char map[64] = "";
    const int fd = open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC);
    const ssize_t length = fd < 0 ? 0 : read(fd, map, sizeof map - 1);
    unsigned int inside = 0, outside = 0, count = 0;
    if (fd >= 0)
        close(fd);
    return owner == overflow && length > 0 && sscanf(map, "%u %u %u", &inside, &outside, &count) == 3 && outside != 0 &&
           count != UINT_MAX;
}

static void require_trusted(const struct call *call, const struct stat *file, const char *path)
{
    const bool owned = file->st_uid == 0 || file->st_uid == geteuid() || is_rootless(file->st_uid);
    if (!owned || (file->st_mode & 022) != 0 || !S_ISREG(file->st_mode))
        refuse_path(call, "VGPU-HOST-006", path, "can be written by others than root, or is no regular file",
                    "chown it to root and `chmod 644` it");
}

/* Lines `key=value`; blank ones and those with # are skipped. The values point into `text`. */
static void parse_config(const struct call *call, const char *path, char *text, struct config *config)
{
    char *state = NULL;
    for (char *line = strtok_r(text, "\n", &state); line != NULL; line = strtok_r(NULL, "\n", &state)) {
        char *value = strchr(line, '=');
        if (line[0] == '#' || value == NULL)
            continue;
        *value++ = '\0';
        if (strcmp(line, "runtime") == 0)
            config->runtime = value;
        else if (strcmp(line, "python") == 0)
            config->python = value;
        else if (strcmp(line, "shim") == 0)
            config->shim = value;
        else if (strcmp(line, "policy") == 0)
            config->policy = value;
        else if (strcmp(line, "state") == 0)
            config->state = value;
    }
    if (config->state != NULL && config->state[0] == '/')
        keep_refusals_in(config->state);
    const char *const values[] = {config->runtime, config->python, config->shim, config->policy};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (values[i] == NULL || values[i][0] != '/')
            refuse_path(call, "VGPU-HOST-001", path, "must name runtime, python, shim and policy by absolute paths",
                        "install vgpu again");
}

static void read_config(const struct call *call, struct config *config)
{
    static char text[1 << 16];
    char path[PATH_MAX];
    struct stat file;
    config_path(call, path, sizeof path);
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0 || fstat(descriptor, &file) != 0)
        refuse_path(call, "VGPU-HOST-001", path, "is missing or cannot be opened", "install vgpu again");
    require_trusted(call, &file, path);
    const ssize_t length = read(descriptor, text, sizeof text - 1);
    if (length < 0 || length == (ssize_t)sizeof text - 1)
        refuse_path(call, "VGPU-HOST-001", path, "cannot be read or is longer than 64 KiB", "install vgpu again");
    text[length] = '\0';
    close(descriptor);
    parse_config(call, path, text, config);
}

/* The runtime must not be ourselves, by this name or another, at once or by way of a script. */
static void guard_against_loops(const struct call *call, const char *runtime)
{
    struct stat self, target;
    char depth_text[16];
    const char *before = getenv(DEPTH_VARIABLE);
    const int depth = before == NULL ? 0 : atoi(before);
    if (stat("/proc/self/exe", &self) == 0 && stat(runtime, &target) == 0 && self.st_dev == target.st_dev &&
        self.st_ino == target.st_ino)
        refuse_path(call, "VGPU-HOST-004", runtime, "is named as the low-level runtime, but is the launcher itself",
                    "name runc or crun as `runtime` in launcher.conf");
    if (depth < 0 || depth >= MAX_DEPTH)
        refuse_path(call, "VGPU-HOST-004", runtime, "is the low-level runtime, but leads back to the launcher",
                    "name runc or crun itself as `runtime` in launcher.conf, not a program that starts vgpu-runtime");
    snprintf(depth_text, sizeof depth_text, "%d", depth + 1);
    setenv(DEPTH_VARIABLE, depth_text, 1);
}

/* A \u00XX escape of a character that our names consist of: a name may be written with it. `\/` hides a path. */
static bool has_hidden_text(const char *text, size_t length)
{
    const char *end = text + length;
    for (const char *at = text; (at = memchr(at, '\\', (size_t)(end - at))) != NULL && at + 1 < end; at += 2) {
        if (at[1] == '/')
            return true;
        if (at[1] != 'u' || end - at < 6 || at[2] != '0' || at[3] != '0')
            continue;
        const char digits[] = {at[4], at[5], '\0'};
        const long character = strtol(digits, NULL, 16);
        if (character == '.' || character == '/' || character == '_' || (character >= '0' && character <= '9') ||
            (character >= 'A' && character <= 'Z') || (character >= 'a' && character <= 'z'))
            return true;
    }
    return false;
}

static bool may_ask(const char *text, size_t length)
{
    for (size_t i = 0; i < sizeof NEEDLES / sizeof *NEEDLES; i++)
        if (memmem(text, length, NEEDLES[i], strlen(NEEDLES[i])) != NULL)
            return true;
    return has_hidden_text(text, length);
}

/* The file's text, mapped; NULL if it cannot be looked at, with errno. It stays mapped: we exec soon. */
static const char *map(const char *path, size_t *length)
{
    struct stat file;
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0)
        return NULL;
    const char *text = NULL;
    errno = EINVAL;
    if (fstat(descriptor, &file) == 0 && S_ISREG(file.st_mode) && file.st_size > 0 && file.st_size <= MAX_SCAN) {
        void *mapped = mmap(NULL, (size_t)file.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        text = mapped == MAP_FAILED ? NULL : mapped;
        *length = (size_t)file.st_size;
    }
    close(descriptor);
    return text;
}

/* Docker's labels: config.v2.json in a folder named as the container, out of which a file is mounted. */
static bool labels_may_ask(const char *spec, size_t length, const char *id)
{
    static const char *const FILES[] = {"hostname", "hosts", "resolv.conf"};
    const char *end = spec + length;
    char tail[PATH_MAX], path[PATH_MAX];
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        const int tail_length = snprintf(tail, sizeof tail, "/%s/%s\"", id, FILES[i]);
        if (tail_length >= (int)sizeof tail)
            return true;
        for (const char *at = spec; (at = memmem(at, (size_t)(end - at), tail, (size_t)tail_length)) != NULL; at++) {
            const char *start = memrchr(spec, '"', (size_t)(at - spec));
            const int folder_length = start == NULL ? 0 : (int)(at - start) - 1 + 1 + (int)strlen(id);
            if (start == NULL || start == spec || start[-1] == '\\' ||
                snprintf(path, sizeof path, "%.*s/config.v2.json", folder_length, start + 1) >= (int)sizeof path)
                return true;
            size_t found_length = 0;
            const char *found = map(path, &found_length);
            if (found == NULL ? errno != ENOENT : may_ask(found, found_length))
                return true;
        }
    }
    return false;
}

/* Whether the bundle may hold a request. Unreadable is a yes: the shim then says why. */
static bool bundle_may_ask(const struct call *call)
{
    char path[PATH_MAX];
    size_t length = 0;
    if (snprintf(path, sizeof path, "%s/%s", call->bundle, call->config) >= (int)sizeof path)
        return true;
    const char *spec = map(call->config[0] == '/' ? call->config : path, &length);
    return spec == NULL || may_ask(spec, length) || labels_may_ask(spec, length, call->id);
}

_Noreturn void cannot_start(const struct call *call, const char *program, int error, const char *remedy)
{
    char why[160]; /* dockerd maps the system's own words for these two to exit codes of its own */
    if (error == ENOENT)
        snprintf(why, sizeof why, "cannot be started: it, or the interpreter it names, is missing");
    else if (error == EACCES)
        snprintf(why, sizeof why, "cannot be started: it must not be executed");
    else
        snprintf(why, sizeof why, "cannot be started: %s", strerror(error));
    refuse_path(call, "VGPU-HOST-004", program, why, remedy);
}

static void require_shim(const struct call *call, const char *path)
{
    struct stat shim;
    if (stat(path, &shim) != 0) /* the interpreter's own error would be lost */
        refuse_path(call, "VGPU-HOST-004", path, "is missing or cannot be opened", "install vgpu again");
    require_trusted(call, &shim, path);
}

int main(int count, char **arguments)
{
    struct call call = parse_call(count, arguments);
    struct config config = {0};
    read_config(&call, &config);
    guard_against_loops(&call, config.runtime);
    if (call.creates && call.id[0] != '\0' && bundle_may_ask(&call)) {
        require_shim(&call, config.shim);
        ask_shim(&call, &config);
    }
    if (count > 0)
        arguments[0] = config.runtime; /* crun reads its name to know whether it is crun or krun */
    execv(config.runtime, arguments);
    cannot_start(&call, config.runtime, errno,
                 "install it, or name another as `runtime` in config.yaml, then run vgpu config apply");
}

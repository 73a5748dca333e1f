/* refuse.c - tell a failure of the launcher itself, as oci_hook/errors.py tells all others. */
#define _GNU_SOURCE
#include "keep.h"
#include "launcher.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXIT_HOST     5
#define DEFAULT_STATE "/run/vgpu"

static const char *named_state; /* by launcher.conf; it lives as long as we do */

void keep_refusals_in(const char *state)
{
    named_state = state;
}

/* Only of starts: what the engine asks afterwards, to clear away, must not take the place of the reason. */
static void keep(const struct call *call, const char *code, const char *message, const char *remedy)
{
    const struct refusal told = {
        .id = call->id, .part = "launcher", .bundle = call->bundle, .code = code, .message = message, .remedy = remedy};
    if (!call->creates || call->id[0] == '\0')
        return;
    if (named_state != NULL)
        mkdir(named_state, 0755); /* the first start after a boot */
    keep_refusal(named_state == NULL ? DEFAULT_STATE : named_state, &told);
}

/* `text` as it may stand in a JSON string; control characters become '?'. */
static void escape(const char *text, char *out, size_t room)
{
    size_t used = 0;
    for (; *text != '\0' && used + 3 < room; text++) {
        if (*text == '"' || *text == '\\')
            out[used++] = '\\';
        out[used++] = (unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text;
    }
    out[used] = '\0';
}

static void put(int descriptor, const char *text)
{
    const size_t length = strlen(text);
    if (write(descriptor, text, length) != (ssize_t)length)
        return; /* nothing better is left to do: we are about to exit with a failure */
}

_Noreturn void refuse(const struct call *call, const char *code, const char *message, const char *remedy)
{
    char line[8192], safe[2 * sizeof line], entry[sizeof safe + 128], now[32] = "";
    keep(call, code, message, remedy);
    snprintf(line, sizeof line - 1, "vgpu: %s: %s; to mend it: %s", code, message, remedy);
    escape(line, safe, sizeof safe);
    const int log = call->log[0] == '\0' ? -1 : open(call->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (log >= 0) { /* the engine shows this one, not our standard error */
        const time_t seconds = time(NULL);
        struct tm utc;
        strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &utc));
        const char *format = strcmp(call->log_format, "json") == 0
                                 ? "{\"level\":\"error\",\"msg\":\"%s\",\"time\":\"%s\"}\n"
                                 : "level=error msg=\"%s\" time=\"%s\"\n";
        snprintf(entry, sizeof entry, format, safe, now);
        put(log, entry);
    }
    put(STDERR_FILENO, strcat(line, "\n")); /* last: it may be a pipe that nobody reads any more */
    exit(EXIT_HOST);
}

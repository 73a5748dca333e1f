/* vgpu-hook.c - the hook that the runtime starts: hands the call to the hook that waits since the shim, or starts it.
 *
 *     vgpu-hook FOLDER PROGRAM ARGUMENTS   the container's state on standard input
 *
 * oci_hook/standby.py listens on FOLDER/hook.sock, with its interpreter started and its modules loaded while the runtime
 * was at work. It gets the state and answers what belongs on standard error, then a NUL and the exit code. If nobody
 * listens, or the listener died before it answered, PROGRAM is started with the same state: slower, nothing else.
 */
#define _GNU_SOURCE
#include "keep.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_STATE  (1u << 20) /* as hook.py has it; one byte more, so that it sees what is too long */
#define MAX_ANSWER (1u << 16)
#define EXIT_HOST  5

static ssize_t read_all(int from, char *into, size_t room)
{
    size_t length = 0;
    while (length < room) {
        const ssize_t got = read(from, into + length, room - length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 && length == 0 ? -1 : (ssize_t)length;
        length += (size_t)got;
    }
    return (ssize_t)length;
}

static bool write_all(int to, const char *from, size_t length)
{
    while (length > 0) {
        const ssize_t put = write(to, from, length);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        from += put;
        length -= (size_t)put;
    }
    return true;
}

/* Connected to the one who waits, or -1. By a relative name: a socket's path has room for 108 bytes only. */
static int connect_in(const char *folder)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "hook.sock"};
    const int before = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int channel = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (before < 0 || channel < 0)
        return -1;
    if (chdir(folder) != 0 || connect(channel, (struct sockaddr *)&address, sizeof address) != 0) {
        close(channel);
        channel = -1;
    }
    if (fchdir(before) != 0 && channel >= 0) /* then PROGRAM would start elsewhere */
        return -1;
    close(before);
    return channel;
}

/* The exit code that the waiting hook answers with, -1 if there is no answer. */
static int ask(int channel, const char *state, size_t length)
{
    static char answer[MAX_ANSWER];
    signed int code = -1;
    if (write_all(channel, state, length) && shutdown(channel, SHUT_WR) == 0) {
        const ssize_t got = read_all(channel, answer, sizeof answer);
        if (got > 0) {
            const bool whole = got >= 2 && answer[got - 2] == '\0';
            write_all(STDERR_FILENO, answer, (size_t)(whole ? got - 2 : got));
            code = whole ? (unsigned char)answer[got - 1] : 1; /* closed: it died while it spoke */
        }
    }
    close(channel);
    return code;
}

/* folder: <state>/containers/<id>. */
static _Noreturn void refuse(const char *folder)
{
    static const char line[] =
        "vgpu: VGPU-HOST-004: the hook's interpreter cannot be started; to mend it: install vgpu again\n";
    char state[PATH_MAX];
    snprintf(state, sizeof state, "%s", folder);
    char *id = strrchr(state, '/');
    if (id != NULL) {
        *id++ = '\0';
        char *containers = strrchr(state, '/');
        if (containers != NULL) {
            *containers = '\0';
            const struct refusal told = {.id = id,
                                         .part = "hook",
                                         .bundle = "",
                                         .code = "VGPU-HOST-004",
                                         .message = "the hook's interpreter cannot be started",
                                         .remedy = "install vgpu again"};
            keep_refusal(state, &told);
        }
    }
    write_all(STDERR_FILENO, line, sizeof line - 1);
    _exit(EXIT_HOST);
}

int main(int count, char **arguments)
{
    static char state[MAX_STATE + 1];
    if (count < 3)
        return 2;
    const ssize_t length = read_all(STDIN_FILENO, state, sizeof state);
    const int channel = length < 0 ? -1 : connect_in(arguments[1]);
    const int code = channel < 0 ? -1 : ask(channel, state, (size_t)length);
    if (code >= 0)
        return code;
    const int again = memfd_create("state", MFD_CLOEXEC);
    if (length < 0 || again < 0 || !write_all(again, state, (size_t)length) || lseek(again, 0, SEEK_SET) != 0 ||
        dup2(again, STDIN_FILENO) < 0)
        return 1;
    execv(arguments[2], arguments + 2);
    refuse(arguments[1]);
}

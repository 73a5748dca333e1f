/* shim.c - ask oci_hook/shim.py, in a process of its own, whether and how the container may start.
 *
 * It answers with one message of one byte: 0, and we become the runtime; anything else is our exit code, and it has said
 * why. It is no child of ours by then, as the runtime must not find one that it never started; it stays and waits for the
 * runtime's call of the hook (oci_hook/standby.py). Were it us, it would have to fork, and the runtime's start would wait
 * until a whole interpreter is copied and taken apart.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define NUMBER 16 /* digits of a process or descriptor, and the end */

static _Noreturn void no_process(const struct call *call)
{
    refuse(call, "VGPU-HOST-004", "the host has no process or memory left to start the shim",
           "free some, or raise the limit on processes (`ulimit -u`, pids.max)");
}

/* python -I -S -E <shim> --policy P --runtime R --bundle B --config C --id I --log L --log-format F --launcher PID --answer FD */
static void become_shim(const struct call *call, const struct config *config, pid_t launcher, int answer)
{
    char self[NUMBER], channel[NUMBER];
    snprintf(self, sizeof self, "%d", launcher);
    snprintf(channel, sizeof channel, "%d", answer);
    const char *const words[] = {config->python,
                                 "-I",
                                 "-S",
                                 "-E",
                                 config->shim,
                                 "--policy",
                                 config->policy,
                                 "--runtime",
                                 config->runtime,
                                 "--bundle",
                                 call->bundle,
                                 "--config",
                                 call->config,
                                 "--id",
                                 call->id,
                                 "--log",
                                 call->log,
                                 "--log-format",
                                 call->log_format,
                                 "--launcher",
                                 self,
                                 "--answer",
                                 channel,
                                 NULL};
    if (fcntl(answer, F_SETFD, 0) == 0) /* all others close when it starts */
        execv(config->python, (char **)words);
}

/* In a process whose parent is not us any more. */
static void start(const struct call *call, const struct config *config, int answer)
{
    const pid_t launcher = getpid();
    const pid_t between = fork();
    if (between < 0)
        no_process(call);
    if (between == 0) {
        const pid_t shim = fork();
        if (shim == 0)
            become_shim(call, config, launcher, answer);
        if (shim <= 0) {
            const unsigned char failed[] = {0, (unsigned char)errno};
            send(answer, failed, sizeof failed, MSG_NOSIGNAL);
        }
        _exit(0);
    }
    while (waitpid(between, NULL, 0) < 0 && errno == EINTR)
        continue;
}

void ask_shim(const struct call *call, const struct config *config)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        no_process(call);
    start(call, config, pair[1]);
    close(pair[1]);
    unsigned char answer[2];
    ssize_t length;
    while ((length = read(pair[0], answer, sizeof answer)) < 0 && errno == EINTR)
        continue;
    close(pair[0]);
    if (length == 2)
        cannot_start(call, config->python, answer[1], "install the interpreter again, or vgpu with another");
    if (length != 1)
        refuse(call, "VGPU-HOST-004",
               "the shim ended before it had an answer: it was killed, or its interpreter is broken",
               "start the container again; if it happens again, see what killed it (`dmesg`), or install vgpu again");
    if (answer[0] != 0)
        exit(answer[0]);
}

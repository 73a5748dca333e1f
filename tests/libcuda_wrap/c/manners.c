/* manners.c - does what programs do with the driver, and then says what of the process has changed by it.
 *
 * Answers one line: "signals umask environment directory threads descriptors", 0 each for unchanged; of threads and
 * descriptors, how many there are now.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"

CUresult cuCtxSetCurrent(CUcontext context);

extern char **environ;

struct state {
    struct sigaction actions[65];
    sigset_t blocked;
    mode_t mask;
    char environment[65536];
    char directory[4096];
};

static void nothing(int number)
{
    (void)number;
}

static void look(struct state *state)
{
    size_t length = 0;
    memset(state, 0, sizeof *state);
    for (int number = 1; number < 65; number++)
        sigaction(number, NULL, &state->actions[number]);
    sigprocmask(SIG_SETMASK, NULL, &state->blocked);
    umask(state->mask = umask(0));
    for (char **each = environ; *each != NULL && length + strlen(*each) + 1 < sizeof state->environment; each++)
        length += (size_t)sprintf(state->environment + length, "%s\n", *each);
    if (getcwd(state->directory, sizeof state->directory) == NULL)
        abort();
}

/* The kernel's mask has 8 bytes; what the C library leaves behind them is anything. */
static int other_actions(const struct sigaction *one, const struct sigaction *two)
{
    return one->sa_handler != two->sa_handler || one->sa_flags != two->sa_flags ||
           memcmp(&one->sa_mask, &two->sa_mask, 8) != 0;
}

static int entries(const char *path)
{
    int count = 0;
    DIR *folder = opendir(path);
    while (folder != NULL && readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count - 3; /* . and .. and, of descriptors, its own */
}

static int work(void)
{
    CUcontext context;
    CUdeviceptr pointers[64], huge;
    size_t free, total;
    if (cuInit(0) != CUDA_SUCCESS || cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS ||
        cuCtxSetCurrent(context) != CUDA_SUCCESS)
        return 1;
    for (int round = 0; round < 20; round++) {
        for (int at = 0; at < 64; at++)
            if (cuMemAlloc_v2(&pointers[at], 4096) != CUDA_SUCCESS)
                return 1;
        for (int at = 0; at < 64; at++)
            if (cuMemFree_v2(pointers[at]) != CUDA_SUCCESS)
                return 1;
    }
    if (cuMemGetInfo_v2(&free, &total) != CUDA_SUCCESS || cuMemAlloc_v2(&huge, total + 1) != CUDA_ERROR_OUT_OF_MEMORY)
        return 1;
    return cuDevicePrimaryCtxRelease_v2(0) != CUDA_SUCCESS;
}

int main(void)
{
    static struct state before, after;
    for (int number = 1; number < 32; number++)
        if (number != SIGKILL && number != SIGSTOP)
            signal(number, nothing);
    umask(027);
    look(&before);
    if (work() != 0)
        return 1;
    look(&after);
    int signals = memcmp(&before.blocked, &after.blocked, 8) != 0;
    for (int number = 1; number < 65; number++)
        signals |= other_actions(&before.actions[number], &after.actions[number]);
    printf("%d %d %d %d %d %d\n", signals, before.mask != after.mask,
           strcmp(before.environment, after.environment) != 0, strcmp(before.directory, after.directory) != 0,
           entries("/proc/self/task") + 1, entries("/proc/self/fd"));
    return 0;
}

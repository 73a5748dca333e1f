/* storm.c - a process that allocates, frees, forks and execs at random until it is told to hold still.
 *
 *   storm run SEED BYTES FILE NUMBER   BYTES: the largest allocation; counts what it does in word NUMBER of FILE
 *   storm one                          initialises, allocates a byte, ends
 *   storm many COUNT                   COUNT times `storm one` at once; prints how long all of them took, nanoseconds
 *
 * When the file's last word is no longer 0: finish the operation, say so (top bit), and keep what is held.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"

CUresult cuCtxSetCurrent(CUcontext context);

enum { GPUS = 2, HELD = 32, WORDS = 1024, CHILD_OPERATIONS = 200 };

#define STILL   (1ull << 63)
#define EXECING (1ull << 62) /* about to exec, or not yet initialised after that: it holds nothing */

static struct held {
    CUdeviceptr pointer;
    CUarray array;
    unsigned gpu;
} held[HELD];
static CUcontext contexts[GPUS];

static unsigned dice(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static bool start(void)
{
    bool good = cuInit(0) == CUDA_SUCCESS;
    for (int gpu = 0; gpu < GPUS && good; gpu++)
        good = cuDevicePrimaryCtxRetain(&contexts[gpu], gpu) == CUDA_SUCCESS;
    return good;
}

static bool allocate(struct held *at, unsigned kind, size_t bytes)
{
    size_t pitch = 0;
    CUDA_ARRAY_DESCRIPTOR flat = {.Width = bytes, .Height = 0, .Format = CU_AD_FORMAT_UNSIGNED_INT8, .NumChannels = 1};
    memset(at, 0, sizeof *at);
    switch (kind % 8) {
    case 0:
        return cuMemAllocManaged(&at->pointer, bytes, 1) == CUDA_SUCCESS;
    case 1:
        return cuMemAllocPitch_v2(&at->pointer, &pitch, bytes % 4096 + 1, bytes / 4096 + 1, 4) == CUDA_SUCCESS;
    case 2:
        return cuArrayCreate_v2(&at->array, &flat) == CUDA_SUCCESS;
    default:
        return cuMemAlloc_v2(&at->pointer, bytes) == CUDA_SUCCESS;
    }
}

static void step(unsigned *state, size_t bytes)
{
    struct held *at = &held[dice(state) % HELD];
    const unsigned gpu = dice(state) % GPUS, kind = dice(state);
    if (at->pointer == 0 && at->array == NULL) {
        cuCtxSetCurrent(contexts[gpu]);
        if (!allocate(at, kind, 1 + dice(state) % bytes))
            memset(at, 0, sizeof *at);
        at->gpu = gpu;
    } else if (kind % 2) {
        cuCtxSetCurrent(contexts[at->gpu]);
        if ((at->array != NULL ? cuArrayDestroy(at->array) : cuMemFree_v2(at->pointer)) == CUDA_SUCCESS)
            memset(at, 0, sizeof *at);
    }
}

/* A child has none of its parent's memory; it takes some of its own and dies of one thing or another. */
static void child(unsigned seed, size_t bytes)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    memset(held, 0, sizeof held);
    if (!start())
        _exit(1);
    const unsigned operations = dice(&seed) % CHILD_OPERATIONS;
    for (unsigned done = 0; done < operations; done++)
        step(&seed, bytes);
    if (seed >> 31)
        kill(getpid(), SIGKILL);
    _exit(0);
}

static int run(char **arguments)
{
    unsigned state = (unsigned)atoi(arguments[2]) * 2654435761u + 1;
    const size_t bytes = strtoul(arguments[3], NULL, 10);
    const int file = open(arguments[4], O_RDWR | O_CLOEXEC);
    uint64_t *counts = mmap(NULL, WORDS * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    uint64_t *count = counts + atoi(arguments[5]);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that is cut off leaves nothing running */
    if (counts == MAP_FAILED || !start())
        return 1;
    __atomic_fetch_and(count, ~EXECING, __ATOMIC_RELEASE);
    while (__atomic_load_n(&counts[WORDS - 1], __ATOMIC_RELAXED) == 0) {
        const unsigned luck = dice(&state) % 4096;
        if (luck == 0) {
            char seed[16];
            __atomic_fetch_or(count, EXECING, __ATOMIC_RELEASE);
            snprintf(seed, sizeof seed, "%u", state % 1000000u);
            execl("/proc/self/exe", arguments[0], "run", seed, arguments[3], arguments[4], arguments[5], (char *)NULL);
        } else if (luck < 4) {
            const pid_t pid = fork();
            if (pid == 0)
                child(state, bytes);
            waitpid(pid, NULL, 0);
        }
        step(&state, bytes);
        __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
    }
    __atomic_fetch_or(count, STILL, __ATOMIC_RELEASE);
    for (;;)
        pause();
}

static int one(void)
{
    CUdeviceptr pointer;
    if (!start() || cuCtxSetCurrent(contexts[0]) != CUDA_SUCCESS)
        return 1;
    return cuMemAlloc_v2(&pointer, 1) == CUDA_SUCCESS ? 0 : 1;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static int many(int count)
{
    int gate[2], status, failed = 0;
    if (pipe2(gate, O_CLOEXEC) != 0)
        return 1;
    for (int number = 0; number < count; number++) {
        if (fork() == 0) {
            char nothing;
            close(gate[1]);
            if (read(gate[0], &nothing, 1) == 0) /* closed: all go at once */
                execl("/proc/self/exe", "storm", "one", (char *)NULL);
            _exit(1);
        }
    }
    const int64_t began = now_ns();
    close(gate[1]);
    for (int number = 0; number < count; number++)
        failed += wait(&status) < 0 || status != 0;
    printf("%lld\n", (long long)(now_ns() - began));
    return failed != 0;
}

int main(int argc, char **arguments)
{
    if (argc == 6 && strcmp(arguments[1], "run") == 0)
        return run(arguments);
    if (argc == 2 && strcmp(arguments[1], "one") == 0)
        return one();
    if (argc == 3 && strcmp(arguments[1], "many") == 0)
        return many(atoi(arguments[2]));
    return 2;
}

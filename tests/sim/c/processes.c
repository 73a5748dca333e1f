/* processes.c - several processes on one GPU: one's memory is another's out of memory, a killed one's comes back, a fork is no user. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include "driver.h"

#define MIB (1ull << 20)

/* A child that does its own start, allocates, says so, and waits to be killed; without the parent's driver: fork comes first. */
static pid_t holder(size_t bytes)
{
    int ready[2];
    char byte;
    EXPECT(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        CUdeviceptr p;
        start();
        OK(cuMemAlloc_v2(&p, bytes));
        EXPECT(write(ready[1], "x", 1), 1);
        for (;;)
            pause();
    }
    EXPECT(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

static void end(pid_t pid)
{
    EXPECT(kill(pid, SIGKILL), 0);
    EXPECT(waitpid(pid, NULL, 0), pid);
}

static void *churn(void *ctx)
{
    CUdeviceptr p;
    OK(cuCtxSetCurrent(ctx));
    for (int i = 0; i < 2000; i++) {
        OK(cuMemAlloc_v2(&p, 4096));
        OK(cuMemFree_v2(p));
    }
    return NULL;
}

/* Children that allocate and free without end are killed at random; nothing they held may stay. */
static void storm(void)
{
    pid_t children[4];
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 4; i++) {
            children[i] = fork();
            if (children[i] == 0) {
                CUdeviceptr held[16] = {0};
                start();
                for (unsigned n = 0;; n = (n + 1) % 16) {
                    if (held[n])
                        OK(cuMemFree_v2(held[n]));
                    OK(cuMemAlloc_v2(&held[n], MIB + n));
                }
            }
        }
        usleep(15000 + (unsigned)round * 1711);
        for (int i = 0; i < 4; i++)
            end(children[i]);
    }
}

int main(void)
{
    pid_t first = holder(600 * MIB); /* of 1024: the test's GPUs are small */
    storm();
    CUcontext ctx = start();
    CUdeviceptr p;
    EXPECT(used(), 600 * MIB);
    EXPECT(cuMemAlloc_v2(&p, 424 * MIB + 1), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&p, 424 * MIB));
    end(first);
    CUdeviceptr q;
    OK(cuMemAlloc_v2(&q, 600 * MIB)); /* without a question in between: out of memory reaps */
    EXPECT(used(), 1024 * MIB);
    OK(cuMemFree_v2(p));
    OK(cuMemFree_v2(q));

    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        EXPECT(pthread_create(&threads[i], NULL, churn, ctx), 0);
    for (int i = 0; i < 4; i++)
        EXPECT(pthread_join(threads[i], NULL), 0);
    EXPECT(used(), 0);

    OK(cuMemAlloc_v2(&p, MIB));
    pid_t child = fork();
    if (child == 0) {
        EXPECT(cuInit(0), CUDA_ERROR_NOT_INITIALIZED); /* as the driver: not in a child of its user */
        EXPECT(cuMemFree_v2(p), CUDA_ERROR_NOT_INITIALIZED);
        _exit(0);
    }
    int status;
    EXPECT(waitpid(child, &status, 0), child);
    EXPECT(status, 0);
    EXPECT(used(), MIB);
    puts("ok");
    return 0;
}

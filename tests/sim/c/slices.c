/* slices.c - processes with kernels queued share the GPU: each is slowed down by the others, and by nobody who is idle or dead. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "driver.h"

static CUfunction kernel(const char *name)
{
    CUmodule module;
    CUfunction function;
    OK(cuModuleLoadData(&module, "any image"));
    OK(cuModuleGetFunction(&function, module, name));
    return function;
}

/* A process that queues a second of work, says so, and then does nothing. */
static pid_t neighbour(void)
{
    int ready[2];
    char byte;
    EXPECT(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        start();
        OK(cuLaunchKernel(kernel("sleep_us_1000000"), 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
        EXPECT(write(ready[1], "x", 1), 1);
        for (;;)
            pause();
    }
    EXPECT(read(ready[0], &byte, 1), 1);
    return pid;
}

/* Milliseconds that five kernels of 10 ms take, by events. */
static float measured(CUfunction function, CUevent begin, CUevent end)
{
    float ms;
    OK(cuEventRecord(begin, NULL));
    for (int i = 0; i < 5; i++)
        OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
    OK(cuEventRecord(end, NULL));
    OK(cuEventSynchronize(end));
    OK(cuEventElapsedTime(&ms, begin, end));
    return ms;
}

static void end(pid_t pid)
{
    EXPECT(kill(pid, SIGKILL), 0);
    EXPECT(waitpid(pid, NULL, 0), pid);
}

int main(void)
{
    pid_t first = neighbour(), second = neighbour();
    CUevent from, to;
    start();
    CUfunction function = kernel("sleep_us_10000");
    OK(cuEventCreate(&from, 0));
    OK(cuEventCreate(&to, 0));
    EXPECT(kill(first, SIGSTOP), 0); /* what it has queued runs on */
    float ms = measured(function, from, to);
    EXPECT(ms > 148 && ms < 160, 1);
    end(first);
    ms = measured(function, from, to);
    EXPECT(ms > 98 && ms < 112, 1); /* the dead one's kernel ended with it, within 5 ms */
    end(second);
    ms = measured(function, from, to);
    EXPECT(ms > 49 && ms < 60, 1);
    puts("ok");
    return 0;
}

/* share.c KIND MICROSECONDS - launches kernels of that length without end: "flood" as fast as they are taken, "sync" waits for each,
 * "graph" launches graphs of 8, "streams" takes turns between two streams, "mixed" between that length and ten times as much.
 * "burst" launches 20 and waits, over and over, and with each end says how long its launches took, in nanoseconds. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"

CUresult cuCtxPushCurrent_v2(CUcontext context);
CUresult cuCtxSynchronize(void);
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags);
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name);
CUresult cuModuleLoadData(CUmodule *module, const void *image);
CUresult cuStreamBeginCapture_v2(CUstream stream, int mode);
CUresult cuStreamCreate(CUstream *stream, unsigned int flags);
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph);

static void ok(CUresult result)
{
    if (result == CUDA_SUCCESS)
        return;
    printf("error %d\n", result);
    exit(1);
}

static void launch(CUfunction function, CUstream stream)
{
    ok(cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL));
}

static CUfunction kernel(CUmodule module, long us)
{
    char name[64];
    CUfunction function;
    snprintf(name, sizeof name, "sleep_us_%ld", us);
    ok(cuModuleGetFunction(&function, module, name));
    return function;
}

static CUgraphExec graph_of(CUfunction function, CUstream stream)
{
    CUgraph graph;
    CUgraphExec exec;
    ok(cuStreamBeginCapture_v2(stream, 0));
    for (int node = 0; node < 8; node++)
        launch(function, stream);
    ok(cuStreamEndCapture(stream, &graph));
    ok(cuGraphInstantiateWithFlags(&exec, graph, 0));
    return exec;
}

static long long now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000ll + at.tv_nsec;
}

static void burst(CUfunction function)
{
    long long spent = 0;
    for (int i = 0; i < 20; i++) {
        const long long before = now();
        launch(function, NULL);
        spent += now() - before;
    }
    ok(cuCtxSynchronize());
    printf("%lld\n", spent);
    fflush(stdout);
}

int main(int count, char **words)
{
    CUcontext context;
    CUmodule module;
    CUstream streams[2];
    if (count != 3)
        return 2;
    const char *kind = words[1];
    ok(cuInit(0));
    ok(cuDevicePrimaryCtxRetain(&context, 0));
    ok(cuCtxPushCurrent_v2(context));
    ok(cuModuleLoadData(&module, "any image"));
    ok(cuStreamCreate(&streams[0], 1));
    ok(cuStreamCreate(&streams[1], 1));
    const CUfunction first = kernel(module, atol(words[2])), longer = kernel(module, 10 * atol(words[2]));
    const CUgraphExec graph = graph_of(first, streams[0]);
    puts("ready");
    fflush(stdout);
    for (unsigned round = 0;; round++) {
        if (strcmp(kind, "burst") == 0)
            burst(first);
        else if (strcmp(kind, "graph") == 0)
            ok(cuGraphLaunch(graph, streams[0]));
        else if (strcmp(kind, "mixed") == 0)
            launch(round % 2 == 0 ? first : longer, NULL);
        else
            launch(first, strcmp(kind, "streams") == 0 ? streams[round % 2] : NULL);
        if (strcmp(kind, "sync") == 0)
            ok(cuCtxSynchronize());
    }
}

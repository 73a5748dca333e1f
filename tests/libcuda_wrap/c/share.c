/* share.c KIND MICROSECONDS - launches kernels of that length without end: "flood" as fast as they are taken, "sync" waits for each,
 * "graph" launches graphs of 8, "streams" takes turns between two streams, "mixed" between that length and ten times as much,
 * "fill" fills a MiB of memory. Also for a real GPU: kernels of about that length, without "fill".
 * "asked" launches one for each line that it reads, waits for it, and answers with a line.
 * "burst" launches 20 and waits, over and over, and with each end says how long its launches took, in nanoseconds. */
#define _GNU_SOURCE
#include <dlfcn.h>
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
    CUdeviceptr nowhere = 0;
    void *parameters[] = {&nowhere};
    ok(cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, stream, parameters, NULL));
}

/* The simulated GPU goes by the name, a real one by the code: turns of 8 dependent operations of some 4 cycles. */
static CUfunction kernel(long us)
{
    char name[64], image[1024];
    CUfunction function;
    CUmodule module;
    snprintf(name, sizeof name, "sleep_us_%ld", us);
    snprintf(image, sizeof image,
             ".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry %s(.param .u64 out)\n{\n"
             ".reg .pred %%p;\n.reg .u32 %%i, %%x;\n.reg .u64 %%o;\nmov.u32 %%i, %ld;\nmov.u32 %%x, %%clock;\nturn:\n"
             "mad.lo.u32 %%x, %%x, %%x, 1;\nmad.lo.u32 %%x, %%x, %%x, 3;\nmad.lo.u32 %%x, %%x, %%x, 5;\n"
             "mad.lo.u32 %%x, %%x, %%x, 7;\nmad.lo.u32 %%x, %%x, %%x, 9;\nmad.lo.u32 %%x, %%x, %%x, 11;\n"
             "mad.lo.u32 %%x, %%x, %%x, 13;\nmad.lo.u32 %%x, %%x, %%x, 15;\nsub.u32 %%i, %%i, 1;\n"
             "setp.ne.u32 %%p, %%i, 0;\n@%%p bra turn;\nld.param.u64 %%o, [out];\nsetp.eq.u64 %%p, %%o, 0;\n"
             "@%%p bra done;\nst.global.u32 [%%o], %%x;\ndone:\nret;\n}\n",
             name, us * 45);
    ok(cuModuleLoadData(&module, image));
    ok(cuModuleGetFunction(&function, module, name));
    return function;
}

/* Memory whose filling takes so long. */
static CUdeviceptr slow_memory(long us)
{
    void (*set_time)(unsigned long) = NULL;
    CUdeviceptr memory;
    *(void **)&set_time = dlsym(RTLD_DEFAULT, "vgsSetFillTime");
    if (set_time == NULL)
        ok(CUDA_ERROR_NOT_SUPPORTED);
    set_time((unsigned long)us * 1000);
    ok(cuMemAlloc_v2(&memory, 1 << 20));
    return memory;
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

static void asked(CUfunction function)
{
    char line[8];
    if (fgets(line, sizeof line, stdin) == NULL)
        exit(0);
    launch(function, NULL);
    ok(cuCtxSynchronize());
    puts("done");
    fflush(stdout);
}

int main(int count, char **words)
{
    CUcontext context;
    CUdeviceptr memory = 0;
    CUstream streams[2];
    if (count != 3)
        return 2;
    const char *kind = words[1];
    ok(cuInit(0));
    ok(cuDevicePrimaryCtxRetain(&context, 0));
    ok(cuCtxPushCurrent_v2(context));
    ok(cuStreamCreate(&streams[0], 1));
    ok(cuStreamCreate(&streams[1], 1));
    const CUfunction first = kernel(atol(words[2])), longer = kernel(10 * atol(words[2]));
    const CUgraphExec graph = graph_of(first, streams[0]);
    if (strcmp(kind, "fill") == 0)
        memory = slow_memory(atol(words[2]));
    puts("ready");
    fflush(stdout);
    for (unsigned round = 0;; round++) {
        if (strcmp(kind, "burst") == 0)
            burst(first);
        else if (strcmp(kind, "asked") == 0)
            asked(first);
        else if (memory != 0)
            ok(cuMemsetD8Async(memory, 0, 1 << 20, NULL));
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

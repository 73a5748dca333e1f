/* work.c - kernels take time, events measure it, host functions run in order, graphs repeat; and the look-up of functions. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <time.h>
#include "driver.h"

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int order[4], calls;

static void note(void *which)
{
    order[calls++ & 3] = (int)(intptr_t)which;
}

static void kernels(CUfunction f)
{
    CUstream stream;
    CUevent begin, end;
    float ms;
    OK(cuStreamCreate(&stream, 1));
    OK(cuEventCreate(&begin, 0));
    OK(cuEventCreate(&end, 0));
    double before = now_ms();
    OK(cuEventRecord(begin, stream));
    for (int i = 0; i < 10; i++)
        OK(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL));
    OK(cuEventRecord(end, stream));
    EXPECT(now_ms() - before < 40, 1); /* a launch does not wait */
    EXPECT(cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
    EXPECT(cuEventElapsedTime(&ms, begin, end), CUDA_ERROR_NOT_READY);
    OK(cuLaunchHostFunc(stream, note, (void *)1));
    OK(cuLaunchHostFunc(stream, note, (void *)2));
    EXPECT(calls, 0);
    OK(cuStreamSynchronize(stream));
    EXPECT(now_ms() - before >= 50, 1); /* ten kernels of 5 ms */
    EXPECT(calls == 2 && order[0] == 1 && order[1] == 2, 1);
    OK(cuEventElapsedTime(&ms, begin, end));
    EXPECT(ms >= 49 && ms < 60, 1);
    EXPECT(cuLaunchKernel(f, 0, 1, 1, 1, 1, 1, 0, stream, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuLaunchKernel(f, 1, 1, 1, 1025, 1, 1, 0, stream, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuLaunchKernel(NULL, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL), CUDA_ERROR_INVALID_HANDLE);
    OK(cuStreamDestroy_v2(stream));
    EXPECT(cuStreamSynchronize(stream), CUDA_ERROR_INVALID_HANDLE);
}

static void graphs(CUfunction f)
{
    CUstream stream;
    CUgraph graph;
    CUgraphExec exec;
    CUdeviceptr p;
    unsigned char out = 0;
    OK(cuMemAlloc_v2(&p, 64));
    OK(cuStreamCreate(&stream, 0));
    EXPECT(cuStreamBeginCapture_v2(NULL, 0), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    OK(cuStreamBeginCapture_v2(stream, 0));
    calls = 0;
    OK(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, stream, NULL, NULL));
    OK(cuLaunchHostFunc(stream, note, (void *)3));
    CUdeviceptr q = 0;
    OK(cuMemAllocAsync(&q, 64, stream)); /* becomes a node, as does its end */
    OK(cuMemFreeAsync(q, stream));
    EXPECT(cuMemFreeAsync(p, stream), CUDA_ERROR_INVALID_VALUE); /* no graph's memory */
    OK(cuStreamEndCapture(stream, &graph));
    EXPECT(cuStreamQuery(stream), CUDA_SUCCESS); /* nothing ran */
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    double before = now_ms();
    OK(cuGraphLaunch(exec, stream));
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    EXPECT(now_ms() - before >= 10, 1);
    EXPECT(calls, 2);
    OK(cuMemsetD8_v2(p, 9, 64));
    OK(cuMemcpyDtoH_v2(&out, p, 1));
    EXPECT(out, 9);
    OK(cuGraphExecDestroy(exec));
    OK(cuMemFree_v2(p));
}

static void *look_up(const char *name, int version, cuuint64_t flags, int status)
{
    void *pfn;
    CUdriverProcAddressQueryResult got;
    OK(cuGetProcAddress_v2(name, &pfn, version, flags, &got));
    EXPECT(got, status);
    return pfn;
}

static void addresses(void)
{
#define IS(name, version, flags, symbol) EXPECT(look_up(name, version, flags, 0) == dlsym(RTLD_DEFAULT, symbol), 1)
    IS("cuMemAlloc", 2000, 0, "cuMemAlloc");
    IS("cuMemAlloc", 3020, 0, "cuMemAlloc_v2");
    IS("cuMemAlloc", 13000, 2, "cuMemAlloc_v2");
    IS("cuCtxCreate", 11030, 0, "cuCtxCreate_v2");
    IS("cuCtxCreate", 13000, 0, "cuCtxCreate_v4");
    IS("cuMemcpyHtoD", 6000, 2, "cuMemcpyHtoD_v2");
    IS("cuMemcpyHtoD", 7000, 2, "cuMemcpyHtoD_v2_ptds");
    IS("cuLaunchKernel", 13000, 0, "cuLaunchKernel");
    IS("cuLaunchKernel", 13000, 1, "cuLaunchKernel");
    IS("cuLaunchKernel", 13000, 2, "cuLaunchKernel_ptsz");
    EXPECT(look_up("cuMemAllocAsync", 11010, 0, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT) == NULL, 1);
    EXPECT(look_up("cuNoSuchThing", 13000, 0, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND) == NULL, 1);
    void *pfn;
    EXPECT(cuGetProcAddress_v2("cuInit", &pfn, 13010, 0, NULL), CUDA_ERROR_INVALID_VALUE); /* newer than the driver */
    EXPECT(cuGetProcAddress_v2("cuInit", &pfn, 13000, 3, NULL), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuGetProcAddress_v2(NULL, &pfn, 13000, 0, NULL), CUDA_ERROR_INVALID_VALUE);
    const void *table;
    CUuuid id = {{1}};
    EXPECT(cuGetExportTable(&table, &id), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemGetHandleForAddressRange(NULL, 0, 0, 0, 0), CUDA_ERROR_NOT_SUPPORTED);
}

int main(void)
{
    CUmodule module;
    CUfunction slow, again;
    start();
    OK(cuModuleLoadData(&module, "any image"));
    OK(cuModuleGetFunction(&slow, module, "sleep_us_5000"));
    OK(cuModuleGetFunction(&again, module, "sleep_us_5000"));
    EXPECT(slow == again, 1);
    kernels(slow);
    graphs(slow);
    addresses();
    puts("ok");
    return 0;
}

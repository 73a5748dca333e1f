/* kernels.c - as client.c, for code and what runs it: modules, functions, launches, graphs, green contexts; and for tiles of
 * arrays. It answers "result value". */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"
#include "client_tiles.h"

CUresult cuCtxSetCurrent(CUcontext context);
CUresult cuFuncIsLoaded(int *state, CUfunction function);
CUresult cuCtxFromGreenCtx(CUcontext *context, CUgreenCtx green);
CUresult cuDevResourceGenerateDesc(CUdevResourceDesc *desc, CUdevResource *resources, unsigned count);
CUresult cuDevSmResourceSplitByCount(CUdevResource *result, unsigned *groups, const CUdevResource *input,
                                     CUdevResource *remaining, unsigned flags, unsigned least);
CUresult cuGreenCtxStreamCreate(CUstream *stream, CUgreenCtx green, unsigned flags, int priority);
CUresult cuGraphUpload(CUgraphExec exec, CUstream stream);
CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name);
CUresult cuStreamBeginCapture_v2(CUstream stream, int mode);
CUresult cuStreamCreate(CUstream *stream, unsigned int flags);
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph);
void vgsSetKernelTime(unsigned long long ns); /* the simulated driver's own */

typedef unsigned long long word;
static word reg[64]; /* pointers and handles */

#define HANDLE(type, number) ((type)(uintptr_t)reg[number])
#define STREAM(number)       ((number) == 0 ? NULL : HANDLE(CUstream, number)) /* 0: the default one */

static CUresult context_command(const char *verb, word a, word b)
{
    CUcontext context;
    CUresult result;
    if (strcmp(verb, "init") == 0)
        return cuInit(0);
    if (strcmp(verb, "primary") == 0) {
        result = cuDevicePrimaryCtxRetain(&context, (CUdevice)a);
        return result == CUDA_SUCCESS ? cuCtxSetCurrent(context) : result;
    }
    if (strcmp(verb, "release") == 0)
        return cuDevicePrimaryCtxRelease_v2((CUdevice)a);
    if (strcmp(verb, "reset") == 0)
        return cuDevicePrimaryCtxReset_v2((CUdevice)a);
    if (strcmp(verb, "newctx") == 0)
        return cuCtxCreate_v2((CUcontext *)&reg[a], 0, (CUdevice)b);
    if (strcmp(verb, "destroyctx") == 0)
        return cuCtxDestroy_v2(HANDLE(CUcontext, a));
    if (strcmp(verb, "setctx") == 0)
        return cuCtxSetCurrent(HANDLE(CUcontext, a));
    if (strcmp(verb, "sync") == 0)
        return cuCtxSynchronize();
    if (strcmp(verb, "alloc") == 0)
        return cuMemAlloc_v2(&reg[a], b);
    if (strcmp(verb, "free") == 0)
        return cuMemFree_v2(reg[a]);
    return CUDA_ERROR_UNKNOWN;
}

static CUresult module_command(const char *verb, word a, word b, word c)
{
    char image[96];
    snprintf(image, sizeof image, "// vgpu-sim device_bytes=%llu function_bytes=%llu", b, c);
    if (strcmp(verb, "module") == 0) /* register, bytes, bytes of each function */
        return cuModuleLoadData((CUmodule *)&reg[a], image);
    if (strcmp(verb, "library") == 0)
        return cuLibraryLoadData((CUlibrary *)&reg[a], image, NULL, NULL, 0, NULL, NULL, 0);
    if (strcmp(verb, "unload") == 0)
        return cuModuleUnload(HANDLE(CUmodule, a));
    if (strcmp(verb, "unload_library") == 0)
        return cuLibraryUnload(HANDLE(CUlibrary, a));
    if (strcmp(verb, "kernel_function") == 0)
        return cuKernelGetFunction((CUfunction *)&reg[a], HANDLE(CUkernel, b));
    if (strcmp(verb, "func_load") == 0)
        return cuFuncLoad(HANDLE(CUfunction, a));
    return CUDA_ERROR_UNKNOWN;
}

static CUresult launch_command(const char *verb, word a, word b)
{
    const CUfunction function = HANDLE(CUfunction, a);
    if (strcmp(verb, "launch") == 0) /* function, register of the stream */
        return cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, STREAM(b), NULL, NULL);
    if (strcmp(verb, "launch_cooperative") == 0)
        return cuLaunchCooperativeKernel(function, 1, 1, 1, 32, 1, 1, 0, STREAM(b), NULL);
    if (strcmp(verb, "launch_on_two") == 0) { /* functions in two registers, streams in two registers */
        CUDA_LAUNCH_PARAMS kernels[2];
        for (unsigned at = 0; at < 2; at++)
            kernels[at] =
                (CUDA_LAUNCH_PARAMS){HANDLE(CUfunction, a + at), 1, 1, 1, 32, 1, 1, 0, HANDLE(CUstream, b + at), NULL};
        return cuLaunchCooperativeKernelMultiDevice(kernels, 2, 1);
    }
    if (strcmp(verb, "stream") == 0)
        return cuStreamCreate((CUstream *)&reg[a], 1);
    if (strcmp(verb, "launch_and_end") == 0) { /* function, launches: a short one, long ones */
        CUstream stream;
        CUresult result = cuStreamCreate(&stream, 1);
        for (unsigned at = 0; result == CUDA_SUCCESS && at < b; at++) {
            vgsSetKernelTime(at == 0 ? 45000 : 600000);
            result = cuLaunchKernel(HANDLE(CUfunction, a), 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL);
        }
        return result == CUDA_SUCCESS ? cuStreamDestroy_v2(stream) : result;
    }
    if (strcmp(verb, "stream_wait") == 0)
        return cuStreamSynchronize(HANDLE(CUstream, a));
    return CUDA_ERROR_UNKNOWN;
}

/* A part of the device with at least so many processors, or all of it for 0. */
static CUresult make_green(CUgreenCtx *green, CUdevice device, unsigned processors)
{
    struct {
        _Alignas(8) char bytes[144];
    } whole, part;
    CUdevResourceDesc description;
    unsigned groups = 1;
    CUresult result = cuDeviceGetDevResource(device, (CUdevResource *)&whole, CU_DEV_RESOURCE_TYPE_SM);
    if (result == CUDA_SUCCESS && processors > 0)
        result =
            cuDevSmResourceSplitByCount((CUdevResource *)&part, &groups, (CUdevResource *)&whole, NULL, 0, processors);
    if (result == CUDA_SUCCESS)
        result = cuDevResourceGenerateDesc(&description, (CUdevResource *)(processors > 0 ? &part : &whole), 1);
    return result == CUDA_SUCCESS ? cuGreenCtxCreate(green, description, device, 1) : result;
}

static CUresult green_command(const char *verb, word a, word b, word c)
{
    CUcontext context;
    CUresult result;
    if (strcmp(verb, "green") == 0) /* register, device, processors */
        return make_green((CUgreenCtx *)&reg[a], (CUdevice)b, (unsigned)c);
    if (strcmp(verb, "green_on") == 0) /* register, device: with another device's description */
        return cuGreenCtxCreate((CUgreenCtx *)&reg[a], (CUdevResourceDesc)&reg[0], (CUdevice)b, 1);
    if (strcmp(verb, "green_end") == 0)
        return cuGreenCtxDestroy(HANDLE(CUgreenCtx, a));
    if (strcmp(verb, "green_use") == 0) {
        result = cuCtxFromGreenCtx(&context, HANDLE(CUgreenCtx, a));
        return result == CUDA_SUCCESS ? cuCtxSetCurrent(context) : result;
    }
    if (strcmp(verb, "green_stream") == 0) /* register, green context */
        return cuGreenCtxStreamCreate((CUstream *)&reg[a], HANDLE(CUgreenCtx, b), 1, 0);
    return CUDA_ERROR_UNKNOWN;
}

static CUresult graph_command(const char *verb, word a, word b, word c)
{
    if (strcmp(verb, "g_capture") == 0) { /* graph, function, launches of it */
        CUstream stream;
        CUresult result = cuStreamCreate(&stream, 1);
        if (result == CUDA_SUCCESS)
            result = cuStreamBeginCapture_v2(stream, 0);
        for (word at = 0; result == CUDA_SUCCESS && at < c; at++)
            result = cuLaunchKernel(HANDLE(CUfunction, b), 1, 1, 1, 32, 1, 1, 0, stream, NULL, NULL);
        return result == CUDA_SUCCESS ? cuStreamEndCapture(stream, (CUgraph *)&reg[a]) : result;
    }
    if (strcmp(verb, "g_make") == 0) /* executable, graph, flags */
        return cuGraphInstantiateWithFlags((CUgraphExec *)&reg[a], HANDLE(CUgraph, b), c);
    if (strcmp(verb, "g_make_params") == 0) {
        CUDA_GRAPH_INSTANTIATE_PARAMS params = {.flags = c};
        return cuGraphInstantiateWithParams((CUgraphExec *)&reg[a], HANDLE(CUgraph, b), &params);
    }
    if (strcmp(verb, "g_upload") == 0)
        return cuGraphUpload(HANDLE(CUgraphExec, a), STREAM(b));
    if (strcmp(verb, "g_launch") == 0)
        return cuGraphLaunch(HANDLE(CUgraphExec, a), STREAM(b));
    if (strcmp(verb, "g_end") == 0)
        return cuGraphExecDestroy(HANDLE(CUgraphExec, a));
    return CUDA_ERROR_UNKNOWN;
}

static CUresult named_command(const char *verb, word a, word b, const char *name)
{
    if (strcmp(verb, "function") == 0) /* register, module, name */
        return cuModuleGetFunction((CUfunction *)&reg[a], HANDLE(CUmodule, b), name);
    if (strcmp(verb, "kernel") == 0)
        return cuLibraryGetKernel((CUkernel *)&reg[a], HANDLE(CUlibrary, b), name);
    return CUDA_ERROR_UNKNOWN;
}

static CUresult tile_command(const char *verb, const word *n)
{
    const int is_mipmap = strstr(verb, "mipmap") != NULL;
    if (strcmp(verb, "tile_pool") == 0) /* register, bytes, device */
        return make_pool(&reg[n[0]], n[1], (int)n[2]);
    if (strcmp(verb, "tile_release") == 0)
        return cuMemRelease(reg[n[0]]);
    if (strcmp(verb, "tile_array") == 0 ||
        strcmp(verb, "tile_mipmap") == 0) /* register, width, height, flags, levels */
        return make_tiled(&reg[n[0]], n[1], n[2], (unsigned)n[3], (unsigned)n[4]);
    if (strcmp(verb, "tile_array_end") == 0)
        return cuArrayDestroy(HANDLE(CUarray, n[0]));
    if (strcmp(verb, "tile_mipmap_end") == 0)
        return cuMipmappedArrayDestroy(HANDLE(CUmipmappedArray, n[0]));
    if (strncmp(verb, "tile_bind", 9) == 0) { /* array, memory, stream, then where; …_mipmap */
        CUarrayMapInfo info = tile_operation(reg[n[0]], is_mipmap, reg[n[1]], n + 3);
        return cuMemMapArrayAsync(&info, 1, STREAM(n[2]));
    }
    if (strncmp(verb, "tile_unbind", 11) == 0) { /* array, stream, then where */
        CUarrayMapInfo info = tile_operation(reg[n[0]], is_mipmap, 0, n + 2);
        return cuMemMapArrayAsync(&info, 1, STREAM(n[1]));
    }
    return CUDA_ERROR_UNKNOWN;
}

static word first; /* number of the last command */

static CUresult obey(const char *verb, const word *n, const char *third)
{
    CUresult result = context_command(verb, n[0], n[1]);
    if (result == CUDA_ERROR_UNKNOWN)
        result = module_command(verb, n[0], n[1], n[2]);
    if (result == CUDA_ERROR_UNKNOWN)
        result = launch_command(verb, n[0], n[1]);
    if (result == CUDA_ERROR_UNKNOWN)
        result = green_command(verb, n[0], n[1], n[2]);
    if (result == CUDA_ERROR_UNKNOWN)
        result = graph_command(verb, n[0], n[1], n[2]);
    if (result == CUDA_ERROR_UNKNOWN)
        result = named_command(verb, n[0], n[1], third);
    return result == CUDA_ERROR_UNKNOWN ? tile_command(verb, n) : result;
}

static CUresult take(char *line)
{
    char third[64] = "";
    word number[8] = {0};
    const char *verb = strtok(line, " \n"), *text;
    for (unsigned at = 0; verb != NULL && at < 8 && (text = strtok(NULL, " \n")) != NULL; at++) {
        sscanf(text, "%llu", &number[at]);
        if (at == 2)
            snprintf(third, sizeof third, "%s", text);
    }
    first = number[0];
    return verb == NULL ? CUDA_ERROR_UNKNOWN : obey(verb, number, third);
}

/* What a child gets that goes on with its parent's handles. The answers, in one line. */
static void child(void)
{
    static const char *const calls[] = {"init",
                                        "primary 0",
                                        "newctx 50 0",
                                        "setctx 50",
                                        "release 0",
                                        "sync",
                                        "alloc 51 4096",
                                        "free 3",
                                        "module 52 0 0",
                                        "unload 1",
                                        "library 53 0 0",
                                        "function 54 1 two",
                                        "func_load 2",
                                        "launch 2 0",
                                        "launch 2 9",
                                        "stream 55",
                                        "stream_wait 9",
                                        "g_capture 56 2 1",
                                        "g_make 57 4 0",
                                        "g_launch 5 9",
                                        "g_end 5",
                                        "green 58 0 8",
                                        "green_end 6",
                                        "green_stream 59 6",
                                        "launch_cooperative 2 9",
                                        "tile_pool 60 2097152 0",
                                        "tile_release 7",
                                        "tile_array 61 256 256 64 0",
                                        "tile_bind 8 7 9 0 0 0 1 1",
                                        "tile_unbind 8 9 0 0 0 1 1",
                                        "tile_array_end 8"};
    char line[64];
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        for (size_t at = 0; at < sizeof calls / sizeof calls[0]; at++) {
            snprintf(line, sizeof line, "%s", calls[at]);
            printf("%d ", take(line));
        }
        printf("\n");
        fflush(stdout);
        _exit(0);
    }
    waitpid(pid, NULL, 0);
}

int main(void)
{
    char line[256];
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (strcmp(line, "child\n") == 0) {
            child();
            continue;
        }
        const CUresult result = take(line);
        printf("%d %llu\n", result, reg[first % 64]);
        fflush(stdout);
    }
    return 0;
}

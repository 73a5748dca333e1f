/* client.c - a CUDA program that does what its standard input says, a command a line, and answers "result value value".
 *
 * It links libcuda.so.1 as any program does. Values are kept in numbered registers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"
#include "client_overhead.h"

CUresult cuCtxSetCurrent(CUcontext context);
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device);
CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr,
                             unsigned long long flags);
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device);
CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int attribute, void *value);
CUresult cuStreamCreate(CUstream *stream, unsigned int flags);
CUresult cuStreamBeginCapture_v2(CUstream stream, int mode);

#ifdef __x86_64__
#define DLSYM_VERSION "GLIBC_2.2.5"
#else
#define DLSYM_VERSION "GLIBC_2.17"
#endif

typedef unsigned long long word;
static word reg[4096];

static void say(CUresult result, word one, word two)
{
    printf("%d %llu %llu\n", result, one, two);
    fflush(stdout);
}

static CUmemAllocationProp on_device(int device)
{
    CUmemAllocationProp prop;
    memset(&prop, 0, sizeof prop);
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device;
    return prop;
}

static CUresult make_array(const char *family, word *at, size_t bytes)
{
    CUDA_ARRAY_DESCRIPTOR flat = {.Width = bytes, .Height = 0, .Format = CU_AD_FORMAT_UNSIGNED_INT8, .NumChannels = 1};
    CUDA_ARRAY3D_DESCRIPTOR deep = {
        .Width = bytes / 8, .Height = 2, .Depth = 2, .Format = CU_AD_FORMAT_HALF, .NumChannels = 1};
    if (strcmp(family, "array") == 0)
        return cuArrayCreate_v2((CUarray *)at, &flat);
    if (strcmp(family, "array3d") == 0)
        return cuArray3DCreate_v2((CUarray *)at, &deep);
    if (strcmp(family, "sparse") == 0) {
        deep.Flags = CUDA_ARRAY3D_SPARSE;
        return cuArray3DCreate_v2((CUarray *)at, &deep);
    }
    CUDA_ARRAY3D_DESCRIPTOR one = {
        .Width = bytes, .Height = 0, .Depth = 0, .Format = CU_AD_FORMAT_SIGNED_INT8, .NumChannels = 1};
    return cuMipmappedArrayCreate((CUmipmappedArray *)at, &one, 1);
}

static CUmemoryPool pool;

static CUresult allocate(const char *family, word *at, size_t bytes, word *extra)
{
    size_t pitch = 0;
    CUmemPoolProps pool_at = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemAllocationProp prop = on_device(0);
    if (strcmp(family, "linear") == 0)
        return cuMemAlloc_v2(at, bytes);
    if (strcmp(family, "managed") == 0)
        return cuMemAllocManaged(at, bytes, 1);
    if (strcmp(family, "pitch") == 0) {
        const CUresult result = cuMemAllocPitch_v2(at, &pitch, bytes, 1, 4);
        *extra = pitch;
        return result;
    }
    if (strcmp(family, "async") == 0)
        return cuMemAllocAsync(at, bytes, NULL);
    if (strcmp(family, "async_ptsz") == 0)
        return cuMemAllocAsync_ptsz(at, bytes, NULL);
    if (strcmp(family, "pool") == 0) {
        const CUresult result = pool == NULL ? cuMemPoolCreate(&pool, &pool_at) : CUDA_SUCCESS;
        return result != CUDA_SUCCESS ? result : cuMemAllocFromPoolAsync(at, bytes, pool, NULL);
    }
    if (strcmp(family, "physical") == 0)
        return cuMemCreate(at, bytes, &prop, 0);
    return make_array(family, at, bytes);
}

static CUresult release(const char *family, word value)
{
    if (strcmp(family, "async") == 0 || strcmp(family, "pool") == 0)
        return cuMemFreeAsync(value, NULL);
    if (strcmp(family, "async_ptsz") == 0)
        return cuMemFreeAsync_ptsz(value, NULL);
    if (strcmp(family, "physical") == 0)
        return cuMemRelease(value);
    if (strcmp(family, "array") == 0 || strcmp(family, "array3d") == 0 || strcmp(family, "sparse") == 0)
        return cuArrayDestroy((CUarray)value);
    if (strcmp(family, "mipmap") == 0)
        return cuMipmappedArrayDestroy((CUmipmappedArray)value);
    return cuMemFree_v2(value);
}

typedef CUresult get_proc(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);

/* A look-up function that was itself looked up, twice. */
static get_proc *nested(void)
{
    get_proc *get = cuGetProcAddress_v2;
    CUdriverProcAddressQueryResult status;
    for (int depth = 0; depth < 2; depth++)
        if (get("cuGetProcAddress", (void **)&get, 12000, 0, &status) != CUDA_SUCCESS)
            return NULL;
    return get;
}

static void *by_loader(const char *how, const char *name)
{
    void *(*other_dlsym)(void *, const char *);
    if (strcmp(how, "dlsym") == 0)
        return dlsym(dlopen("libcuda.so.1", RTLD_LAZY), name);
    if (strcmp(how, "deepbind") == 0)
        return dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND), name);
    if (strcmp(how, "default") == 0)
        return dlsym(RTLD_DEFAULT, name);
    if (strcmp(how, "next") == 0)
        return dlsym(RTLD_NEXT, name);
    if (strcmp(how, "dlvsym") == 0) { /* the C library's own, past whoever stands in front of dlsym */
        other_dlsym = (void *(*)(void *, const char *))dlvsym(RTLD_DEFAULT, "dlsym", DLSYM_VERSION);
        return other_dlsym == NULL ? NULL : other_dlsym(dlopen("libcuda.so.1", RTLD_LAZY), name);
    }
    return dlsym(dlopen(how, RTLD_LAZY), name); /* by another name of the library */
}

/* How a function is found: which library answers, and under which name. */
static void find(const char *how, const char *name, word version, word flags)
{
    void *at = NULL;
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SUCCESS;
    CUresult result = CUDA_SUCCESS;
    Dl_info info = {.dli_fname = "?", .dli_sname = "?"};
    if (strcmp(how, "v1") == 0)
        result = cuGetProcAddress(name, &at, (int)version, flags);
    else if (strcmp(how, "v2") == 0)
        result = cuGetProcAddress_v2(name, &at, (int)version, flags, &status);
    else if (strcmp(how, "nested") == 0)
        result = nested()(name, &at, (int)version, flags, &status);
    else
        at = by_loader(how, name);
    if (at != NULL)
        dladdr(at, &info);
    printf("%d %s %s\n", result, at == NULL ? "-" : strrchr(info.dli_fname, '/') + 1,
           info.dli_sname == NULL ? "?" : info.dli_sname);
    fflush(stdout);
}

/* A child that allocates, after fork or a bare clone that no fork handler sees; then it waits, or ends. */
static void child(const char *kind, word bytes, bool waits)
{
    const pid_t pid = strcmp(kind, "fork") == 0 ? fork() : (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        CUcontext context;
        CUdeviceptr pointer = 0;
        CUresult result = cuInit(0);
        if (result == CUDA_SUCCESS)
            result = cuDevicePrimaryCtxRetain(&context, 0);
        if (result == CUDA_SUCCESS)
            result = cuCtxSetCurrent(context);
        if (result == CUDA_SUCCESS)
            result = cuMemAlloc_v2(&pointer, bytes);
        say(result, (word)getpid(), pointer);
        while (waits)
            pause();
        _exit(0);
    }
    if (!waits)
        waitpid(pid, NULL, 0);
}

/* Allocates and frees at random until it is killed; bytes: the largest allocation. */
static void storm(word seed, word bytes)
{
    for (unsigned state = (unsigned)seed * 2654435761u + 1;;) {
        state = state * 1664525u + 1013904223u;
        word *at = &reg[(state >> 8) % 64];
        if (*at == 0 && cuMemAlloc_v2(at, 1 + (state >> 4) % bytes) != CUDA_SUCCESS)
            *at = 0;
        else if (*at != 0 && state >> 31 && cuMemFree_v2(*at) == CUDA_SUCCESS)
            *at = 0;
    }
}

/* Allocates chunks until there is no room; answers how many it got. */
static void fill(word bytes)
{
    word count = 0;
    CUdeviceptr pointer;
    CUresult result;
    while ((result = cuMemAlloc_v2(&pointer, bytes)) == CUDA_SUCCESS)
        count++;
    say(result, count, 0);
}

static void context_command(const char *verb, word a)
{
    CUcontext context = NULL;
    CUresult result;
    if (strcmp(verb, "primary") == 0) {
        result = cuDevicePrimaryCtxRetain(&context, (CUdevice)a);
        if (result == CUDA_SUCCESS)
            result = cuCtxSetCurrent(context);
    } else if (strcmp(verb, "newctx") == 0) {
        result = cuCtxCreate_v2(&context, 0, (CUdevice)a);
        if (result == CUDA_SUCCESS)
            reg[4000] = (word)(uintptr_t)context;
    } else if (strcmp(verb, "destroyctx") == 0) {
        result = cuCtxDestroy_v2((CUcontext)(uintptr_t)reg[4000]);
    } else if (strcmp(verb, "primary_release") == 0) {
        result = cuDevicePrimaryCtxRelease_v2((CUdevice)a);
    } else {
        result = cuDevicePrimaryCtxReset_v2((CUdevice)a);
    }
    say(result, 0, 0);
}

static void device_command(const char *verb, word a)
{
    size_t free = 0, total = 0;
    int number = 0;
    CUuuid uuid;
    if (strcmp(verb, "init") == 0) {
        say(cuInit(0), 0, 0);
    } else if (strcmp(verb, "count") == 0) {
        const CUresult result = cuDeviceGetCount(&number);
        say(result, (word)number, 0);
    } else if (strcmp(verb, "get") == 0) {
        const CUresult result = cuDeviceGet(&number, (int)a);
        printf("%d %d ", result, number);
        memset(&uuid, 0, sizeof uuid);
        cuDeviceGetUuid(&uuid, number);
        for (unsigned at = 0; at < 16; at++)
            printf("%02x", (unsigned char)uuid.bytes[at]);
        printf("\n");
        fflush(stdout);
    } else if (strcmp(verb, "total") == 0) {
        const CUresult result = cuDeviceTotalMem_v2(&total, (CUdevice)a);
        say(result, total, 0);
    } else {
        const CUresult result = cuMemGetInfo_v2(&free, &total);
        say(result, free, total);
    }
}

static void map_command(const char *verb, word a, word b, word c)
{
    if (strcmp(verb, "reserve") == 0) {
        const CUresult result = cuMemAddressReserve(&reg[a], b, 0, 0, 0);
        say(result, reg[a], 0);
    } else if (strcmp(verb, "map") == 0) {
        say(cuMemMap(reg[a], b, 0, reg[c], 0), 0, 0);
    } else if (strcmp(verb, "mapat") == 0) { /* the second half of a reservation */
        say(cuMemMap(reg[a] + b, b, 0, reg[c], 0), 0, 0);
    } else if (strcmp(verb, "unmap") == 0) {
        say(cuMemUnmap(reg[a], b), 0, 0);
    } else {
        const CUresult result = cuMemRetainAllocationHandle(&reg[a], (void *)(uintptr_t)reg[b]);
        say(result, reg[a], 0);
    }
}

static void misuse(void)
{
    errno = 77;
    const CUresult results[] = {cuMemAlloc_v2(NULL, 16),
                                cuMemGetInfo_v2(NULL, NULL),
                                cuDeviceGetCount(NULL),
                                cuDeviceGet(NULL, 0),
                                cuMemCreate(NULL, 16, NULL, 0),
                                cuArrayCreate_v2(NULL, NULL),
                                cuMemAllocPitch_v2(NULL, NULL, 1, 1, 4),
                                cuMemAllocAsync(NULL, 16, NULL),
                                cuMemPoolCreate(NULL, NULL),
                                cuMemFree_v2(12345),
                                cuMemRelease(0)};
    bool refused = true;
    for (size_t at = 0; at < sizeof results / sizeof results[0]; at++)
        refused = refused && results[at] != CUDA_SUCCESS;
    say(CUDA_SUCCESS, refused, (word)(errno == 77));
}

/* keep: up to so many bytes are kept at a synchronisation; of the program's own pool, or the device's. */
static void pool_command(const char *verb, word a)
{
    const int release_threshold = 4;
    CUmemoryPool which = pool;
    CUresult result = which == NULL ? cuDeviceGetDefaultMemPool(&which, 0) : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS && strcmp(verb, "pool_keep") == 0)
        result = cuMemPoolSetAttribute(which, release_threshold, &a);
    else if (result == CUDA_SUCCESS && strcmp(verb, "pool_trim") == 0)
        result = cuMemPoolTrimTo(which, a);
    else if (result == CUDA_SUCCESS && strcmp(verb, "pool_destroy") == 0) {
        result = cuMemPoolDestroy(which);
        pool = NULL;
    }
    say(result, 0, 0);
}

static void capture(void)
{
    CUstream stream = NULL;
    CUdeviceptr pointer;
    CUresult result = cuStreamCreate(&stream, 1);
    if (result == CUDA_SUCCESS)
        result = cuStreamBeginCapture_v2(stream, 0);
    say(result != CUDA_SUCCESS ? result : cuMemAllocAsync(&pointer, 4096, stream), (word)result, 0);
}

static void obey(char *line)
{
    char verb[32] = "", family[64] = "";
    word a = 0, b = 0, c = 0;
    sscanf(line, "%31s", verb);
    if (strcmp(verb, "alloc") == 0 && sscanf(line, "%*s %63s %llu %llu", family, &a, &b) == 3) {
        word extra = 0;
        const CUresult result = allocate(family, &reg[a], b, &extra);
        say(result, reg[a], extra);
    } else if (strcmp(verb, "free") == 0 && sscanf(line, "%*s %63s %llu", family, &a) == 2) {
        say(release(family, reg[a]), 0, 0);
    } else if (strcmp(verb, "load") == 0) {
        char path[200] = "";
        sscanf(line, "%*s %63s %llu %llu %199s", family, &a, &b, path);
        say(load(family, &reg[a], b, path), 0, 0);
    } else if (strcmp(verb, "unload") == 0) {
        sscanf(line, "%*s %63s %llu", family, &a);
        say(unload(family, reg[a]), 0, 0);
    } else if (strcmp(verb, "find") == 0) {
        char name[64] = "";
        sscanf(line, "%*s %63s %63s %llu %llu", family, name, &a, &b);
        find(family, name, a, b);
    } else if (strcmp(verb, "child") == 0) {
        sscanf(line, "%*s %63s %llu %llu", family, &a, &b);
        child(family, a, b != 0);
    } else {
        sscanf(line, "%*s %llu %llu %llu", &a, &b, &c);
        if (strstr(verb, "ctx") != NULL || strncmp(verb, "primary", 7) == 0)
            context_command(verb, a);
        else if (strcmp(verb, "fill") == 0)
            fill(a);
        else if (strcmp(verb, "storm") == 0)
            storm(a, b);
        else if (strcmp(verb, "limit") == 0)
            say(cuCtxSetLimit((CUlimit)a, b), 0, 0);
        else if (strcmp(verb, "set") == 0)
            say(CUDA_SUCCESS, reg[a] = b, 0);
        else if (strcmp(verb, "misuse") == 0)
            misuse();
        else if (strcmp(verb, "sync") == 0)
            say(cuCtxSynchronize(), 0, 0);
        else if (strncmp(verb, "pool_", 5) == 0)
            pool_command(verb, a);
        else if (strcmp(verb, "capture") == 0)
            capture();
        else if (strcmp(verb, "closeall") == 0) {
            for (int fd = 3; fd < 1024; fd++)
                close(fd);
            say(CUDA_SUCCESS, 0, 0);
        } else if (strcmp(verb, "exec") == 0) {
            execlp("cat", "cat", (char *)NULL);
        } else if (strstr("reserve mapat unmap retain", verb) != NULL)
            map_command(verb, a, b, c);
        else
            device_command(verb, a);
    }
}

int main(void)
{
    char line[512];
    setvbuf(stdin, NULL, _IONBF, 0); /* a program that takes over by exec finds the rest of the input */
    while (fgets(line, sizeof line, stdin) != NULL)
        obey(line);
    return 0;
}

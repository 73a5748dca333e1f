/* sharer.c - as client.c, for memory of graphs and memory that several processes use. It answers "result value". */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"

CUresult cuCtxSetCurrent(CUcontext context);
CUresult cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                CUDA_MEM_ALLOC_NODE_PARAMS *params);
CUresult cuGraphAddMemFreeNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                               CUdeviceptr pointer);
CUresult cuGraphAddChildGraphNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                  CUgraph child);
CUresult cuGraphCreate(CUgraph *graph, unsigned int flags);
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream);
CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr pointer);
CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr,
                             unsigned long long flags);
CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const void *desc, size_t count);
CUresult cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool);
CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData *data, CUdeviceptr pointer);
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes);
CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count);
CUresult cuStreamBeginCapture_v2(CUstream stream, int mode);
CUresult cuStreamCreate(CUstream *stream, unsigned int flags);
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph);

typedef unsigned long long word;
static word reg[64]; /* pointers and handles */
static CUgraph graphs[64];
static CUgraphExec execs[64];

static CUresult graph_command(const char *verb, word a, word b, word c)
{
    CUgraphNode node;
    CUresult result = CUDA_SUCCESS;
    if (strcmp(verb, "g_new") == 0)
        return cuGraphCreate(&graphs[a], 0);
    if (strcmp(verb, "g_alloc") == 0) { /* graph, bytes, register of the pointer */
        CUDA_MEM_ALLOC_NODE_PARAMS params = {
            .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}},
            .bytesize = b};
        result = cuGraphAddMemAllocNode(&node, graphs[a], NULL, 0, &params);
        reg[c] = params.dptr;
        return result;
    }
    if (strcmp(verb, "g_free") == 0)
        return cuGraphAddMemFreeNode(&node, graphs[a], NULL, 0, reg[b]);
    if (strcmp(verb, "g_child") == 0)
        return cuGraphAddChildGraphNode(&node, graphs[a], NULL, 0, graphs[b]);
    if (strcmp(verb, "g_make") == 0)
        return cuGraphInstantiateWithFlags(&execs[a], graphs[a], 0);
    if (strcmp(verb, "g_launch") == 0)
        return cuGraphLaunch(execs[a], NULL);
    if (strcmp(verb, "g_end") == 0)
        return cuGraphExecDestroy(execs[a]);
    if (strcmp(verb, "g_trim") == 0)
        return cuDeviceGraphMemTrim((CUdevice)a);
    if (strcmp(verb, "g_capture") == 0) { /* graph, bytes */
        CUstream stream;
        result = cuStreamCreate(&stream, 1);
        if (result == CUDA_SUCCESS)
            result = cuStreamBeginCapture_v2(stream, 0);
        if (result == CUDA_SUCCESS)
            result = cuMemAllocAsync(&reg[c], b, stream);
        if (result == CUDA_SUCCESS)
            result = cuMemFreeAsync(reg[c], stream);
        return result == CUDA_SUCCESS ? cuStreamEndCapture(stream, &graphs[a]) : result;
    }
    return CUDA_ERROR_UNKNOWN;
}

/* Another process's descriptor, as if it had been sent to us. */
static int descriptor_of(word process, word number)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%llu/fd/%llu", process, number);
    return open(path, O_RDWR);
}

static CUresult share_command(const char *verb, word a, word b, word c, word d)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, (int)c}};
    if (strcmp(verb, "create") == 0) /* register, bytes, device */
        return cuMemCreate(&reg[a], b, &prop, 0);
    if (strcmp(verb, "release") == 0)
        return cuMemRelease(reg[a]);
    if (strcmp(verb, "export") == 0) { /* the descriptor into register b */
        int fd = -1;
        const CUresult result = cuMemExportToShareableHandle(&fd, reg[a], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
        reg[b] = (word)fd;
        return result;
    }
    if (strcmp(verb, "import") == 0) { /* register, process, its descriptor */
        const int fd = descriptor_of(b, c);
        const CUresult result =
            cuMemImportFromShareableHandle(&reg[a], (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
        close(fd);
        return result;
    }
    if (strcmp(verb, "map") == 0) { /* register of the address, bytes, register of the handle */
        const struct {
            CUmemLocation location;
            int flags;
        } access = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, 3};
        CUresult result = cuMemAddressReserve(&reg[a], b, 0, 0, 0);
        if (result == CUDA_SUCCESS)
            result = cuMemMap(reg[a], b, 0, reg[c], 0);
        return result == CUDA_SUCCESS ? cuMemSetAccess(reg[a], b, &access, 1) : result;
    }
    if (strcmp(verb, "reserve") == 0)
        return cuMemAddressReserve(&reg[a], b, 0, 0, 0);
    if (strcmp(verb, "map_at") == 0) /* register of the address, bytes, register of the handle, from there */
        return cuMemMap(reg[a] + d, b, 0, reg[c], 0);
    if (strcmp(verb, "unmap") == 0) /* register of the address, bytes, from there */
        return cuMemUnmap(reg[a] + c, b);
    if (strcmp(verb, "retain") == 0) /* register of the handle, register of the address, from there */
        return cuMemRetainAllocationHandle(&reg[a], (void *)(uintptr_t)(reg[b] + c));
    if (strcmp(verb, "ext") == 0) {
        const CUDA_EXTERNAL_MEMORY_HANDLE_DESC desc = {.type = CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, .size = b};
        return cuImportExternalMemory((CUexternalMemory *)&reg[a], &desc);
    }
    if (strcmp(verb, "ext_end") == 0)
        return cuDestroyExternalMemory((CUexternalMemory)reg[a]);
    if (strcmp(verb, "refused") == 0)
        return cuMemGetHandleForAddressRange(&reg[a], 0, 0, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD, 0);
    if (strcmp(verb, "write") == 0)
        return cuMemsetD8_v2(reg[a], (unsigned char)b, 16);
    return CUDA_ERROR_UNKNOWN;
}

static CUresult plain_command(const char *verb, word a, word b)
{
    CUcontext context;
    CUresult result;
    if (strcmp(verb, "init") == 0)
        return cuInit(0);
    if (strcmp(verb, "primary") == 0) {
        result = cuDevicePrimaryCtxRetain(&context, (CUdevice)a);
        return result == CUDA_SUCCESS ? cuCtxSetCurrent(context) : result;
    }
    if (strcmp(verb, "reset") == 0)
        return cuDevicePrimaryCtxReset_v2((CUdevice)a);
    if (strcmp(verb, "alloc") == 0)
        return cuMemAlloc_v2(&reg[a], b);
    if (strcmp(verb, "free") == 0)
        return cuMemFree_v2(reg[a]);
    if (strcmp(verb, "sync") == 0)
        return cuCtxSynchronize();
    if (strcmp(verb, "ipc_close") == 0)
        return cuIpcCloseMemHandle(reg[a]);
    return CUDA_ERROR_UNKNOWN;
}

static CUresult pool_command(const char *verb, word a, word b, word c)
{
    const CUmemAllocationHandleType descriptor = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    const CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                  .handleTypes = descriptor,
                                  .location = {CU_MEM_LOCATION_TYPE_DEVICE, (int)b}};
    if (strcmp(verb, "p_new") == 0) /* register, device */
        return cuMemPoolCreate((CUmemoryPool *)&reg[a], &props);
    if (strcmp(verb, "p_alloc") == 0) /* register of the pointer, bytes, register of the pool */
        return cuMemAllocFromPoolAsync(&reg[a], b, (CUmemoryPool)reg[c], NULL);
    if (strcmp(verb, "p_free") == 0)
        return cuMemFreeAsync(reg[a], NULL);
    if (strcmp(verb, "p_trim") == 0)
        return cuMemPoolTrimTo((CUmemoryPool)reg[a], 0);
    if (strcmp(verb, "p_current") == 0)
        return cuDeviceSetMemPool(0, (CUmemoryPool)reg[a]);
    if (strcmp(verb, "p_end") == 0)
        return cuMemPoolDestroy((CUmemoryPool)reg[a]);
    if (strcmp(verb, "p_piece") == 0) { /* bytes by which the driver's pools grow: the simulation's own */
        void (*set)(uint64_t);
        *(void **)&set = dlsym(RTLD_DEFAULT, "vgsSetPoolPiece");
        set(a);
        return CUDA_SUCCESS;
    }
    if (strcmp(verb, "p_export") == 0) { /* the descriptor into register b */
        int fd = -1;
        const CUresult result = cuMemPoolExportToShareableHandle(&fd, (CUmemoryPool)reg[a], descriptor, 0);
        reg[b] = (word)fd;
        return result;
    }
    if (strcmp(verb, "p_import") == 0) { /* register, process, its descriptor */
        const int fd = descriptor_of(b, c);
        const CUresult result =
            cuMemPoolImportFromShareableHandle((CUmemoryPool *)&reg[a], (void *)(intptr_t)fd, descriptor, 0);
        close(fd);
        return result;
    }
    return CUDA_ERROR_UNKNOWN;
}

/* Multicast objects. */
static CUresult team_command(const char *verb, word a, word b, word c, word d)
{
    if (strcmp(verb, "m_new") == 0) { /* register, GPUs, bytes, whether it can be shared */
        const CUmulticastObjectProp prop = {.numDevices = (unsigned)b, .size = c, .handleTypes = d};
        return cuMulticastCreate(&reg[a], &prop);
    }
    if (strcmp(verb, "m_add") == 0)
        return cuMulticastAddDevice(reg[a], (CUdevice)b);
    if (strcmp(verb, "m_bind") == 0) /* register, register of the memory, bytes, from there in the object */
        return cuMulticastBindMem(reg[a], d, reg[b], 0, c, 0);
    if (strcmp(verb, "m_at") == 0) /* register, register of an address, bytes, from there in the memory */
        return cuMulticastBindAddr(reg[a], 0, reg[b] + d, c, 0);
    if (strcmp(verb, "m_unbind") == 0) /* register, device, bytes, from there */
        return cuMulticastUnbind(reg[a], (CUdevice)b, d, c);
    return CUDA_ERROR_UNKNOWN;
}

/* What names memory elsewhere travels as hexadecimal digits: an IPC handle, or a pool's export data. */
static void name_command(const char *verb, word a, word b, const char *text)
{
    CUipcMemHandle handle;
    CUmemPoolPtrExportData data;
    _Static_assert(sizeof handle == sizeof data, "one command reads both");
    CUresult result = CUDA_ERROR_UNKNOWN;
    memset(&handle, 0, sizeof handle);
    if (strcmp(verb, "name_ipc") == 0 || strcmp(verb, "name_pointer") == 0) {
        result = verb[5] == 'i' ? cuIpcGetMemHandle(&handle, reg[a]) : cuMemPoolExportPointer(&data, reg[a]);
        if (verb[5] == 'p')
            memcpy(&handle, &data, sizeof data);
        printf("%d ", result);
        for (size_t at = 0; at < sizeof handle; at++)
            printf("%02x", (unsigned char)handle.reserved[at]);
        printf("\n");
        return;
    }
    for (size_t at = 0; at < sizeof handle && text[2 * at] != '\0'; at++) {
        unsigned value = 0;
        sscanf(text + 2 * at, "%2x", &value);
        handle.reserved[at] = (char)value;
    }
    memcpy(&data, &handle, sizeof data);
    result = strcmp(verb, "named_ipc") == 0 ? cuIpcOpenMemHandle_v2(&reg[a], handle, 1)
                                            : cuMemPoolImportPointer(&reg[a], (CUmemoryPool)reg[b], &data);
    printf("%d %llu\n", result, reg[a]);
}

int main(void)
{
    char line[256], verb[32], text[160];
    while (fgets(line, sizeof line, stdin) != NULL) {
        word a = 0, b = 0, c = 0, d = 0;
        text[0] = '\0';
        sscanf(line, "%31s %llu %llu %llu %llu", verb, &a, &b, &c, &d);
        if (strncmp(verb, "name", 4) == 0) { /* register, register of a pool, text */
            sscanf(line, "%*s %*s %*s %159s", text);
            name_command(verb, a, b, text);
        } else if (strcmp(verb, "read") == 0) {
            unsigned char byte = 0;
            const CUresult result = cuMemcpyDtoH_v2(&byte, reg[a], 1);
            printf("%d %u\n", result, byte);
        } else if (strcmp(verb, "value") == 0) {
            printf("0 %llu\n", reg[a]);
        } else {
            CUresult result = plain_command(verb, a, b);
            if (result == CUDA_ERROR_UNKNOWN)
                result = graph_command(verb, a, b, c);
            if (result == CUDA_ERROR_UNKNOWN)
                result = share_command(verb, a, b, c, d);
            if (result == CUDA_ERROR_UNKNOWN)
                result = pool_command(verb, a, b, c);
            if (result == CUDA_ERROR_UNKNOWN)
                result = team_command(verb, a, b, c, d);
            printf("%d 0\n", result);
        }
        fflush(stdout);
    }
    return 0;
}

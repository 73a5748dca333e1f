/* place.c - which of the driver's devices are the slice's, in the slice's order, and where an allocation would go. */
#include "vgw_driver.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vgw_context.h"
#include "vgw_late.h"
#include "vgw_measure.h"
#include "vgw_overhead.h"
#include "vgw_pool.h"
#include "vgw_region.h"
#include "vgw_table.h"
#include "vgw_tiles.h"
#include "vgw_vmm.h"

struct vgw_driver vgw_driver;
int vgw_only_gpu = -1;

static pthread_mutex_t finding = PTHREAD_MUTEX_INITIALIZER;
static bool found;
static int device_count;
static CUdevice devices[VGW_MAX_GPUS];      /* in the order in which the program sees them */
static unsigned char gpus[VGW_DEVICES_MAX]; /* by CUdevice: GPU of the slice + 1, or 0 */

static void forked(void)
{
    pthread_mutex_init(&finding, NULL);
    found = false; /* the driver has to be asked anew, and says that it cannot be used here */
    vgw_only_gpu = -1;
    vgw_table_forked();
    vgw_pools_forked();
    vgw_multicast_forked();
    vgw_overhead_forked();
    vgw_late_forked();
    vgw_tiles_forked();
    vgw_measure_forked();
}

void vgw_real_more(void *library)
{
#define FIND(name) vgw_driver.name = (__typeof__(vgw_driver.name))vgw_real_symbol(library, #name)
    FIND(cuArray3DGetDescriptor_v2);
    FIND(cuArrayDestroy);
    FIND(cuCtxDestroy_v2);
    FIND(cuCtxFromGreenCtx);
    FIND(cuCtxGetCurrent);
    FIND(cuCtxGetDevice);
    FIND(cuCtxGetLimit);
    FIND(cuCtxPopCurrent_v2);
    FIND(cuCtxPushCurrent_v2);
    FIND(cuCtxSynchronize);
    FIND(cuDeviceGet);
    FIND(cuDeviceGetAttribute);
    FIND(cuDeviceGetCount);
    FIND(cuDeviceGetDefaultMemPool);
    FIND(cuDeviceGetGraphMemAttribute);
    FIND(cuDeviceGetMemPool);
    FIND(cuDeviceGetUuid);
    FIND(cuDeviceGetUuid_v2);
    FIND(cuDeviceGraphMemTrim);
    FIND(cuDevicePrimaryCtxGetState);
    FIND(cuDestroyExternalMemory);
    FIND(cuDevicePrimaryCtxRelease_v2);
    FIND(cuDevicePrimaryCtxRetain);
    FIND(cuEventCreate);
    FIND(cuEventDestroy_v2);
    FIND(cuEventElapsedTime);
    FIND(cuEventQuery);
    FIND(cuEventRecord);
    FIND(cuGraphChildGraphNodeGetGraph);
    FIND(cuGraphExecDestroy);
    FIND(cuGraphGetNodes);
    FIND(cuGraphMemAllocNodeGetParams);
    FIND(cuGraphNodeGetType);
    FIND(cuGreenCtxDestroy);
    FIND(cuIpcCloseMemHandle);
    FIND(cuLibraryUnload);
    FIND(cuMemFreeAsync);
    FIND(cuMemFree_v2);
    FIND(cuMemGetAddressRange_v2);
    FIND(cuMemGetAllocationPropertiesFromHandle);
    FIND(cuMemPoolDestroy);
    FIND(cuMemPoolGetAttribute);
    FIND(cuMemPoolTrimTo);
    FIND(cuMemRelease);
    FIND(cuMemUnmap);
    FIND(cuMipmappedArrayDestroy);
    FIND(cuMipmappedArrayGetLevel);
    FIND(cuModuleUnload);
    FIND(cuPointerGetAttribute);
    FIND(cuStreamGetCtx);
    FIND(cuStreamIsCapturing);
    FIND(cuStreamQuery);
    FIND(cuStreamSynchronize);
    FIND(cuThreadExchangeStreamCaptureMode);
#undef FIND
    __register_atfork(NULL, NULL, forked, NULL);
}

/* GPU of the slice that this device is, or -1. The quota file names it "GPU-" or, a part of one, "MIG-". */
static int slice_gpu(CUdevice device)
{
    CUresult (*get)(CUuuid *, CUdevice) = vgw_driver.cuDeviceGetUuid_v2; /* tells MIG parts of one GPU apart */
    CUuuid uuid;
    if (get == NULL)
        get = vgw_driver.cuDeviceGetUuid;
    if (get == NULL || get(&uuid, device) != CUDA_SUCCESS)
        return -1;
    char text[48] = "GPU-";
    size_t length = 4;
    for (unsigned at = 0; at < 16; at++) {
        const char *dash = at == 4 || at == 6 || at == 8 || at == 10 ? "-" : "";
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%02x", dash, (unsigned char)uuid.bytes[at]);
    }
    const int gpu = vgw_gpu_by_uuid(text);
    memcpy(text, "MIG", 3);
    return gpu >= 0 ? gpu : vgw_gpu_by_uuid(text);
}

static CUresult find_devices(void)
{
    int seen = 0, of_gpu[VGW_MAX_GPUS], in_driver_order[VGW_MAX_GPUS];
    CUresult result = vgw_driver.cuDeviceGetCount(&seen);
    memset(of_gpu, -1, sizeof of_gpu);
    device_count = 0;
    for (int ordinal = 0; ordinal < seen && result == CUDA_SUCCESS; ordinal++) {
        CUdevice device;
        result = vgw_driver.cuDeviceGet(&device, ordinal);
        const int gpu = result == CUDA_SUCCESS ? slice_gpu(device) : -1;
        if (gpu < 0 || device < 0 || device >= VGW_DEVICES_MAX || of_gpu[gpu] >= 0)
            continue;
        of_gpu[gpu] = device;
        in_driver_order[device_count++] = device;
        gpus[device] = (unsigned char)(gpu + 1);
    }
    int count = 0;
    const bool chosen = getenv("CUDA_VISIBLE_DEVICES") != NULL; /* the program's own order; the driver has applied it */
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS && !chosen; gpu++)
        if (of_gpu[gpu] >= 0)
            in_driver_order[count++] = of_gpu[gpu];
    memcpy(devices, in_driver_order, sizeof devices[0] * (size_t)device_count);
    if (result == CUDA_SUCCESS && seen == 1 && device_count == 1)
        __atomic_store_n(&vgw_only_gpu, gpus[devices[0]] - 1, __ATOMIC_RELEASE);
    return result;
}

CUresult vgw_devices_ready(void)
{
    if (__builtin_expect(__atomic_load_n(&found, __ATOMIC_ACQUIRE), true))
        return CUDA_SUCCESS;
    if (!vgw_region_ready())
        return CUDA_ERROR_SYSTEM_NOT_READY; /* closed: no quota is known */
    pthread_mutex_lock(&finding);
    const CUresult result = found ? CUDA_SUCCESS : find_devices();
    if (result == CUDA_SUCCESS && !found) {
        vgw_region_arm();
        __atomic_store_n(&found, true, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&finding);
    return result;
}

int vgw_device_count(void)
{
    return device_count;
}

CUdevice vgw_device_at(int ordinal)
{
    return devices[ordinal];
}

CUdevice vgw_device_of(unsigned gpu)
{
    int ordinal = 0;
    while (ordinal < device_count && gpus[devices[ordinal]] != gpu + 1)
        ordinal++;
    return ordinal < device_count ? devices[ordinal] : -1;
}

CUresult vgw_device_gpu(CUdevice device, unsigned *gpu)
{
    const CUresult result = vgw_devices_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (device < 0 || device >= VGW_DEVICES_MAX || gpus[device] == 0)
        return CUDA_ERROR_INVALID_DEVICE;
    *gpu = gpus[device] - 1u;
    return CUDA_SUCCESS;
}

CUresult vgw_gpu_here(unsigned *gpu)
{
    CUdevice device;
    const CUresult result = vgw_driver.cuCtxGetDevice(&device); /* fails as an allocation would: no init, no context */
    return result != CUDA_SUCCESS ? result : vgw_device_gpu(device, gpu);
}

CUresult vgw_place_here(struct vgw_place *place)
{
    vgw_late_look();
    const CUresult result = vgw_gpu_here(&place->gpu);
    if (result != CUDA_SUCCESS || vgw_driver.cuCtxGetCurrent(&place->context) != CUDA_SUCCESS)
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_CONTEXT;
    if (__builtin_expect(__atomic_load_n(&vgw_green_any, __ATOMIC_RELAXED), false))
        place->context = vgw_green_primary(place->context);
    return CUDA_SUCCESS;
}

CUresult vgw_stream_enter(CUstream stream, bool *pushed)
{
    const bool of_thread = stream == NULL || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD;
    CUcontext context = NULL, current = NULL;
    *pushed = false;
    if (of_thread || vgw_driver.cuStreamGetCtx == NULL)
        return CUDA_SUCCESS;
    CUresult result = vgw_driver.cuStreamGetCtx(stream, &context);
    if (result == CUDA_SUCCESS)
        result = vgw_driver.cuCtxGetCurrent(&current);
    if (result == CUDA_SUCCESS && context != current) {
        result = vgw_driver.cuCtxPushCurrent_v2(context);
        *pushed = result == CUDA_SUCCESS;
    }
    return result;
}

void vgw_stream_leave(bool pushed)
{
    CUcontext popped;
    if (pushed)
        vgw_driver.cuCtxPopCurrent_v2(&popped);
}

CUresult vgw_place_of_stream(CUstream stream, struct vgw_place *place)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult result = CUDA_SUCCESS;
    bool pushed;
    if (vgw_driver.cuStreamIsCapturing != NULL)
        result = vgw_driver.cuStreamIsCapturing(stream, &status);
    if (result != CUDA_SUCCESS)
        return result;
    if (status == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
        *place = (struct vgw_place){.gpu = VGW_NO_GPU};
        return CUDA_SUCCESS;
    }
    result = vgw_stream_enter(stream, &pushed);
    if (result != CUDA_SUCCESS)
        return result;
    result = vgw_place_here(place); /* its device is known only while its context is current */
    vgw_stream_leave(pushed);
    return result;
}

CUresult vgw_refuse(void)
{
    int count;
    vgw_real(0);
    const CUresult result = vgw_driver.cuDeviceGetCount == NULL ? CUDA_SUCCESS : vgw_driver.cuDeviceGetCount(&count);
    if (result != CUDA_SUCCESS)
        return result;
    unsigned gpu;
    if (vgw_gpu_here(&gpu) == CUDA_SUCCESS)
        vgw_denied(gpu, VGW_DENIED_REFUSED, 0); /* how much it would have been, nobody knows */
    return CUDA_ERROR_NOT_SUPPORTED;
}

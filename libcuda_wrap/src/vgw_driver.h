/* vgw_driver.h - the driver's functions that the wrapper calls for itself, and where memory belongs. */
#ifndef VGW_DRIVER_H
#define VGW_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vgw_cuda.h"
#include "vgw_real.h"

struct vgw_driver { /* NULL where this driver does not have it */
    CUresult (*cuArray3DGetDescriptor_v2)(CUDA_ARRAY3D_DESCRIPTOR *, CUarray);
    CUresult (*cuArrayDestroy)(CUarray);
    CUresult (*cuCtxDestroy_v2)(CUcontext);
    CUresult (*cuCtxFromGreenCtx)(CUcontext *, CUgreenCtx);
    CUresult (*cuCtxGetCurrent)(CUcontext *);
    CUresult (*cuCtxGetDevice)(CUdevice *);
    CUresult (*cuCtxGetLimit)(size_t *, CUlimit);
    CUresult (*cuCtxPopCurrent_v2)(CUcontext *);
    CUresult (*cuCtxPushCurrent_v2)(CUcontext);
    CUresult (*cuCtxSynchronize)(void);
    CUresult (*cuDeviceGet)(CUdevice *, int);
    CUresult (*cuDeviceGetAttribute)(int *, CUdevice_attribute, CUdevice);
    CUresult (*cuDeviceGetCount)(int *);
    CUresult (*cuDeviceGetDefaultMemPool)(CUmemoryPool *, CUdevice);
    CUresult (*cuDeviceGetGraphMemAttribute)(CUdevice, CUgraphMem_attribute, void *);
    CUresult (*cuDeviceGetMemPool)(CUmemoryPool *, CUdevice);
    CUresult (*cuDeviceGetUuid)(CUuuid *, CUdevice);
    CUresult (*cuDeviceGetUuid_v2)(CUuuid *, CUdevice);
    CUresult (*cuDeviceGraphMemTrim)(CUdevice);
    CUresult (*cuDevicePrimaryCtxGetState)(CUdevice, unsigned int *, int *);
    CUresult (*cuDestroyExternalMemory)(CUexternalMemory);
    CUresult (*cuEventCreate)(CUevent *, unsigned int);
    CUresult (*cuEventDestroy_v2)(CUevent);
    CUresult (*cuEventElapsedTime)(float *, CUevent, CUevent);
    CUresult (*cuEventQuery)(CUevent);
    CUresult (*cuEventRecord)(CUevent, CUstream);
    CUresult (*cuGraphChildGraphNodeGetGraph)(CUgraphNode, CUgraph *);
    CUresult (*cuGraphExecDestroy)(CUgraphExec);
    CUresult (*cuGraphGetNodes)(CUgraph, CUgraphNode *, size_t *);
    CUresult (*cuGraphMemAllocNodeGetParams)(CUgraphNode, CUDA_MEM_ALLOC_NODE_PARAMS *);
    CUresult (*cuGraphNodeGetType)(CUgraphNode, CUgraphNodeType *);
    CUresult (*cuGreenCtxDestroy)(CUgreenCtx);
    CUresult (*cuIpcCloseMemHandle)(CUdeviceptr);
    CUresult (*cuDevicePrimaryCtxRelease_v2)(CUdevice);
    CUresult (*cuDevicePrimaryCtxRetain)(CUcontext *, CUdevice);
    CUresult (*cuLibraryUnload)(CUlibrary);
    CUresult (*cuMemFreeAsync)(CUdeviceptr, CUstream);
    CUresult (*cuMemFree_v2)(CUdeviceptr);
    CUresult (*cuMemGetAddressRange_v2)(CUdeviceptr *, size_t *, CUdeviceptr);
    CUresult (*cuMemGetAllocationPropertiesFromHandle)(CUmemAllocationProp *, CUmemGenericAllocationHandle);
    CUresult (*cuMemPoolDestroy)(CUmemoryPool);
    CUresult (*cuMemPoolGetAttribute)(CUmemoryPool, CUmemPool_attribute, void *);
    CUresult (*cuMemPoolTrimTo)(CUmemoryPool, size_t);
    CUresult (*cuMemRelease)(CUmemGenericAllocationHandle);
    CUresult (*cuMemUnmap)(CUdeviceptr, size_t);
    CUresult (*cuMipmappedArrayDestroy)(CUmipmappedArray);
    CUresult (*cuMipmappedArrayGetLevel)(CUarray *, CUmipmappedArray, unsigned int);
    CUresult (*cuModuleUnload)(CUmodule);
    CUresult (*cuPointerGetAttribute)(void *, CUpointer_attribute, CUdeviceptr);
    CUresult (*cuStreamGetCtx)(CUstream, CUcontext *);
    CUresult (*cuStreamIsCapturing)(CUstream, CUstreamCaptureStatus *);
    CUresult (*cuStreamQuery)(CUstream);
    CUresult (*cuStreamSynchronize)(CUstream);
    CUresult (*cuThreadExchangeStreamCaptureMode)(CUstreamCaptureMode *);
};

extern struct vgw_driver vgw_driver; /* filled before any handler runs */

#define VGW_DEVICES_MAX 256 /* of CUdevice values: the driver numbers devices from 0 */

struct vgw_place {
    CUcontext context;
    unsigned gpu; /* of the slice */
};

/* Finds out which of the driver's devices are the slice's; CUDA_SUCCESS from then on. */
CUresult vgw_devices_ready(void);
int vgw_device_count(void);
CUdevice vgw_device_at(int ordinal);
CUdevice vgw_device_of(unsigned gpu); /* of the slice */

/* Whether the device is of the slice: CUDA_SUCCESS and its GPU, or the error to answer. */
CUresult vgw_device_gpu(CUdevice device, unsigned *gpu);

/* Where an allocation of this thread would go: the current context, or a stream's. gpu is VGW_NO_GPU for a stream that
 * is being captured: the allocation becomes a node of a graph, and takes nothing yet. */
CUresult vgw_gpu_here(unsigned *gpu);

extern int
    vgw_only_gpu; /* GPU of the slice of the only device that this process sees; -1: there are more, or not yet known */

/* As vgw_gpu_here, where the driver has just said that there is a context: a call less where there is one device. */
static inline CUresult vgw_gpu_of_context(unsigned *gpu)
{
    const int only = __atomic_load_n(&vgw_only_gpu, __ATOMIC_ACQUIRE);
    if (__builtin_expect(only < 0, false))
        return vgw_gpu_here(gpu);
    *gpu = (unsigned)only;
    return CUDA_SUCCESS;
}
CUresult vgw_place_here(struct vgw_place *place);
CUresult vgw_place_of_stream(CUstream stream, struct vgw_place *place);

/* Makes a stream's context current where it is another than that is: then `pushed`, for vgw_stream_leave. */
CUresult vgw_stream_enter(CUstream stream, bool *pushed);
void vgw_stream_leave(bool pushed);

/* CUDA_ERROR_NOT_SUPPORTED, or what the driver answers before cuInit. */
CUresult vgw_refuse(void);

#endif

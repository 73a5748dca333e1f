/* external.c - memory of Vulkan, Direct3D and the like: charged to the process that imports it, with the size it names,
 * until it destroys it: that the end of a context would do the same, the driver does not promise.
 */
#include "vgw_charge.h"

#include "cuda_handlers.h"

CUresult vgw_external_import(vgw_fn_external_import *real, CUexternalMemory *extMem_out,
                             const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *memHandleDesc)
{
    unsigned gpu;
    if (extMem_out == NULL || memHandleDesc == NULL)
        return real(extMem_out, memHandleDesc);
    const uint64_t bytes = memHandleDesc->size;
    CUresult result = vgw_gpu_here(&gpu);
    if (result != CUDA_SUCCESS)
        return result;
    if (!vgw_charge(gpu, bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = real(extMem_out, memHandleDesc);
    if (result == CUDA_SUCCESS && vgw_keep(VGW_EXTERNAL, vgw_key(*extMem_out), bytes, 0, gpu))
        return CUDA_SUCCESS;
    if (result == CUDA_SUCCESS) {
        vgw_driver.cuDestroyExternalMemory(*extMem_out);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else if (result == CUDA_ERROR_OUT_OF_MEMORY) {
        vgw_denied(gpu, VGW_DENIED_DRIVER, bytes);
    }
    vgw_refund(gpu, bytes);
    return result;
}

CUresult vgw_external_destroy(vgw_fn_external_destroy *real, CUexternalMemory extMem)
{
    const struct vgw_freeing freeing = vgw_forget(VGW_EXTERNAL, vgw_key(extMem));
    return vgw_freed(&freeing, real(extMem));
}

/* answer.c - questions that the slice answers, and requests that are checked against it. */
#include "vgw_driver.h"

#include <limits.h>

#include "cuda_handlers.h"
#include "vgw_late.h"
#include "vgw_region.h"

static size_t limit_of(unsigned gpu)
{
    return __atomic_load_n(&vgw_quota->gpus[gpu].memory_bytes, __ATOMIC_RELAXED);
}

static size_t smaller(size_t one, size_t other)
{
    return one < other ? one : other;
}

/* For functions from before CUDA 3.2, which cannot say more. */
static unsigned int as_uint(size_t value)
{
    return (unsigned int)smaller(value, UINT_MAX);
}

CUresult vgw_init(vgw_fn_init *real, unsigned int Flags)
{
    if (!vgw_region_ready())
        return CUDA_ERROR_SYSTEM_NOT_READY; /* closed: no quota is known, so nothing may be allocated */
    CUresult result = real(Flags);
    if (result == CUDA_SUCCESS)
        result = vgw_devices_ready();
    return result == CUDA_SUCCESS && vgw_device_count() == 0 ? CUDA_ERROR_NO_DEVICE : result;
}

CUresult vgw_device_get_count(vgw_fn_device_get_count *real, int *count)
{
    CUresult result = real(count);
    if (result == CUDA_SUCCESS)
        result = vgw_devices_ready();
    if (result == CUDA_SUCCESS)
        *count = vgw_device_count();
    return result;
}

CUresult vgw_device_get(vgw_fn_device_get *real, CUdevice *device, int ordinal)
{
    CUresult result = real(device, 0); /* for what has nothing to do with the ordinal */
    if (result == CUDA_SUCCESS)
        result = vgw_devices_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (ordinal < 0 || ordinal >= vgw_device_count())
        return CUDA_ERROR_INVALID_DEVICE;
    *device = vgw_device_at(ordinal);
    return CUDA_SUCCESS;
}

CUresult vgw_device_get_by_pci(vgw_fn_device_get_by_pci *real, CUdevice *dev, const char *pciBusId)
{
    unsigned gpu;
    const CUresult result = real(dev, pciBusId);
    return result != CUDA_SUCCESS ? result : vgw_device_gpu(*dev, &gpu);
}

CUresult vgw_device_total_mem(vgw_fn_device_total_mem *real, size_t *bytes, CUdevice dev)
{
    unsigned gpu;
    CUresult result = real(bytes, dev);
    if (result == CUDA_SUCCESS)
        result = vgw_device_gpu(dev, &gpu);
    if (result == CUDA_SUCCESS)
        *bytes = smaller(*bytes, limit_of(gpu));
    return result;
}

CUresult vgw_device_total_mem_v1(vgw_fn_device_total_mem_v1 *real, unsigned int *bytes, CUdevice dev)
{
    unsigned gpu;
    CUresult result = real(bytes, dev);
    if (result == CUDA_SUCCESS)
        result = vgw_device_gpu(dev, &gpu);
    if (result == CUDA_SUCCESS)
        *bytes = as_uint(smaller(*bytes, limit_of(gpu)));
    return result;
}

/* What is left of the slice, but not more than the GPU has: memory may be given out twice over. */
static CUresult slice_info(size_t *free, size_t *total)
{
    unsigned gpu;
    const CUresult result = vgw_gpu_of_context(&gpu);
    if (result != CUDA_SUCCESS)
        return result;
    vgw_late_look();
    const size_t limit = limit_of(gpu), used = vgw_used_now(gpu);
    if (free != NULL)
        *free = smaller(*free, limit > used ? limit - used : 0);
    if (total != NULL)
        *total = smaller(*total, limit);
    return CUDA_SUCCESS;
}

CUresult vgw_mem_get_info(vgw_fn_mem_get_info *real, size_t *free, size_t *total)
{
    const CUresult result = real(free, total);
    return result != CUDA_SUCCESS ? result : slice_info(free, total);
}

CUresult vgw_mem_get_info_v1(vgw_fn_mem_get_info_v1 *real, unsigned int *free, unsigned int *total)
{
    CUresult result = real(free, total);
    if (result != CUDA_SUCCESS)
        return result;
    size_t wide_free = free == NULL ? 0 : *free, wide_total = total == NULL ? 0 : *total;
    result = slice_info(&wide_free, &wide_total);
    if (free != NULL)
        *free = as_uint(wide_free);
    if (total != NULL)
        *total = as_uint(wide_total);
    return result;
}

/* The driver chooses the function for name, version and flags; ours takes its place if we have one for that address. */
CUresult vgw_get_proc_address(vgw_fn_get_proc_address *real, const char *symbol, void **pfn, int cudaVersion,
                              cuuint64_t flags, CUdriverProcAddressQueryResult *symbolStatus)
{
    const CUresult result = real(symbol, pfn, cudaVersion, flags, symbolStatus);
    if (result == CUDA_SUCCESS && pfn != NULL && *pfn != NULL)
        *pfn = vgw_real_swap(*pfn);
    return result;
}

CUresult vgw_get_proc_address_v1(vgw_fn_get_proc_address_v1 *real, const char *symbol, void **pfn, int cudaVersion,
                                 cuuint64_t flags)
{
    const CUresult result = real(symbol, pfn, cudaVersion, flags);
    if (result == CUDA_SUCCESS && pfn != NULL && *pfn != NULL)
        *pfn = vgw_real_swap(*pfn);
    return result;
}

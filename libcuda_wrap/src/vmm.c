/* vmm.c - physical memory by handle: cuMemCreate, and everything that keeps it.
 *
 * The memory goes with the last of its handle's references and its mappings, and the driver may give a released handle
 * out again while the memory is still mapped. So handle and mappings both point to an object of ours, which counts them
 * and has the bytes.
 */
#include "vgw_charge.h"
#include "vgw_object.h"

#include "cuda_handlers.h"

static uint64_t last_object;

void vgw_object_let_go(uint64_t object)
{
    struct vgw_entry entry;
    if (vgw_table_count(VGW_OBJECT, object, -1, &entry) && entry.count == 0)
        vgw_refund(entry.gpu, entry.bytes);
}

void vgw_object_hold(uint64_t object)
{
    struct vgw_entry entry;
    vgw_table_count(VGW_OBJECT, object, 1, &entry);
}

uint64_t vgw_object_of(uint64_t handle)
{
    struct vgw_entry entry, object;
    return vgw_table_get(VGW_HANDLE, handle, &entry) && vgw_table_count(VGW_OBJECT, entry.link, 1, &object) ? entry.link
                                                                                                            : 0;
}

CUresult vgw_mem_create(vgw_fn_mem_create *real, CUmemGenericAllocationHandle *handle, size_t size,
                        const CUmemAllocationProp *prop, unsigned long long flags)
{
    unsigned gpu;
    if (handle == NULL || prop == NULL)
        return real(handle, size, prop, flags);
    const unsigned type = prop->location.type;
    if (type == CU_MEM_LOCATION_TYPE_HOST || type == CU_MEM_LOCATION_TYPE_HOST_NUMA ||
        type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT)
        return real(handle, size, prop, flags);
    CUresult result = vgw_devices_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_INVALID_VALUE; /* closed: a place that we do not know cannot be charged */
    result = vgw_device_gpu(prop->location.id, &gpu);
    if (result != CUDA_SUCCESS)
        return result;
    if (!vgw_charge(gpu, size))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = real(handle, size, prop, flags);
    const uint64_t object = __atomic_add_fetch(&last_object, 1, __ATOMIC_RELAXED);
    if (result != CUDA_SUCCESS) {
        vgw_refund(gpu, size);
    } else if (!vgw_keep(VGW_OBJECT, object, size, 0, gpu)) {
        vgw_driver.cuMemRelease(*handle);
        vgw_refund(gpu, size);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else if (!vgw_keep(VGW_HANDLE, *handle, 0, object, gpu)) {
        vgw_driver.cuMemRelease(*handle);
        vgw_object_let_go(object);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    return result;
}

/* One reference less to a handle, of ours or imported. */
static CUresult release(vgw_fn_mem_release *real, CUmemGenericAllocationHandle handle, enum vgw_kind kind)
{
    struct vgw_entry entry, old;
    const bool known =
        vgw_table_count(kind, handle, -1, &entry); /* before the call: the handle may come back at once */
    const CUresult result = real(handle);
    if (known && result == CUDA_SUCCESS && kind == VGW_HANDLE) {
        vgw_object_let_go(entry.link);
    } else if (known && result != CUDA_SUCCESS && !vgw_table_count(kind, handle, 1, &old)) {
        entry.count = 1;
        vgw_table_put(&entry, &old);
    }
    return result;
}

CUresult vgw_mem_release(vgw_fn_mem_release *real, CUmemGenericAllocationHandle handle)
{
    struct vgw_entry entry;
    return release(real, handle, vgw_table_get(VGW_IMPORT, handle, &entry) ? VGW_IMPORT : VGW_HANDLE);
}

/* The object has one reference more for this mapping. */
static CUresult map(vgw_fn_mem_map *real, CUdeviceptr ptr, size_t size, size_t offset,
                    CUmemGenericAllocationHandle handle, unsigned long long flags, const struct vgw_entry *object)
{
    CUresult result = real(ptr, size, offset, handle, flags);
    if (result == CUDA_SUCCESS) {
        const struct vgw_entry mapping = {
            .key = ptr, .bytes = size, .link = object->key, .count = 1, .kind = VGW_MAPPING, .gpu = object->gpu};
        struct vgw_entry old;
        if (vgw_table_put(&mapping, &old))
            return CUDA_SUCCESS;
        vgw_driver.cuMemUnmap(ptr, size);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    vgw_object_let_go(object->key);
    return result;
}

CUresult vgw_mem_map(vgw_fn_mem_map *real, CUdeviceptr ptr, size_t size, size_t offset,
                     CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    struct vgw_entry entry, object;
    if (vgw_table_get(VGW_HANDLE, handle, &entry) && vgw_table_count(VGW_OBJECT, entry.link, 1, &object))
        return map(real, ptr, size, offset, handle, flags, &object);
    if (!vgw_table_get(VGW_IMPORT, handle, &entry))
        return real(ptr, size, offset, handle, flags); /* host memory, or no handle at all */
    if (!vgw_charge(entry.gpu, size))
        return CUDA_ERROR_OUT_OF_MEMORY;
    object = (struct vgw_entry){.key = __atomic_add_fetch(&last_object, 1, __ATOMIC_RELAXED), .gpu = entry.gpu};
    if (vgw_keep(VGW_OBJECT, object.key, size, 0, entry.gpu)) /* an object of its own for each mapping */
        return map(real, ptr, size, offset, handle, flags, &object);
    vgw_refund(entry.gpu, size);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult vgw_mem_export(vgw_fn_mem_export *real, void *shareableHandle, CUmemGenericAllocationHandle handle,
                        CUmemAllocationHandleType handleType, unsigned long long flags)
{
    const uint64_t object = vgw_object_of(handle);
    const CUresult result = real(shareableHandle, handle, handleType, flags);
    if (object != 0 && result != CUDA_SUCCESS)
        vgw_object_let_go(object); /* else the reference stays: nobody can tell when the last descriptor is closed */
    return result;
}

CUresult vgw_mem_import(vgw_fn_mem_import *real, CUmemGenericAllocationHandle *handle, void *osHandle,
                        CUmemAllocationHandleType shHandleType)
{
    CUmemAllocationProp prop;
    struct vgw_entry entry;
    unsigned gpu;
    if (vgw_driver.cuMemGetAllocationPropertiesFromHandle == NULL)
        return vgw_refuse();
    CUresult result = vgw_devices_ready();
    if (result == CUDA_SUCCESS)
        result = real(handle, osHandle, shHandleType);
    if (result != CUDA_SUCCESS || vgw_table_count(VGW_IMPORT, *handle, 1, &entry))
        return result;
    if (vgw_table_count(VGW_HANDLE, *handle, 1, &entry)) { /* our own export, come back as the same handle */
        vgw_table_count(VGW_OBJECT, entry.link, 1, &entry);
        return CUDA_SUCCESS;
    }
    result = vgw_driver.cuMemGetAllocationPropertiesFromHandle(&prop, *handle);
    if (result == CUDA_SUCCESS && prop.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_SUCCESS; /* host memory */
    if (result == CUDA_SUCCESS)
        result = vgw_device_gpu(prop.location.id, &gpu);
    if (result == CUDA_SUCCESS && !vgw_keep(VGW_IMPORT, *handle, 0, 0, gpu))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result != CUDA_SUCCESS)
        vgw_driver.cuMemRelease(*handle);
    return result;
}

/* One call may end several mappings that lie side by side. */
CUresult vgw_mem_unmap(vgw_fn_mem_unmap *real, CUdeviceptr ptr, size_t size)
{
    const CUresult result = real(ptr, size);
    struct vgw_entry mapping;
    for (CUdeviceptr at = ptr; result == CUDA_SUCCESS && at - ptr < size; at += mapping.bytes) {
        if (!vgw_table_take(VGW_MAPPING, at, &mapping))
            break;
        vgw_object_let_go(mapping.link);
    }
    return result;
}

/* One more reference to the handle that is mapped at an address; it may be another handle than the first. */
CUresult vgw_mem_retain(vgw_fn_mem_retain *real, CUmemGenericAllocationHandle *handle, void *addr)
{
    CUresult result = real(handle, addr);
    if (result != CUDA_SUCCESS)
        return result;
    struct vgw_entry mapping, entry;
    CUdeviceptr start = vgw_key(addr);
    size_t size;
    if (!vgw_table_get(VGW_MAPPING, start, &mapping)) {
        if (vgw_driver.cuMemGetAddressRange_v2 == NULL ||
            vgw_driver.cuMemGetAddressRange_v2(&start, &size, vgw_key(addr)) != CUDA_SUCCESS ||
            !vgw_table_get(VGW_MAPPING, start, &mapping))
            return CUDA_SUCCESS; /* host memory: none of ours */
    }
    if (!vgw_table_count(VGW_OBJECT, mapping.link, 1, &entry))
        return CUDA_SUCCESS;
    if (!vgw_table_count(VGW_HANDLE, *handle, 1, &entry) &&
        !vgw_keep(VGW_HANDLE, *handle, 0, mapping.link, mapping.gpu)) {
        vgw_driver.cuMemRelease(*handle);
        vgw_object_let_go(mapping.link);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    return result;
}

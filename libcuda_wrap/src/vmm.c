/* vmm.c - physical memory by handle: cuMemCreate, and everything that keeps it.
 *
 * The memory goes with the last of its handle's references and its mappings, and the driver may give a released handle
 * out again while the memory is still mapped. So handle and mappings both point to an object of ours, which counts them
 * and has the bytes.
 */
#include "vgw_vmm.h"

#include <stdlib.h>

#include "cuda_handlers.h"
#include "vgw_charge.h"

void vgw_object_let_go(uint64_t object)
{
    struct vgw_entry entry = {.link = object};
    while (entry.link != 0 && vgw_table_count(VGW_OBJECT, entry.link, -1, &entry) && entry.count == 0)
        if (entry.gpu == VGW_NO_GPU)
            vgw_multicast_gone(entry.key);
        else
            vgw_refund(entry.gpu, entry.bytes);
}

uint64_t vgw_object_new(uint64_t bytes, uint64_t next, unsigned gpu)
{
    static uint64_t last;
    const uint64_t object = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    return vgw_keep(VGW_OBJECT, object, bytes, next, gpu) ? object : 0;
}

void vgw_object_hold(uint64_t object)
{
    struct vgw_entry entry;
    vgw_table_count(VGW_OBJECT, object, 1, &entry);
}

uint64_t vgw_object_of(uint64_t handle)
{
    struct vgw_entry entry, object;
    const bool ours = vgw_table_get(VGW_HANDLE, handle, &entry) && vgw_table_count(VGW_OBJECT, entry.link, 1, &object);
    return ours ? entry.link : 0;
}

static bool is_of_host(CUmemLocationType type)
{
    return type == CU_MEM_LOCATION_TYPE_HOST || type == CU_MEM_LOCATION_TYPE_HOST_NUMA ||
           type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
}

CUresult vgw_mem_create(vgw_fn_mem_create *real, CUmemGenericAllocationHandle *handle, size_t size,
                        const CUmemAllocationProp *prop, unsigned long long flags)
{
    unsigned gpu;
    if (handle == NULL || prop == NULL)
        return real(handle, size, prop, flags);
    const CUmemLocationType type = prop->location.type;
    if (is_of_host(type))
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
    const uint64_t object = vgw_object_new(size, 0, gpu);
    if (object == 0) {
        vgw_refund(gpu, size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    result = real(handle, size, prop, flags);
    if (result == CUDA_SUCCESS && !vgw_keep(VGW_HANDLE, *handle, 0, object, gpu)) {
        vgw_driver.cuMemRelease(*handle);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS)
        vgw_object_let_go(object);
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
    } else if (known && result == CUDA_SUCCESS && entry.count == 0) {
        vgw_multicast_gone(entry.link);
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

/* The object has one reference more for this mapping; object 0: of the host's memory. */
static CUresult map(vgw_fn_mem_map *real, CUdeviceptr ptr, size_t size, size_t offset,
                    CUmemGenericAllocationHandle handle, unsigned long long flags, uint64_t object, unsigned gpu)
{
    CUresult result = real(ptr, size, offset, handle, flags);
    if (result == CUDA_SUCCESS) {
        const struct vgw_entry mapping = {
            .key = ptr, .bytes = size, .link = object, .count = 1, .kind = VGW_MAPPING, .gpu = (uint8_t)gpu};
        struct vgw_entry old;
        if (vgw_table_put(&mapping, &old)) {
            if (old.kind != VGW_NOTHING)
                vgw_object_let_go(old.link); /* the driver maps there again: what was there is gone, unseen by us */
            return CUDA_SUCCESS;
        }
        vgw_driver.cuMemUnmap(ptr, size);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    vgw_object_let_go(object);
    return result;
}

CUresult vgw_mem_map(vgw_fn_mem_map *real, CUdeviceptr ptr, size_t size, size_t offset,
                     CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    struct vgw_entry entry, object;
    uint64_t imported = 0;
    if (vgw_table_get(VGW_HANDLE, handle, &entry) && vgw_table_count(VGW_OBJECT, entry.link, 1, &object))
        return map(real, ptr, size, offset, handle, flags, object.key, object.gpu);
    if (!vgw_table_get(VGW_IMPORT, handle, &entry)) /* host memory, or no handle at all */
        return map(real, ptr, size, offset, handle, flags, 0, VGW_NO_GPU);
    if (entry.gpu == VGW_NO_GPU) {
        imported = vgw_multicast_everywhere(size);
    } else if (vgw_charge(entry.gpu, size)) { /* an object of its own for each mapping */
        imported = vgw_object_new(size, 0, entry.gpu);
        if (imported == 0)
            vgw_refund(entry.gpu, size);
    }
    return imported == 0 ? CUDA_ERROR_OUT_OF_MEMORY : map(real, ptr, size, offset, handle, flags, imported, entry.gpu);
}

CUresult vgw_mem_export(vgw_fn_mem_export *real, void *shareableHandle, CUmemGenericAllocationHandle handle,
                        CUmemAllocationHandleType handleType, unsigned long long flags)
{
    struct vgw_entry entry, object;
    const bool ours = vgw_table_get(VGW_HANDLE, handle, &entry) && vgw_table_count(VGW_OBJECT, entry.link, 1, &object);
    const bool multicast = ours && object.gpu == VGW_NO_GPU;
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (!multicast || vgw_multicast_share(entry.link)) {
        result = real(shareableHandle, handle, handleType, flags);
        if (multicast && result != CUDA_SUCCESS)
            vgw_multicast_unshare(entry.link);
    }
    if (ours && (multicast || result != CUDA_SUCCESS))
        vgw_object_let_go(entry.link); /* else the reference stays: nobody knows when the last descriptor is closed */
    return result;
}

/* Where the memory of an imported handle is; VGW_NO_GPU: on no single GPU, as a multicast object. */
static CUresult gpu_of(CUmemGenericAllocationHandle handle, bool *of_host, unsigned *gpu)
{
    CUmemAllocationProp prop;
    *gpu = VGW_NO_GPU;
    const bool known = vgw_driver.cuMemGetAllocationPropertiesFromHandle(&prop, handle) == CUDA_SUCCESS;
    *of_host = known && is_of_host(prop.location.type);
    return known && prop.location.type == CU_MEM_LOCATION_TYPE_DEVICE ? vgw_device_gpu(prop.location.id, gpu)
                                                                      : CUDA_SUCCESS;
}

CUresult vgw_mem_import(vgw_fn_mem_import *real, CUmemGenericAllocationHandle *handle, void *osHandle,
                        CUmemAllocationHandleType shHandleType)
{
    struct vgw_entry entry;
    unsigned gpu;
    bool of_host;
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
    result = gpu_of(*handle, &of_host, &gpu);
    if (result == CUDA_SUCCESS && !of_host && !vgw_keep(VGW_IMPORT, *handle, 0, 0, gpu))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result != CUDA_SUCCESS)
        vgw_driver.cuMemRelease(*handle);
    return result;
}

/* How many mappings of ours the range is, side by side; 0: it is no such range. *cut: it ends within one. */
static size_t mappings_of(CUdeviceptr ptr, size_t size, bool *cut)
{
    struct vgw_entry mapping;
    size_t count = 0, left = size;
    *cut = false;
    while (left != 0 && vgw_table_get(VGW_MAPPING, ptr, &mapping) && !*cut) {
        *cut = mapping.bytes > left;
        ptr += mapping.bytes;
        left -= *cut ? left : mapping.bytes;
        count++;
    }
    return left == 0 ? count : 0;
}

/* The mappings are taken out before the call, since the program may map there again at once. */
static CUresult unmap(vgw_fn_mem_unmap *real, CUdeviceptr ptr, size_t size, struct vgw_entry *taken, size_t count)
{
    struct vgw_entry old;
    size_t got = 0;
    for (CUdeviceptr at = ptr; got < count && vgw_table_take(VGW_MAPPING, at, &taken[got]); got++)
        at += taken[got].bytes;
    const CUresult result = real(ptr, size);
    for (size_t number = 0; number < got; number++)
        if (result == CUDA_SUCCESS)
            vgw_object_let_go(taken[number].link);
        else
            vgw_table_put(&taken[number], &old); /* taking it out has left room */
    return result;
}

/* One call may end several mappings that lie side by side, never a part of one. */
CUresult vgw_mem_unmap(vgw_fn_mem_unmap *real, CUdeviceptr ptr, size_t size)
{
    struct vgw_entry one;
    bool cut;
    const size_t count = mappings_of(ptr, size, &cut);
    if (cut)
        return CUDA_ERROR_INVALID_VALUE; /* as the driver; closed, should one allow it */
    if (count <= 1)
        return unmap(real, ptr, size, &one, count);
    struct vgw_entry *taken = calloc(count, sizeof *taken);
    if (taken == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = unmap(real, ptr, size, taken, count);
    free(taken);
    return result;
}

/* The mapping of ours at an address, wherever in it that is. */
bool vgw_mapping_at(CUdeviceptr address, struct vgw_entry *mapping)
{
    CUdeviceptr start;
    size_t size;
    return vgw_table_get(VGW_MAPPING, address, mapping) ||
           (vgw_driver.cuMemGetAddressRange_v2 != NULL &&
            vgw_driver.cuMemGetAddressRange_v2(&start, &size, address) == CUDA_SUCCESS &&
            vgw_table_get(VGW_MAPPING, start, mapping) && address - start < mapping->bytes);
}

/* One more reference to the handle that is mapped at an address; it may be another handle than the first. */
CUresult vgw_mem_retain(vgw_fn_mem_retain *real, CUmemGenericAllocationHandle *handle, void *addr)
{
    CUresult result = real(handle, addr);
    if (result != CUDA_SUCCESS)
        return result;
    struct vgw_entry mapping, entry;
    if (!vgw_mapping_at(vgw_key(addr), &mapping))
        return CUDA_SUCCESS; /* none of ours */
    if (!vgw_table_count(VGW_OBJECT, mapping.link, 1, &entry))
        return CUDA_SUCCESS; /* host memory */
    if (!vgw_table_count(VGW_HANDLE, *handle, 1, &entry) &&
        !vgw_keep(VGW_HANDLE, *handle, 0, mapping.link, mapping.gpu)) {
        vgw_driver.cuMemRelease(*handle);
        vgw_object_let_go(mapping.link);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    return result;
}

/* vgs_vmm.c - virtual memory management: reserved addresses, physical memory, and mapping one to the other.
 * A physical allocation has a memfd, made at its first mapping, so that two mappings of it show the same bytes.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vgs_vmm.h"

static struct vgs_mapping *mappings;
pthread_mutex_t vgs_vmm_lock = PTHREAD_MUTEX_INITIALIZER;

/* Under vgs_vmm_lock. */
struct vgs_mapping *vgs_mapping_at(CUdeviceptr address)
{
    for (struct vgs_mapping *each = mappings; each; each = each->next)
        if (address >= each->begin && address - each->begin < each->size)
            return each;
    return NULL;
}

/* Under vgs_vmm_lock: is all of the range mapped? `access` < 0: asks only; else sets it. */
static bool walk(CUdeviceptr address, size_t size, bool readable, int access)
{
    CUdeviceptr end = address + size;
    while (address < end) {
        struct vgs_mapping *each = vgs_mapping_at(address);
        if (!each || (readable && !each->access))
            return false;
        if (access >= 0)
            each->access = access;
        address = each->begin + each->size;
    }
    return true;
}

bool vgs_mapped_range(CUdeviceptr address, CUdeviceptr *begin, size_t *size)
{
    pthread_mutex_lock(&vgs_vmm_lock);
    struct vgs_mapping *found = vgs_mapping_at(address);
    if (found) {
        *begin = found->begin;
        *size = found->size;
    }
    pthread_mutex_unlock(&vgs_vmm_lock);
    return found != NULL;
}

bool vgs_mapped(CUdeviceptr address, size_t size)
{
    pthread_mutex_lock(&vgs_vmm_lock);
    bool mapped = walk(address, size, true, -1);
    pthread_mutex_unlock(&vgs_vmm_lock);
    return mapped;
}

/* Under vgs_vmm_lock. */
void vgs_physical_drop(struct vgs_physical *physical)
{
    if (physical->handles || physical->mappings || physical->bindings)
        return;
    if (physical->team)
        vgs_team_end(physical);
    else if (!physical->imported)
        vgs_refund(vgs_gpus.index[physical->device], physical->size);
    if (physical->fd >= 0)
        close(physical->fd);
    vgs_delete(physical);
}

static bool is_same(void *object, void *handle)
{
    return object == handle;
}

/* The handle is a number of the program's: it is looked for, not looked at. */
struct vgs_physical *vgs_physical_of(CUmemGenericAllocationHandle handle)
{
    return vgs_each(VGS_PHYSICAL, NULL, is_same, (void *)(uintptr_t)handle);
}

VGS_API cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop, int option)
{
    VGS_ENTER();
    VGS_VALUE(granularity && prop && (option == 0 || option == 1));
    VGS_VALUE(prop->type == CU_MEM_ALLOCATION_TYPE_PINNED && prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE);
    VGS_CHECK(vgs_device_ok(prop->location.id), CUDA_ERROR_INVALID_DEVICE);
    *granularity = VGS_GRANULARITY;
    return CUDA_SUCCESS;
}

VGS_API cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr, unsigned long long flags)
{
    VGS_ENTER();
    (void)addr; /* only a wish */
    VGS_VALUE(ptr && size && size % VGS_GRANULARITY == 0 && flags == 0 && (alignment & (alignment - 1)) == 0);
    /* blocks of 64 MiB and more lie on chunks of 64 MiB; a larger alignment than that is not offered */
    VGS_CHECK(alignment <= 64u << 20, CUDA_ERROR_NOT_SUPPORTED);
    struct vgs_block block = {.size = size < 64u << 20 ? 64u << 20 : size, .kind = VGS_RESERVED};
    CUdeviceptr base = vgs_arena_take(&block), same;
    VGS_CHECK(base, CUDA_ERROR_OUT_OF_MEMORY);
    vgs_arena_find(base, &same)->size = size;
    *ptr = base;
    return CUDA_SUCCESS;
}

VGS_API cuMemAddressFree(CUdeviceptr ptr, size_t size)
{
    VGS_ENTER();
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(ptr, &base);
    VGS_VALUE(block && block->kind == VGS_RESERVED && base == ptr && block->size == size);
    pthread_mutex_lock(&vgs_vmm_lock);
    bool in_use = false;
    for (struct vgs_mapping *each = mappings; each; each = each->next)
        in_use = in_use || (each->begin >= ptr && each->begin < ptr + size);
    pthread_mutex_unlock(&vgs_vmm_lock);
    VGS_VALUE(!in_use);
    vgs_arena_give(base);
    return CUDA_SUCCESS;
}

VGS_API cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                    unsigned long long flags)
{
    VGS_ENTER();
    VGS_VALUE(handle && prop && flags == 0 && size && size % VGS_GRANULARITY == 0);
    VGS_VALUE(prop->type == CU_MEM_ALLOCATION_TYPE_PINNED);
    VGS_CHECK(prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
                  (prop->requestedHandleTypes | CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) ==
                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
              CUDA_ERROR_NOT_SUPPORTED);
    VGS_CHECK(vgs_device_ok(prop->location.id), CUDA_ERROR_INVALID_DEVICE);
    uint32_t gpu = vgs_gpus.index[prop->location.id];
    VGS_CHECK(vgs_charge(gpu, size) || (vgs_pools_trim() && vgs_charge(gpu, size)), CUDA_ERROR_OUT_OF_MEMORY);
    struct vgs_physical *physical = vgs_new(VGS_PHYSICAL, sizeof *physical, NULL);
    if (!physical) {
        vgs_refund(gpu, size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    physical->device = prop->location.id;
    physical->size = size;
    physical->handles = 1;
    physical->fd = -1;
    physical->prop = *prop;
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
    return CUDA_SUCCESS;
}

VGS_API cuMemRelease(CUmemGenericAllocationHandle handle)
{
    VGS_ENTER();
    struct vgs_physical *physical = vgs_physical_of(handle);
    VGS_VALUE(physical && physical->handles);
    pthread_mutex_lock(&vgs_vmm_lock);
    physical->handles--;
    vgs_physical_drop(physical);
    pthread_mutex_unlock(&vgs_vmm_lock);
    return CUDA_SUCCESS;
}

void *vgs_physical_hold(CUmemGenericAllocationHandle handle, CUdevice device, uint64_t end)
{
    struct vgs_physical *physical = vgs_physical_of(handle);
    if (!physical || !physical->handles || physical->device != device || end > physical->size ||
        !(physical->prop.allocFlags.usage & CU_MEM_CREATE_USAGE_TILE_POOL))
        return NULL;
    pthread_mutex_lock(&vgs_vmm_lock);
    physical->mappings++;
    pthread_mutex_unlock(&vgs_vmm_lock);
    return physical;
}

void vgs_physical_let_go(void *object)
{
    struct vgs_physical *physical = object;
    pthread_mutex_lock(&vgs_vmm_lock);
    physical->mappings--;
    vgs_physical_drop(physical);
    pthread_mutex_unlock(&vgs_vmm_lock);
}

VGS_API cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
    VGS_ENTER();
    struct vgs_physical *physical = vgs_physical_of(handle);
    VGS_VALUE(prop && physical);
    *prop = physical->prop;
    return CUDA_SUCCESS;
}

VGS_API cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr)
{
    VGS_ENTER();
    VGS_VALUE(handle);
    pthread_mutex_lock(&vgs_vmm_lock);
    struct vgs_mapping *found = vgs_mapping_at((CUdeviceptr)(uintptr_t)addr);
    if (found) {
        found->physical->handles++;
        *handle = (CUmemGenericAllocationHandle)(uintptr_t)found->physical;
    }
    pthread_mutex_unlock(&vgs_vmm_lock);
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Under vgs_vmm_lock. */
static bool has_file(struct vgs_physical *physical)
{
    if (physical->fd < 0)
        physical->fd = vgs_shared_file(vgs_gpus.index[physical->device], physical->size);
    return physical->fd >= 0;
}

VGS_API cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
                                     CUmemAllocationHandleType type, unsigned long long flags)
{
    VGS_ENTER();
    struct vgs_physical *physical = vgs_physical_of(handle);
    VGS_VALUE(shareable && physical && physical->handles && flags == 0);
    VGS_VALUE(type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && physical->prop.requestedHandleTypes == type);
    pthread_mutex_lock(&vgs_vmm_lock);
    int fd = has_file(physical) ? fcntl(physical->fd, F_DUPFD_CLOEXEC, 0) : -1;
    physical->shared = physical->shared || fd >= 0;
    pthread_mutex_unlock(&vgs_vmm_lock);
    VGS_CHECK(fd >= 0, CUDA_ERROR_OPERATING_SYSTEM);
    *(int *)shareable = fd;
    return CUDA_SUCCESS;
}

VGS_API cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *os_handle,
                                       CUmemAllocationHandleType type)
{
    VGS_ENTER();
    uint32_t gpu;
    uint64_t size;
    const int fd = (int)(intptr_t)os_handle;
    VGS_VALUE(handle && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    struct vgs_team *team = vgs_team_of_file(fd, &size);
    CUdevice device = 0;
    VGS_VALUE(team || vgs_is_shared_file(fd, &gpu, &size));
    while (!team && vgs_device_ok(device) && vgs_gpus.index[device] != gpu)
        device++;
    VGS_CHECK(vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    struct vgs_physical *physical = own < 0 ? NULL : vgs_new(VGS_PHYSICAL, sizeof *physical, NULL);
    if (!physical) {
        if (own >= 0)
            close(own);
        vgs_team_unmap(team);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    physical->device = device;
    physical->size = size;
    physical->handles = 1;
    physical->fd = own;
    physical->team = team;
    physical->imported = physical->shared = true;
    physical->prop = (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                           .requestedHandleTypes = type,
                                           .location = {CU_MEM_LOCATION_TYPE_DEVICE, device}};
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
    return CUDA_SUCCESS;
}

/* Under vgs_vmm_lock. */
static CUresult map(CUdeviceptr ptr, size_t size, struct vgs_physical *physical)
{
    for (struct vgs_mapping *each = mappings; each; each = each->next)
        VGS_VALUE(each->begin >= ptr + size || ptr >= each->begin + each->size);
    VGS_CHECK(has_file(physical), CUDA_ERROR_OPERATING_SYSTEM);
    struct vgs_mapping *mapping = malloc(sizeof *mapping);
    VGS_CHECK(mapping, CUDA_ERROR_OUT_OF_MEMORY);
    *mapping = (struct vgs_mapping){.next = mappings, .begin = ptr, .size = size, .physical = physical};
    void *at = (void *)(uintptr_t)ptr;
    const off_t from = physical->team ? VGS_TEAM_BYTES : 0;
    if (mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, physical->fd, from) ==
        MAP_FAILED) {
        free(mapping);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    mappings = mapping;
    physical->mappings++;
    return CUDA_SUCCESS;
}

VGS_API cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                 unsigned long long flags)
{
    VGS_ENTER();
    struct vgs_physical *physical = vgs_physical_of(handle);
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(ptr, &base);
    /* as the driver: the offset must be 0, and the allocation is mapped whole */
    VGS_VALUE(physical && physical->handles && offset == 0 && flags == 0 && size == physical->size &&
              ptr % VGS_GRANULARITY == 0);
    VGS_VALUE(block && block->kind == VGS_RESERVED && size <= block->size - (ptr - base));
    vgs_team_wait(physical->team);
    pthread_mutex_lock(&vgs_vmm_lock);
    CUresult result = map(ptr, size, physical);
    pthread_mutex_unlock(&vgs_vmm_lock);
    return result;
}

VGS_API cuMemUnmap(CUdeviceptr ptr, size_t size)
{
    VGS_ENTER();
    VGS_VALUE(size && ptr % VGS_GRANULARITY == 0 && size % VGS_GRANULARITY == 0);
    pthread_mutex_lock(&vgs_vmm_lock);
    struct vgs_mapping *first = vgs_mapping_at(ptr), *last = vgs_mapping_at(ptr + size - 1);
    bool whole =
        first && last && first->begin == ptr && last->begin + last->size == ptr + size && walk(ptr, size, false, -1);
    for (struct vgs_mapping **link = &mappings; whole && *link;) {
        struct vgs_mapping *each = *link;
        if (each->begin < ptr || each->begin >= ptr + size) {
            link = &each->next;
            continue;
        }
        *link = each->next;
        mmap((void *)(uintptr_t)each->begin, each->size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        each->physical->mappings--;
        vgs_physical_drop(each->physical);
        free(each);
    }
    pthread_mutex_unlock(&vgs_vmm_lock);
    return whole ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

VGS_API cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count)
{
    VGS_ENTER();
    VGS_VALUE(desc && count && size);
    for (size_t i = 0; i < count; i++)
        VGS_VALUE(desc[i].flags == 0 || desc[i].flags == 1 || desc[i].flags == 3);
    pthread_mutex_lock(&vgs_vmm_lock);
    bool mapped = walk(ptr, size, false, -1) && walk(ptr, size, false, desc[0].flags);
    pthread_mutex_unlock(&vgs_vmm_lock);
    return mapped ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

VGS_API cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr)
{
    VGS_ENTER();
    VGS_VALUE(flags && location);
    pthread_mutex_lock(&vgs_vmm_lock);
    struct vgs_mapping *found = vgs_mapping_at(ptr);
    if (found)
        *flags = (unsigned long long)found->access;
    pthread_mutex_unlock(&vgs_vmm_lock);
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

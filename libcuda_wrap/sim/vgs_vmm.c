/* vgs_vmm.c - virtual memory management: reserved addresses, physical memory, and mapping one to the other.
 * A physical allocation has a memfd, made at its first mapping, so that two mappings of it show the same bytes.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vgs_driver.h"

#define GRANULARITY (2ull << 20)

struct physical { /* what a CUmemGenericAllocationHandle points to */
    struct vgs_object head;
    CUdevice device;
    uint64_t size;
    uint32_t handles, mappings; /* the last of both gives the memory back */
    int fd;                     /* -1: neither mapped nor exported yet */
    bool imported;              /* counted in the process that made it */
    CUmemAllocationProp prop;
};

struct mapping {
    struct mapping *next;
    CUdeviceptr begin;
    size_t size;
    struct physical *physical;
    int access;
};

static struct mapping *mappings;
static pthread_mutex_t vmm_lock = PTHREAD_MUTEX_INITIALIZER;

/* Under vmm_lock. */
static struct mapping *find_mapping(CUdeviceptr address)
{
    for (struct mapping *each = mappings; each; each = each->next)
        if (address >= each->begin && address - each->begin < each->size)
            return each;
    return NULL;
}

/* Under vmm_lock: is all of the range mapped? `access` < 0: asks only; else sets it. */
static bool walk(CUdeviceptr address, size_t size, bool readable, int access)
{
    CUdeviceptr end = address + size;
    while (address < end) {
        struct mapping *each = find_mapping(address);
        if (!each || (readable && !each->access))
            return false;
        if (access >= 0)
            each->access = access;
        address = each->begin + each->size;
    }
    return true;
}

bool vgs_mapped(CUdeviceptr address, size_t size)
{
    pthread_mutex_lock(&vmm_lock);
    bool mapped = walk(address, size, true, -1);
    pthread_mutex_unlock(&vmm_lock);
    return mapped;
}

/* Under vmm_lock. */
static void drop(struct physical *physical)
{
    if (physical->handles || physical->mappings)
        return;
    if (!physical->imported)
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
static struct physical *physical_of(CUmemGenericAllocationHandle handle)
{
    return vgs_each(VGS_PHYSICAL, NULL, is_same, (void *)(uintptr_t)handle);
}

VGS_API cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop, int option)
{
    VGS_ENTER();
    VGS_VALUE(granularity && prop && (option == 0 || option == 1));
    VGS_VALUE(prop->type == CU_MEM_ALLOCATION_TYPE_PINNED && prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE);
    VGS_CHECK(vgs_device_ok(prop->location.id), CUDA_ERROR_INVALID_DEVICE);
    *granularity = GRANULARITY;
    return CUDA_SUCCESS;
}

VGS_API cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr, unsigned long long flags)
{
    VGS_ENTER();
    (void)addr; /* only a wish */
    VGS_VALUE(ptr && size && size % GRANULARITY == 0 && flags == 0 && (alignment & (alignment - 1)) == 0);
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
    pthread_mutex_lock(&vmm_lock);
    bool in_use = false;
    for (struct mapping *each = mappings; each; each = each->next)
        in_use = in_use || (each->begin >= ptr && each->begin < ptr + size);
    pthread_mutex_unlock(&vmm_lock);
    VGS_VALUE(!in_use);
    vgs_arena_give(base);
    return CUDA_SUCCESS;
}

VGS_API cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                    unsigned long long flags)
{
    VGS_ENTER();
    VGS_VALUE(handle && prop && flags == 0 && size && size % GRANULARITY == 0);
    VGS_VALUE(prop->type == CU_MEM_ALLOCATION_TYPE_PINNED);
    VGS_CHECK(prop->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
                  (prop->requestedHandleTypes | CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) ==
                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
              CUDA_ERROR_NOT_SUPPORTED);
    VGS_CHECK(vgs_device_ok(prop->location.id), CUDA_ERROR_INVALID_DEVICE);
    uint32_t gpu = vgs_gpus.index[prop->location.id];
    VGS_CHECK(vgs_charge(gpu, size) || (vgs_pools_trim() && vgs_charge(gpu, size)), CUDA_ERROR_OUT_OF_MEMORY);
    struct physical *physical = vgs_new(VGS_PHYSICAL, sizeof *physical, NULL);
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
    struct physical *physical = physical_of(handle);
    VGS_VALUE(physical && physical->handles);
    pthread_mutex_lock(&vmm_lock);
    physical->handles--;
    drop(physical);
    pthread_mutex_unlock(&vmm_lock);
    return CUDA_SUCCESS;
}

void *vgs_physical_hold(CUmemGenericAllocationHandle handle, CUdevice device, uint64_t end)
{
    struct physical *physical = physical_of(handle);
    if (!physical || !physical->handles || physical->device != device || end > physical->size ||
        !(physical->prop.allocFlags.usage & CU_MEM_CREATE_USAGE_TILE_POOL))
        return NULL;
    pthread_mutex_lock(&vmm_lock);
    physical->mappings++;
    pthread_mutex_unlock(&vmm_lock);
    return physical;
}

void vgs_physical_let_go(void *object)
{
    struct physical *physical = object;
    pthread_mutex_lock(&vmm_lock);
    physical->mappings--;
    drop(physical);
    pthread_mutex_unlock(&vmm_lock);
}

VGS_API cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
    VGS_ENTER();
    struct physical *physical = physical_of(handle);
    VGS_VALUE(prop && physical);
    *prop = physical->prop;
    return CUDA_SUCCESS;
}

VGS_API cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr)
{
    VGS_ENTER();
    VGS_VALUE(handle);
    pthread_mutex_lock(&vmm_lock);
    struct mapping *found = find_mapping((CUdeviceptr)(uintptr_t)addr);
    if (found) {
        found->physical->handles++;
        *handle = (CUmemGenericAllocationHandle)(uintptr_t)found->physical;
    }
    pthread_mutex_unlock(&vmm_lock);
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Under vmm_lock. */
static bool has_file(struct physical *physical)
{
    if (physical->fd < 0)
        physical->fd = vgs_shared_file(vgs_gpus.index[physical->device], physical->size);
    return physical->fd >= 0;
}

VGS_API cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
                                     CUmemAllocationHandleType type, unsigned long long flags)
{
    VGS_ENTER();
    struct physical *physical = physical_of(handle);
    VGS_VALUE(shareable && physical && physical->handles && flags == 0);
    VGS_VALUE(type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && physical->prop.requestedHandleTypes == type);
    pthread_mutex_lock(&vmm_lock);
    int fd = has_file(physical) ? fcntl(physical->fd, F_DUPFD_CLOEXEC, 0) : -1;
    pthread_mutex_unlock(&vmm_lock);
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
    VGS_VALUE(handle && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && vgs_is_shared_file(fd, &gpu, &size));
    CUdevice device = 0;
    while (vgs_device_ok(device) && vgs_gpus.index[device] != gpu)
        device++;
    VGS_CHECK(vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    struct physical *physical = own < 0 ? NULL : vgs_new(VGS_PHYSICAL, sizeof *physical, NULL);
    if (!physical) {
        if (own >= 0)
            close(own);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    physical->device = device;
    physical->size = size;
    physical->handles = 1;
    physical->fd = own;
    physical->imported = true;
    physical->prop = (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                           .requestedHandleTypes = type,
                                           .location = {CU_MEM_LOCATION_TYPE_DEVICE, device}};
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
    return CUDA_SUCCESS;
}

/* Under vmm_lock. */
static CUresult map(CUdeviceptr ptr, size_t size, struct physical *physical)
{
    for (struct mapping *each = mappings; each; each = each->next)
        VGS_VALUE(each->begin >= ptr + size || ptr >= each->begin + each->size);
    VGS_CHECK(has_file(physical), CUDA_ERROR_OPERATING_SYSTEM);
    struct mapping *mapping = malloc(sizeof *mapping);
    VGS_CHECK(mapping, CUDA_ERROR_OUT_OF_MEMORY);
    *mapping = (struct mapping){.next = mappings, .begin = ptr, .size = size, .physical = physical};
    void *at = (void *)(uintptr_t)ptr;
    if (mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, physical->fd, 0) == MAP_FAILED) {
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
    struct physical *physical = physical_of(handle);
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(ptr, &base);
    /* as the driver: the offset must be 0, and the allocation is mapped whole */
    VGS_VALUE(physical && physical->handles && offset == 0 && flags == 0 && size == physical->size &&
              ptr % GRANULARITY == 0);
    VGS_VALUE(block && block->kind == VGS_RESERVED && size <= block->size - (ptr - base));
    pthread_mutex_lock(&vmm_lock);
    CUresult result = map(ptr, size, physical);
    pthread_mutex_unlock(&vmm_lock);
    return result;
}

VGS_API cuMemUnmap(CUdeviceptr ptr, size_t size)
{
    VGS_ENTER();
    VGS_VALUE(size && ptr % GRANULARITY == 0 && size % GRANULARITY == 0);
    pthread_mutex_lock(&vmm_lock);
    struct mapping *first = find_mapping(ptr), *last = find_mapping(ptr + size - 1);
    bool whole =
        first && last && first->begin == ptr && last->begin + last->size == ptr + size && walk(ptr, size, false, -1);
    for (struct mapping **link = &mappings; whole && *link;) {
        struct mapping *each = *link;
        if (each->begin < ptr || each->begin >= ptr + size) {
            link = &each->next;
            continue;
        }
        *link = each->next;
        mmap((void *)(uintptr_t)each->begin, each->size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        each->physical->mappings--;
        drop(each->physical);
        free(each);
    }
    pthread_mutex_unlock(&vmm_lock);
    return whole ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

VGS_API cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count)
{
    VGS_ENTER();
    VGS_VALUE(desc && count && size);
    for (size_t i = 0; i < count; i++)
        VGS_VALUE(desc[i].flags == 0 || desc[i].flags == 1 || desc[i].flags == 3);
    pthread_mutex_lock(&vmm_lock);
    bool mapped = walk(ptr, size, false, -1) && walk(ptr, size, false, desc[0].flags);
    pthread_mutex_unlock(&vmm_lock);
    return mapped ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

VGS_API cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr)
{
    VGS_ENTER();
    VGS_VALUE(flags && location);
    pthread_mutex_lock(&vmm_lock);
    struct mapping *found = find_mapping(ptr);
    if (found)
        *flags = (unsigned long long)found->access;
    pthread_mutex_unlock(&vmm_lock);
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* vgs_multicast.c - multicast objects: a team of GPUs, and what is bound on each.
 *
 * What is written to the object's addresses is not sent to the memory that is bound: it has bytes of its own. The object
 * takes no device memory; bound memory is kept as long as the object. Nobody here knows whether other processes still
 * have a shared object: what is bound to one is kept until it is unbound or its process ends.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vgs_vmm.h"

#define FILE_NAME "vgpu-sim-multicast"

struct vgs_team {
    uint32_t wanted; /* GPUs that have to be added */
    uint32_t added;  /* a bit for each GPU that was, by its index in vgs_state */
};

struct vgs_binding {
    struct vgs_binding *next;
    CUdevice device;
    size_t offset, size; /* in the object */
    struct vgs_physical *memory;
};

static struct vgs_team *map_team(int fd)
{
    void *at = mmap(NULL, VGS_TEAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

void vgs_team_unmap(struct vgs_team *team)
{
    if (team)
        munmap(team, VGS_TEAM_BYTES);
}

struct vgs_team *vgs_team_of_file(int fd, uint64_t *size)
{
    char link[64], target[128] = "";
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, target, sizeof target - 1) < 0 || fstat(fd, &status) != 0 ||
        strncmp(target, "/memfd:" FILE_NAME, sizeof "/memfd:" FILE_NAME - 1) != 0)
        return NULL;
    *size = (uint64_t)status.st_size - VGS_TEAM_BYTES;
    return map_team(fd);
}

static uint32_t added(const struct vgs_team *team)
{
    return __atomic_load_n(&team->added, __ATOMIC_ACQUIRE);
}

static bool is_complete(const struct vgs_team *team)
{
    return (uint32_t)__builtin_popcount(added(team)) == team->wanted;
}

void vgs_team_wait(const struct vgs_team *team)
{
    while (team && !is_complete(team))
        vgs_sleep_until(vgs_now_ns() + 1000000);
}

static bool is_possible(const CUmulticastObjectProp *prop)
{
    return prop->numDevices >= 1 && prop->numDevices <= vgs_state->gpu_count && prop->flags == 0;
}

VGS_API cuMulticastGetGranularity(size_t *granularity, const CUmulticastObjectProp *prop, int option)
{
    VGS_ENTER();
    VGS_VALUE(granularity && prop && is_possible(prop) && (option == 0 || option == 1));
    *granularity = VGS_GRANULARITY;
    return CUDA_SUCCESS;
}

static struct vgs_physical *new_object(const CUmulticastObjectProp *prop)
{
    struct vgs_physical *object = vgs_new(VGS_PHYSICAL, sizeof *object, NULL);
    int fd = (int)syscall(SYS_memfd_create, FILE_NAME, 1u /* close on exec */);
    if (object && fd >= 0 && ftruncate(fd, (off_t)(prop->size + VGS_TEAM_BYTES)) == 0 &&
        (object->team = map_team(fd))) {
        object->team->wanted = prop->numDevices;
        object->size = prop->size;
        object->handles = 1;
        object->fd = fd;
        /* asked for its properties, it says a place that is none: what NVIDIA's drivers say is not documented */
        object->prop = (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                             .requestedHandleTypes = (CUmemAllocationHandleType)prop->handleTypes,
                                             .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
        return object;
    }
    if (fd >= 0)
        close(fd);
    if (object)
        vgs_delete(object);
    return NULL;
}

VGS_API cuMulticastCreate(CUmemGenericAllocationHandle *mcHandle, const CUmulticastObjectProp *prop)
{
    VGS_ENTER();
    VGS_VALUE(mcHandle && prop && is_possible(prop) && prop->size && prop->size % VGS_GRANULARITY == 0);
    VGS_CHECK((prop->handleTypes | CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) ==
                  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
              CUDA_ERROR_NOT_SUPPORTED);
    struct vgs_physical *object = new_object(prop);
    VGS_CHECK(object, CUDA_ERROR_OUT_OF_MEMORY);
    *mcHandle = (CUmemGenericAllocationHandle)(uintptr_t)object;
    return CUDA_SUCCESS;
}

static struct vgs_physical *object_of(CUmemGenericAllocationHandle handle)
{
    struct vgs_physical *object = vgs_physical_of(handle);
    return object && object->handles && object->team ? object : NULL;
}

VGS_API cuMulticastAddDevice(CUmemGenericAllocationHandle mcHandle, CUdevice dev)
{
    VGS_ENTER();
    struct vgs_physical *object = object_of(mcHandle);
    VGS_VALUE(object);
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    const uint32_t bit = 1u << vgs_gpus.index[dev];
    uint32_t before = added(object->team);
    do
        VGS_VALUE(!(before & bit) && !is_complete(object->team));
    while (!__atomic_compare_exchange_n(&object->team->added, &before, before | bit, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE));
    return CUDA_SUCCESS;
}

/* Under vgs_vmm_lock: nothing is bound there on this GPU yet. */
static bool is_free(const struct vgs_physical *object, CUdevice device, size_t offset, size_t size)
{
    for (const struct vgs_binding *each = object->bound; each; each = each->next)
        if (each->device == device && each->offset < offset + size && offset < each->offset + each->size)
            return false;
    return true;
}

static bool fits(size_t offset, size_t size, size_t whole)
{
    return size && size % VGS_GRANULARITY == 0 && offset % VGS_GRANULARITY == 0 && size <= whole &&
           offset <= whole - size;
}

/* Under vgs_vmm_lock. */
static CUresult bind(struct vgs_physical *object, size_t to, struct vgs_physical *memory, size_t from, size_t size)
{
    VGS_VALUE(memory && !memory->team && fits(to, size, object->size) && fits(from, size, memory->size));
    VGS_CHECK(added(object->team) & 1u << vgs_gpus.index[memory->device], CUDA_ERROR_INVALID_DEVICE);
    VGS_VALUE(memory->prop.requestedHandleTypes || (!object->prop.requestedHandleTypes && !object->imported));
    VGS_VALUE(is_free(object, memory->device, to, size));
    struct vgs_binding *binding = malloc(sizeof *binding);
    VGS_CHECK(binding, CUDA_ERROR_OUT_OF_MEMORY);
    *binding = (struct vgs_binding){object->bound, memory->device, to, size, memory};
    object->bound = binding;
    memory->bindings++;
    return CUDA_SUCCESS;
}

VGS_API cuMulticastBindMem(CUmemGenericAllocationHandle mcHandle, size_t mcOffset,
                           CUmemGenericAllocationHandle memHandle, size_t memOffset, size_t size,
                           unsigned long long flags)
{
    VGS_ENTER();
    struct vgs_physical *object = object_of(mcHandle), *memory = vgs_physical_of(memHandle);
    VGS_VALUE(object && memory && memory->handles && flags == 0);
    vgs_team_wait(object->team);
    pthread_mutex_lock(&vgs_vmm_lock);
    CUresult result = bind(object, mcOffset, memory, memOffset, size);
    pthread_mutex_unlock(&vgs_vmm_lock);
    return result;
}

/* Of mapped memory only: what came from a pool has no physical memory of its own here. */
VGS_API cuMulticastBindAddr(CUmemGenericAllocationHandle mcHandle, size_t mcOffset, CUdeviceptr memptr, size_t size,
                            unsigned long long flags)
{
    VGS_ENTER();
    struct vgs_physical *object = object_of(mcHandle);
    VGS_VALUE(object && flags == 0);
    vgs_team_wait(object->team);
    pthread_mutex_lock(&vgs_vmm_lock);
    struct vgs_mapping *mapping = vgs_mapping_at(memptr);
    CUresult result =
        mapping ? bind(object, mcOffset, mapping->physical, memptr - mapping->begin, size) : CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&vgs_vmm_lock);
    return result;
}

static void unbind(struct vgs_binding **link)
{
    struct vgs_binding *gone = *link;
    *link = gone->next;
    gone->memory->bindings--;
    vgs_physical_drop(gone->memory);
    free(gone);
}

VGS_API cuMulticastUnbind(CUmemGenericAllocationHandle mcHandle, CUdevice dev, size_t mcOffset, size_t size)
{
    VGS_ENTER();
    struct vgs_physical *object = object_of(mcHandle);
    VGS_VALUE(object && fits(mcOffset, size, object->size));
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    bool any = false;
    pthread_mutex_lock(&vgs_vmm_lock);
    for (struct vgs_binding **link = &object->bound; *link;) {
        const struct vgs_binding *each = *link;
        if (each->device != dev || each->offset < mcOffset || each->offset + each->size > mcOffset + size) {
            link = &(*link)->next;
            continue;
        }
        unbind(link);
        any = true;
    }
    pthread_mutex_unlock(&vgs_vmm_lock);
    return any ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void vgs_team_end(struct vgs_physical *object)
{
    while (object->bound && !object->shared)
        unbind(&object->bound);
    vgs_team_unmap(object->team);
}

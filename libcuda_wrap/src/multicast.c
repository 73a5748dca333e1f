/* multicast.c - multicast objects: addresses for a team of GPUs, and what is bound to them on each.
 *
 * The object takes no device memory, but keeps what is bound to it: released and unmapped, that is still there, until it
 * is unbound or nobody in any process has the object any more. So what is bound keeps a reference to its memory's
 * object: to the end of the multicast object in this process, or, if others may have that too, until it is unbound.
 * What others have bound, and leave behind when they are killed, nobody can tell. So who has a shared object is charged
 * as much as can be bound to it, on each GPU of the slice: its maker once it is exported, others for each mapping.
 */
#include <pthread.h>
#include <stdlib.h>

#include "cuda_handlers.h"
#include "vgw_charge.h"
#include "vgw_vmm.h"

struct binding {
    struct binding *next;
    uint64_t memory; /* its object */
    unsigned gpu;
    size_t offset, size; /* in the multicast object */
};

struct object {
    struct object *next;
    uint64_t key;
    uint64_t size;
    uint64_t shared; /* what is charged because others may have it: a chain, or 0 */
    unsigned exports;
    bool imported;
    struct binding *bindings;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list; never held across a driver call: these block */
static struct object *objects;

/* Under the lock. */
static struct object **find(uint64_t key)
{
    struct object **at = &objects;
    while (*at != NULL && (*at)->key != key)
        at = &(*at)->next;
    return at;
}

static bool add(uint64_t key, uint64_t size, bool imported)
{
    struct object *object = calloc(1, sizeof *object);
    if (object == NULL)
        return false;
    pthread_mutex_lock(&lock);
    *object = (struct object){.next = objects, .key = key, .size = size, .imported = imported};
    objects = object;
    pthread_mutex_unlock(&lock);
    return true;
}

uint64_t vgw_multicast_everywhere(uint64_t bytes)
{
    uint64_t chain = 0;
    for (unsigned gpu = 0; gpu < vgw_quota->gpu_count; gpu++) {
        const bool charged = vgw_charge(gpu, bytes);
        const uint64_t link = charged ? vgw_object_new(bytes, chain, gpu) : 0;
        if (link == 0) {
            vgw_refund(gpu, charged ? bytes : 0);
            vgw_object_let_go(chain);
            return 0;
        }
        chain = link;
    }
    return chain;
}

/* The caller has a reference: the object is there before and after. */
bool vgw_multicast_share(uint64_t key)
{
    pthread_mutex_lock(&lock);
    struct object *object = *find(key);
    const bool charged = object == NULL || object->shared != 0;
    if (object != NULL)
        object->exports++;
    pthread_mutex_unlock(&lock);
    if (charged)
        return true;
    uint64_t chain = vgw_multicast_everywhere(object->size);
    pthread_mutex_lock(&lock);
    if (object->shared == 0) { /* else another thread was first */
        object->shared = chain;
        chain = 0;
    }
    const bool done = object->shared != 0;
    object->exports -= !done;
    pthread_mutex_unlock(&lock);
    vgw_object_let_go(chain);
    return done;
}

void vgw_multicast_unshare(uint64_t key)
{
    uint64_t chain = 0;
    pthread_mutex_lock(&lock);
    struct object *object = *find(key);
    if (object != NULL && --object->exports == 0) {
        chain = object->shared;
        object->shared = 0;
    }
    pthread_mutex_unlock(&lock);
    vgw_object_let_go(chain);
}

void vgw_multicast_gone(uint64_t key)
{
    pthread_mutex_lock(&lock);
    struct object **at = find(key), *gone = *at;
    if (gone != NULL)
        *at = gone->next;
    pthread_mutex_unlock(&lock);
    if (gone == NULL)
        return;
    const bool kept = gone->imported || gone->exports > 0; /* by others perhaps: it stays charged */
    for (struct binding *each = gone->bindings, *next; each != NULL; each = next) {
        next = each->next;
        if (!kept)
            vgw_object_let_go(each->memory);
        free(each);
    }
    vgw_object_let_go(gone->shared);
    free(gone);
}

CUresult vgw_multicast_create(vgw_fn_multicast_create *real, CUmemGenericAllocationHandle *mcHandle,
                              const CUmulticastObjectProp *prop)
{
    CUresult result = vgw_devices_ready();
    if (result == CUDA_SUCCESS)
        result = real(mcHandle, prop);
    if (result != CUDA_SUCCESS)
        return result;
    const uint64_t key = vgw_object_new(0, 0, VGW_NO_GPU);
    if (key != 0 && add(key, prop->size, false) && vgw_keep(VGW_HANDLE, *mcHandle, 0, key, VGW_NO_GPU))
        return CUDA_SUCCESS;
    vgw_driver.cuMemRelease(*mcHandle);
    vgw_object_let_go(key);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* The multicast object's key, 0 if there is none. An imported handle may have been taken for memory until it was used as
 * a multicast object: what it keeps is on no single GPU. */
static uint64_t key_of(CUmemGenericAllocationHandle handle)
{
    static uint64_t last;
    struct vgw_entry entry, old;
    if (vgw_table_get(VGW_HANDLE, handle, &entry))
        return entry.link;
    if (!vgw_table_get(VGW_IMPORT, handle, &entry))
        return 0;
    if (entry.link == 0) {
        entry.link = ~__atomic_add_fetch(&last, 1, __ATOMIC_RELAXED); /* no object's: nothing counts its references */
        entry.gpu = VGW_NO_GPU;
        if (!add(entry.link, 0, true) || !vgw_table_put(&entry, &old))
            return 0;
    }
    return entry.link;
}

CUresult vgw_multicast_add_device(vgw_fn_multicast_add_device *real, CUmemGenericAllocationHandle mcHandle,
                                  CUdevice dev)
{
    unsigned gpu;
    CUresult result = vgw_device_gpu(dev, &gpu);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(mcHandle, dev);
    if (result == CUDA_SUCCESS)
        key_of(mcHandle);
    return result;
}

/* Before the call: the memory has one reference more. NULL: no memory for that. */
static struct binding *prepare(uint64_t memory, size_t offset, size_t size)
{
    struct vgw_entry entry;
    struct binding *binding = malloc(sizeof *binding);
    if (binding == NULL || !vgw_table_count(VGW_OBJECT, memory, 1, &entry)) {
        free(binding);
        return NULL;
    }
    *binding = (struct binding){.memory = memory, .gpu = entry.gpu, .offset = offset, .size = size};
    return binding;
}

static void write_down(uint64_t key, struct binding *binding)
{
    pthread_mutex_lock(&lock);
    struct object *object = *find(key);
    if (object != NULL) {
        binding->next = object->bindings;
        object->bindings = binding;
    }
    pthread_mutex_unlock(&lock);
    if (object == NULL)
        free(binding); /* bound to what we do not know: it stays charged */
}

static CUresult bound(struct binding *binding, CUmemGenericAllocationHandle mcHandle, CUresult result)
{
    if (result == CUDA_SUCCESS) {
        write_down(key_of(mcHandle), binding);
    } else {
        vgw_object_let_go(binding->memory);
        free(binding);
    }
    return result;
}

CUresult vgw_multicast_bind_mem(vgw_fn_multicast_bind_mem *real, CUmemGenericAllocationHandle mcHandle, size_t mcOffset,
                                CUmemGenericAllocationHandle memHandle, size_t memOffset, size_t size,
                                unsigned long long flags)
{
    struct vgw_entry entry;
    if (vgw_table_get(VGW_IMPORT, memHandle, &entry))
        return vgw_refuse(); /* how large it is, nobody knows before it is mapped: its address can be bound then */
    if (!vgw_table_get(VGW_HANDLE, memHandle, &entry))
        return real(mcHandle, mcOffset, memHandle, memOffset, size, flags); /* no memory of a GPU, or none at all */
    struct binding *binding = prepare(entry.link, mcOffset, size);
    if (binding == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    return bound(binding, mcHandle, real(mcHandle, mcOffset, memHandle, memOffset, size, flags));
}

CUresult vgw_multicast_bind_addr(vgw_fn_multicast_bind_addr *real, CUmemGenericAllocationHandle mcHandle,
                                 size_t mcOffset, CUdeviceptr memptr, size_t size, unsigned long long flags)
{
    struct vgw_entry mapping;
    if (!vgw_mapping_at(memptr, &mapping) || mapping.link == 0)
        return vgw_refuse(); /* a pool's: which of its pieces are kept, nobody knows */
    struct binding *binding = prepare(mapping.link, mcOffset, size);
    if (binding == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    return bound(binding, mcHandle, real(mcHandle, mcOffset, memptr, size, flags));
}

/* Takes out what was bound within the range on a GPU. */
static struct binding *take(uint64_t key, unsigned gpu, size_t offset, size_t size)
{
    struct binding *taken = NULL;
    pthread_mutex_lock(&lock);
    struct object *object = *find(key);
    for (struct binding **at = object == NULL ? &taken : &object->bindings, *each = *at; each != NULL; each = *at) {
        const bool within = each->offset >= offset && each->size <= size && each->offset - offset <= size - each->size;
        if (each->gpu == gpu && within) {
            *at = each->next;
            each->next = taken;
            taken = each;
        } else {
            at = &each->next;
        }
    }
    pthread_mutex_unlock(&lock);
    return taken;
}

/* What is bound is taken out before the call, since the program may bind there again at once. */
CUresult vgw_multicast_unbind(vgw_fn_multicast_unbind *real, CUmemGenericAllocationHandle mcHandle, CUdevice dev,
                              size_t mcOffset, size_t size)
{
    unsigned gpu;
    CUresult result = vgw_device_gpu(dev, &gpu);
    if (result != CUDA_SUCCESS)
        return result;
    const uint64_t key = key_of(mcHandle);
    struct binding *taken = take(key, gpu, mcOffset, size);
    result = real(mcHandle, dev, mcOffset, size);
    for (struct binding *each = taken, *next; each != NULL; each = next) {
        next = each->next;
        if (result == CUDA_SUCCESS) {
            vgw_object_let_go(each->memory);
            free(each);
        } else {
            write_down(key, each);
        }
    }
    return result;
}

void vgw_multicast_forked(void)
{
    pthread_mutex_init(&lock, NULL);
    objects = NULL; /* left alone, not freed: another thread of the parent may have been inside */
}

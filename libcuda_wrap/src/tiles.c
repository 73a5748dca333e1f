/* tiles.c - memory that is bound to parts of sparse arrays, or to a whole deferred one, by cuMemMapArrayAsync.
 *
 * Physical memory lives for as long as anything is bound to it, and is charged so. What is bound where is kept as boxes:
 * binding or unbinding a part cuts it out of the boxes that it covers. Each box is a reference to its memory. That of a
 * part that was cut out is let go when the stream has got there, which an event tells.
 *
 * The lock is held across the driver's call, which never calls back: two threads' calls have to be seen in one order.
 */
#include "vgw_tiles.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "vgw_charge.h"
#include "vgw_limit.h"
#include "vgw_vmm.h"

#include "cuda_handlers.h"

#define WHOLE          UINT32_MAX       /* a level: all of a deferred array */
#define TAIL           (UINT32_MAX - 1) /* the levels that are smaller than a tile, by bytes */
#define WITHOUT_TIMING 2u

struct box {
    uint32_t level, layer;
    uint64_t from[3], to[3];
};

struct region { /* of an array: bound to an object */
    struct region *next;
    uint64_t object;
    struct box box;
};

struct vgw_bound {
    struct vgw_bound *next;
    uint64_t array; /* the key of the array or mipmapped array */
    CUDA_ARRAY3D_DESCRIPTOR shape;
    struct region *regions;
};

struct leaving { /* until its event has happened */
    struct leaving *next;
    struct region *regions;
    CUcontext context;
    CUevent event;
    uint64_t mark; /* not 0: the context may be ending, nothing is asked */
};

bool vgw_tiles_leaving;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct vgw_bound *all;
static struct leaving *leaving;

static void let_go(struct region *regions)
{
    for (struct region *next; regions != NULL; regions = next) {
        next = regions->next;
        vgw_object_let_go(regions->object);
        free(regions);
    }
}

/* Under the lock. Those whose event has happened, or whose context is `mark`. */
static bool let_leave(uint64_t mark)
{
    bool any = false;
    for (struct leaving **at = &leaving; *at != NULL;) {
        struct leaving *one = *at;
        const bool asks = mark == 0 && one->mark == 0;
        const bool gone = asks ? vgw_driver.cuEventQuery(one->event) == CUDA_SUCCESS : mark != 0 && one->mark == mark;
        if (!gone) {
            at = &one->next;
            continue;
        }
        *at = one->next;
        if (asks)
            vgw_driver.cuEventDestroy_v2(one->event);
        let_go(one->regions);
        free(one);
        any = true;
    }
    __atomic_store_n(&vgw_tiles_leaving, leaving != NULL, __ATOMIC_RELAXED);
    return any;
}

void vgw_tiles_settle(void)
{
    pthread_mutex_lock(&lock);
    let_leave(0);
    pthread_mutex_unlock(&lock);
}

/* Before an allocation is refused. */
static bool reclaim(unsigned gpu)
{
    (void)gpu;
    if (!__atomic_load_n(&vgw_tiles_leaving, __ATOMIC_RELAXED) || pthread_mutex_trylock(&lock) != 0)
        return false;
    const bool any = let_leave(0);
    pthread_mutex_unlock(&lock);
    return any;
}

/* Under the lock: the list element that has the array. */
static struct vgw_bound **find(uint64_t array)
{
    struct vgw_bound **at = &all;
    while (*at != NULL && (*at)->array != array)
        at = &(*at)->next;
    return at;
}

struct vgw_bound *vgw_tiles_take(uint64_t array)
{
    pthread_mutex_lock(&lock);
    struct vgw_bound **at = find(array), *bound = *at;
    if (bound != NULL)
        *at = bound->next;
    pthread_mutex_unlock(&lock);
    return bound;
}

void vgw_tiles_ended(struct vgw_bound *bound, bool is_gone)
{
    if (bound == NULL)
        return;
    if (is_gone) {
        let_go(bound->regions);
        free(bound);
        return;
    }
    pthread_mutex_lock(&lock);
    bound->next = all;
    all = bound;
    pthread_mutex_unlock(&lock);
}

void vgw_tiles_set_aside(CUcontext context, uint64_t mark)
{
    pthread_mutex_lock(&lock);
    for (struct leaving *one = leaving; one != NULL; one = one->next)
        if (one->context == context)
            one->mark = mark;
    pthread_mutex_unlock(&lock);
}

void vgw_tiles_context_ended(uint64_t mark, bool is_gone)
{
    struct vgw_entry entry;
    pthread_mutex_lock(&lock);
    if (is_gone)
        let_leave(mark);
    for (struct leaving *one = leaving; one != NULL && !is_gone; one = one->next)
        if (one->mark == mark)
            one->mark = 0;
    for (struct vgw_bound **at = &all; *at != NULL;) {
        struct vgw_bound *bound = *at;
        if (!is_gone || vgw_table_get(VGW_ARRAY, bound->array, &entry)) {
            at = &bound->next;
            continue;
        }
        *at = bound->next;
        let_go(bound->regions);
        free(bound);
    }
    pthread_mutex_unlock(&lock);
}

static uint64_t array_of(const CUarrayMapInfo *info)
{
    return info->resourceType == CU_RESOURCE_TYPE_ARRAY ? vgw_key(info->resource.array)
                                                        : vgw_key(info->resource.mipmap);
}

/* Under the lock: the array's element, made if there is none. NULL: no memory, or the driver does not know the array. */
static struct vgw_bound *bound_of(const CUarrayMapInfo *info)
{
    const uint64_t array = array_of(info);
    struct vgw_bound **at = find(array);
    if (*at != NULL)
        return *at;
    CUarray level = info->resource.array;
    struct vgw_bound made = {.array = array};
    if ((info->resourceType != CU_RESOURCE_TYPE_ARRAY &&
         (vgw_driver.cuMipmappedArrayGetLevel == NULL ||
          vgw_driver.cuMipmappedArrayGetLevel(&level, info->resource.mipmap, 0) != CUDA_SUCCESS)) ||
        vgw_driver.cuArray3DGetDescriptor_v2 == NULL ||
        vgw_driver.cuArray3DGetDescriptor_v2(&made.shape, level) != CUDA_SUCCESS)
        return NULL;
    *at = calloc(1, sizeof made);
    if (*at != NULL)
        **at = made;
    return *at;
}

/* What an operation is about, within the array. */
static struct box box_of(const CUarrayMapInfo *info, const CUDA_ARRAY3D_DESCRIPTOR *shape)
{
    struct box box = {.level = WHOLE, .to = {1, 1, 1}};
    if (shape->Flags & CUDA_ARRAY3D_DEFERRED_MAPPING)
        return box;
    if (info->subresourceType == CU_ARRAY_SPARSE_SUBRESOURCE_TYPE_MIPTAIL) {
        box.level = TAIL;
        box.layer = info->subresource.miptail.layer;
        box.from[0] = info->subresource.miptail.offset;
        box.to[0] = box.from[0] + info->subresource.miptail.size;
        return box;
    }
    const unsigned *offset = &info->subresource.sparseLevel.offsetX, *extent = offset + 3;
    const size_t sides[3] = {shape->Width, shape->Height, shape->Depth};
    box.level = info->subresource.sparseLevel.level;
    box.layer = info->subresource.sparseLevel.layer;
    for (unsigned axis = 0; axis < 3; axis++) {
        const uint64_t side = box.level < 64 && sides[axis] >> box.level > 1 ? sides[axis] >> box.level : 1;
        box.from[axis] = offset[axis];
        box.to[axis] = box.from[axis] + extent[axis];
        if (box.to[axis] > side && box.from[axis] < side)
            box.to[axis] = side; /* a tile at the edge may be told whole or cut */
    }
    return box;
}

static bool overlap(const struct box *one, const struct box *other)
{
    bool do_they = one->level == other->level && one->layer == other->layer;
    for (unsigned axis = 0; axis < 3; axis++)
        do_they = do_they && one->from[axis] < other->to[axis] && other->from[axis] < one->to[axis];
    return do_they;
}

/* A part of the region that stays, as a region of its own. */
static bool split_off(struct region **list, const struct region *region, unsigned axis, uint64_t from, uint64_t to)
{
    struct region *rest = malloc(sizeof *rest);
    if (rest == NULL)
        return false;
    *rest = *region;
    rest->box.from[axis] = from;
    rest->box.to[axis] = to;
    rest->next = *list;
    *list = rest;
    vgw_object_hold(rest->object);
    return true;
}

/* Cuts the box out of the region, which becomes what both have in common; the rest goes to `kept`. false: no memory; then
 * it stays whole, and is charged for longer. */
static bool cut(struct region *region, const struct box *box, struct region **kept)
{
    for (unsigned axis = 0; axis < 3; axis++) {
        uint64_t *from = &region->box.from[axis], *to = &region->box.to[axis];
        if (*from < box->from[axis]) {
            if (!split_off(kept, region, axis, *from, box->from[axis]))
                return false;
            *from = box->from[axis];
        }
        if (*to > box->to[axis]) {
            if (!split_off(kept, region, axis, box->to[axis], *to))
                return false;
            *to = box->to[axis];
        }
    }
    return true;
}

/* Under the lock: what is bound within the box goes to `out`. */
static void unbind(struct vgw_bound *bound, const struct box *box, struct region **out)
{
    struct region *kept = NULL;
    for (struct region **at = &bound->regions; *at != NULL;) {
        struct region *region = *at;
        if (!overlap(&region->box, box) || !cut(region, box, &kept)) {
            at = &region->next;
            continue;
        }
        *at = region->next;
        region->next = *out;
        *out = region;
    }
    while (kept != NULL) {
        struct region *next = kept->next;
        kept->next = bound->regions;
        bound->regions = kept;
        kept = next;
    }
}

/* Under the lock, after the driver's call. `made` has a region for each binding, in their order. */
static void apply(const CUarrayMapInfo *list, unsigned count, struct region *made, struct region **out)
{
    for (unsigned at = 0; at < count; at++) {
        struct vgw_bound *bound = *find(array_of(&list[at]));
        struct region *region = NULL;
        if (list[at].memOperationType == CU_MEM_OPERATION_TYPE_MAP) {
            region = made;
            made = made->next;
        }
        if (bound == NULL) {
            free(region); /* closed: its memory stays charged, as nobody can tell for how long it is bound */
            continue;
        }
        const struct box box = box_of(&list[at], &bound->shape);
        unbind(bound, &box, out);
        if (region == NULL)
            continue;
        region->box = box;
        region->next = bound->regions;
        bound->regions = region;
    }
}

/* A region for each binding, that refers to its memory already. */
static CUresult prepare(const CUarrayMapInfo *list, unsigned count, struct region **made)
{
    struct region **end = made;
    struct vgw_entry entry;
    for (unsigned at = 0; at < count; at++) {
        if (list[at].memOperationType == CU_MEM_OPERATION_TYPE_MAP) {
            const uint64_t handle = list[at].memHandle.memHandle;
            if (vgw_table_get(VGW_IMPORT, handle, &entry))
                return vgw_refuse(); /* no call says how large it is, and so how much a part of it */
            struct region *region = calloc(1, sizeof *region);
            if (region == NULL)
                return CUDA_ERROR_OUT_OF_MEMORY;
            region->object = vgw_object_of(handle); /* 0: the driver will say what is wrong with it */
            *end = region;
            end = &region->next;
        }
        bound_of(&list[at]); /* NULL: the driver will say what is wrong with the array */
    }
    return CUDA_SUCCESS;
}

/* Under the lock. Until the stream has got there; if that cannot be told, it is waited for. */
static void leave(struct region *regions, CUstream stream)
{
    struct leaving *one = calloc(1, sizeof *one);
    struct vgw_place place = {NULL, 0};
    bool told = false, pushed = false;
    if (one != NULL && vgw_stream_enter(stream, &pushed) == CUDA_SUCCESS) {
        told = vgw_place_here(&place) == CUDA_SUCCESS &&
               vgw_driver.cuEventCreate(&one->event, WITHOUT_TIMING) == CUDA_SUCCESS;
        if (told && vgw_driver.cuEventRecord(one->event, stream) != CUDA_SUCCESS) {
            vgw_driver.cuEventDestroy_v2(one->event);
            told = false;
        }
        vgw_stream_leave(pushed);
    }
    if (!told) {
        free(one);
        if (vgw_driver.cuStreamSynchronize != NULL)
            vgw_driver.cuStreamSynchronize(stream);
        let_go(regions);
        return;
    }
    *one = (struct leaving){.next = leaving, .regions = regions, .context = place.context, .event = one->event};
    leaving = one;
    vgw_reclaim[VGW_RECLAIM_TILES] = reclaim;
    __atomic_store_n(&vgw_tiles_leaving, true, __ATOMIC_RELAXED);
}

CUresult vgw_map_array(vgw_fn_map_array *real, CUarrayMapInfo *mapInfoList, unsigned int count, CUstream hStream)
{
    struct region *made = NULL, *out = NULL;
    CUresult result = vgw_devices_ready();
    if (result != CUDA_SUCCESS || mapInfoList == NULL || count == 0)
        return real(mapInfoList, count, hStream);
    pthread_mutex_lock(&lock);
    result = prepare(mapInfoList, count, &made);
    if (result == CUDA_SUCCESS)
        result = real(mapInfoList, count, hStream);
    if (result == CUDA_SUCCESS) {
        apply(mapInfoList, count, made, &out);
        if (out != NULL)
            leave(out, vgw_meant(hStream, VGW_IS(cuMemMapArrayAsync_ptsz)));
        let_leave(0);
    } else {
        let_go(made);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* The lists of the parent are left alone: another thread may have been inside. */
void vgw_tiles_forked(void)
{
    pthread_mutex_init(&lock, NULL);
    all = NULL;
    leaving = NULL;
    vgw_tiles_leaving = false;
}

/* vgs_graphmem.c - memory that a graph allocates. A node has its addresses for good; a launch puts memory below them, from a reserve
 * per GPU that grows with need and shrinks only when it is trimmed.
 */
#include <pthread.h>

#include "vgs_driver.h"

static struct reserve {
    uint64_t values[4]; /* by attribute: used, its high mark, reserved, its high mark */
} reserves[VGS_MAX_GPUS];
static pthread_mutex_t graph_lock = PTHREAD_MUTEX_INITIALIZER;

enum { USED, USED_HIGH, RESERVED, RESERVED_HIGH };

/* A block's flags: whether it has memory now, and how many nodes and executable graphs hold it. */
#define LIVE 1u
#define HELD 2u

static struct vgs_block *block_of(CUdeviceptr address)
{
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(address, &base);
    return block && base == address && block->kind == VGS_GRAPH_DATA ? block : NULL;
}

CUresult vgs_graph_address(CUdevice device, CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    struct vgs_block block = {.size = params->bytesize, .gpu = vgs_gpus.index[device], .kind = VGS_GRAPH_DATA};
    params->dptr = vgs_arena_take(&block);
    return params->dptr ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

void vgs_graph_hold(const struct vgs_operation *operation, int by)
{
    if (operation->kind != VGS_NODE_ALLOC)
        return;
    pthread_mutex_lock(&graph_lock);
    struct vgs_block *block = block_of(operation->as.alloc.dptr);
    if (block) {
        block->flags += (uint32_t)by * HELD;
        if (block->flags == 0)
            vgs_arena_give(operation->as.alloc.dptr);
    }
    pthread_mutex_unlock(&graph_lock);
}

/* Under graph_lock. */
static void set(struct reserve *reserve, unsigned value, uint64_t bytes)
{
    reserve->values[value] = bytes;
    if (bytes > reserve->values[value + 1])
        reserve->values[value + 1] = bytes;
}

/* Under graph_lock. */
static CUresult take(struct vgs_block *block)
{
    struct reserve *reserve = &reserves[block->gpu];
    VGS_VALUE(!(block->flags & LIVE)); /* launched again before the program has freed it */
    const uint64_t used = reserve->values[USED] + block->size, reserved = reserve->values[RESERVED];
    const uint64_t more = used > reserved ? used - reserved : 0;
    VGS_CHECK(vgs_charge(block->gpu, more) || (vgs_pools_trim() && vgs_charge(block->gpu, more)),
              CUDA_ERROR_OUT_OF_MEMORY);
    set(reserve, RESERVED, reserved + more);
    set(reserve, USED, used);
    block->flags |= LIVE;
    return CUDA_SUCCESS;
}

CUresult vgs_graph_free(CUdeviceptr base)
{
    pthread_mutex_lock(&graph_lock);
    struct vgs_block *block = block_of(base);
    bool live = block && (block->flags & LIVE);
    if (live) {
        block->flags &= ~LIVE;
        reserves[block->gpu].values[USED] -= block->size;
        if (block->flags == 0)
            vgs_arena_give(base);
    }
    pthread_mutex_unlock(&graph_lock);
    return live ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult vgs_graph_run(const struct vgs_operation *operation)
{
    if (operation->kind == VGS_NODE_FREE)
        return vgs_graph_free(operation->as.free);
    pthread_mutex_lock(&graph_lock);
    struct vgs_block *block = block_of(operation->as.alloc.dptr);
    CUresult result = block ? take(block) : CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&graph_lock);
    return result;
}

static CUresult add_alloc(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                          CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    VGS_VALUE(params->bytesize && params->poolProps.allocType == CU_MEM_ALLOCATION_TYPE_PINNED &&
              params->poolProps.location.type == CU_MEM_LOCATION_TYPE_DEVICE);
    VGS_CHECK(vgs_device_ok(params->poolProps.location.id), CUDA_ERROR_INVALID_DEVICE);
    CUresult result = vgs_graph_address(params->poolProps.location.id, params);
    if (result != CUDA_SUCCESS)
        return result;
    struct vgs_operation operation = {.kind = VGS_NODE_ALLOC, .as.alloc = *params};
    result = vgs_graph_add(node, graph, dependencies, count, &operation);
    if (result != CUDA_SUCCESS)
        vgs_arena_give(params->dptr);
    return result;
}

VGS_API cuGraphAddMemAllocNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                               CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    VGS_ENTER();
    VGS_VALUE(node && params);
    return add_alloc(node, graph, dependencies, count, params);
}

VGS_API cuGraphAddMemFreeNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                              CUdeviceptr dptr)
{
    VGS_ENTER();
    VGS_VALUE(node && block_of(dptr));
    struct vgs_operation operation = {.kind = VGS_NODE_FREE, .as.free = dptr};
    return vgs_graph_add(node, graph, dependencies, count, &operation);
}

CUresult vgs_capture_alloc(CUstream stream, CUdeviceptr *dptr, size_t size, CUdevice device)
{
    CUDA_MEM_ALLOC_NODE_PARAMS params = {
        .bytesize = size,
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, device}}};
    CUresult result = add_alloc(NULL, stream->capture, NULL, 0, &params);
    if (result == CUDA_SUCCESS)
        *dptr = params.dptr;
    return result;
}

CUresult vgs_capture_free(CUstream stream, CUdeviceptr dptr)
{
    VGS_VALUE(block_of(dptr)); /* in a capture only what a graph has allocated */
    struct vgs_operation operation = {.kind = VGS_NODE_FREE, .as.free = dptr};
    return vgs_graph_add(NULL, stream->capture, NULL, 0, &operation);
}

VGS_API cuGraphMemAllocNodeGetParams(CUgraphNode node, CUDA_MEM_ALLOC_NODE_PARAMS *params)
{
    VGS_ENTER();
    const struct vgs_operation *operation = vgs_node_operation(node);
    VGS_VALUE(params && operation && operation->kind == VGS_NODE_ALLOC);
    *params = operation->as.alloc;
    return CUDA_SUCCESS;
}

VGS_API cuGraphMemFreeNodeGetParams(CUgraphNode node, CUdeviceptr *dptr)
{
    VGS_ENTER();
    const struct vgs_operation *operation = vgs_node_operation(node);
    VGS_VALUE(dptr && operation && operation->kind == VGS_NODE_FREE);
    *dptr = operation->as.free;
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetGraphMemAttribute(CUdevice device, int attribute, void *value)
{
    VGS_ENTER();
    VGS_CHECK(vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    VGS_VALUE(value && attribute >= USED && attribute <= RESERVED_HIGH);
    pthread_mutex_lock(&graph_lock);
    *(cuuint64_t *)value = reserves[vgs_gpus.index[device]].values[attribute];
    pthread_mutex_unlock(&graph_lock);
    return CUDA_SUCCESS;
}

VGS_API cuDeviceSetGraphMemAttribute(CUdevice device, int attribute, void *value)
{
    VGS_ENTER();
    VGS_CHECK(vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    VGS_VALUE(value && (attribute == USED_HIGH || attribute == RESERVED_HIGH) && *(cuuint64_t *)value == 0);
    pthread_mutex_lock(&graph_lock);
    uint64_t *values = reserves[vgs_gpus.index[device]].values;
    values[attribute] = values[attribute - 1];
    pthread_mutex_unlock(&graph_lock);
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGraphMemTrim(CUdevice device)
{
    VGS_ENTER();
    VGS_CHECK(vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    pthread_mutex_lock(&graph_lock);
    struct reserve *reserve = &reserves[vgs_gpus.index[device]];
    const uint64_t given = reserve->values[RESERVED] - reserve->values[USED];
    reserve->values[RESERVED] = reserve->values[USED];
    pthread_mutex_unlock(&graph_lock);
    if (given)
        vgs_refund(vgs_gpus.index[device], given);
    return CUDA_SUCCESS;
}

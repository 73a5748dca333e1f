/* graphmem.c - memory that a graph allocates: charged when the graph becomes executable, given back when it ends.
 *
 * A memory node takes addresses when it is added, and memory at a launch, where a refusal would leave the graph half
 * done. So all that its nodes could hold at once is charged at instantiation, for as long as the executable graph lives.
 * The driver keeps such memory beyond that, for the next graph, or because the program has not freed it: what an ended
 * graph was charged stays charged (`owed`) as far as the driver says that its graphs hold memory.
 */
#include "vgw_charge.h"
#include "vgw_late.h"
#include "vgw_limit.h"

#include <pthread.h>
#include <stdlib.h>

#include "cuda_handlers.h"

#define DEPTH_MAX 64u /* of graphs in graphs */

struct need {
    uint64_t bytes[VGW_MAX_GPUS];
};

static pthread_mutex_t owing = PTHREAD_MUTEX_INITIALIZER; /* never held across a driver call */
static struct need owed;
static uint64_t ends; /* of executable graphs so far */

static CUresult add_need(CUgraph graph, struct need *need, unsigned depth);

static CUresult add_node(CUgraphNode node, struct need *need, unsigned depth)
{
    CUgraphNodeType type;
    CUDA_MEM_ALLOC_NODE_PARAMS memory;
    CUgraph child;
    unsigned gpu;
    CUresult result = vgw_driver.cuGraphNodeGetType(node, &type);
    if (result == CUDA_SUCCESS && type == CU_GRAPH_NODE_TYPE_GRAPH) {
        result = vgw_driver.cuGraphChildGraphNodeGetGraph(node, &child);
        return result == CUDA_SUCCESS ? add_need(child, need, depth + 1) : result;
    }
    if (result != CUDA_SUCCESS || type != CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        return result;
    result = vgw_driver.cuGraphMemAllocNodeGetParams(node, &memory);
    if (result != CUDA_SUCCESS || memory.poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return result; /* host memory */
    result = vgw_device_gpu(memory.poolProps.location.id, &gpu);
    if (result == CUDA_SUCCESS &&
        __builtin_add_overflow(need->bytes[gpu], (uint64_t)memory.bytesize, &need->bytes[gpu]))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    return result;
}

/* Adds what all memory nodes of the graph take together: more than it ever holds if it frees some before others. */
static CUresult add_need(CUgraph graph, struct need *need, unsigned depth)
{
    size_t count = 0;
    if (depth > DEPTH_MAX)
        return CUDA_ERROR_NOT_SUPPORTED; /* closed: what lies deeper would not be counted */
    CUresult result = vgw_driver.cuGraphGetNodes(graph, NULL, &count);
    if (result != CUDA_SUCCESS || count == 0)
        return result;
    CUgraphNode *nodes = calloc(count, sizeof(CUgraphNode));
    if (nodes == NULL)
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = vgw_driver.cuGraphGetNodes(graph, nodes, &count);
    for (size_t at = 0; result == CUDA_SUCCESS && at < count; at++)
        result = add_node(nodes[at], need, depth);
    free(nodes);
    return result;
}

/* Gives back what is owed above what the driver still holds; true if that was anything. A graph that ended meanwhile may hold memory that the
 * driver's answer does not have: its own end settles it. */
static bool settle(CUdevice device, unsigned gpu)
{
    uint64_t held = 0, back = 0;
    pthread_mutex_lock(&owing);
    const uint64_t before = ends;
    const bool nothing = owed.bytes[gpu] == 0;
    pthread_mutex_unlock(&owing);
    if (nothing || vgw_driver.cuDeviceGetGraphMemAttribute == NULL ||
        vgw_driver.cuDeviceGetGraphMemAttribute(device, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &held) != CUDA_SUCCESS)
        return false;
    pthread_mutex_lock(&owing);
    if (before == ends && owed.bytes[gpu] > held) {
        back = owed.bytes[gpu] - held;
        owed.bytes[gpu] = held;
    }
    pthread_mutex_unlock(&owing);
    vgw_refund(gpu, back);
    return back > 0;
}

/* Before an allocation is refused, and at the end of a graph: the driver lets go of what its graphs do not use. */
static bool trim(unsigned gpu)
{
    const CUdevice device = vgw_device_of(gpu);
    pthread_mutex_lock(&owing);
    const uint64_t before = owed.bytes[gpu];
    pthread_mutex_unlock(&owing);
    if (before == 0 || vgw_driver.cuDeviceGraphMemTrim == NULL ||
        vgw_driver.cuDeviceGraphMemTrim(device) != CUDA_SUCCESS)
        return false;
    return settle(device, gpu);
}

static void give_back(const struct need *need)
{
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS; gpu++)
        if (need->bytes[gpu] > 0)
            vgw_refund(gpu, need->bytes[gpu]);
}

/* CUDA_SUCCESS once all that the graph needs is charged. */
static CUresult begin(CUgraph graph, struct need *need)
{
    *need = (struct need){{0}};
    if (vgw_driver.cuGraphMemAllocNodeGetParams == NULL)
        return CUDA_SUCCESS; /* a driver from before memory nodes */
    CUresult result = vgw_devices_ready();
    if (result == CUDA_SUCCESS)
        result = add_need(graph, need, 0);
    if (result != CUDA_SUCCESS)
        return result;
    unsigned gpu = 0;
    while (gpu < VGW_MAX_GPUS && (need->bytes[gpu] == 0 || vgw_charge(gpu, need->bytes[gpu])))
        gpu++;
    if (gpu == VGW_MAX_GPUS)
        return CUDA_SUCCESS;
    for (; gpu < VGW_MAX_GPUS; gpu++)
        need->bytes[gpu] = 0; /* not taken */
    give_back(need);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* One entry a GPU: addresses of programs end below 2^47. */
static uint64_t key_of(CUgraphExec exec, unsigned gpu)
{
    return vgw_key(exec) ^ (uint64_t)gpu << 48;
}

static CUresult end(CUresult result, const CUgraphExec *exec, const struct need *need)
{
    unsigned kept = 0;
    for (unsigned gpu = 0; result == CUDA_ERROR_OUT_OF_MEMORY && gpu < VGW_MAX_GPUS; gpu++)
        if (need->bytes[gpu] > 0)
            vgw_denied(gpu, VGW_DENIED_DRIVER, need->bytes[gpu]);
    if (result != CUDA_SUCCESS) {
        give_back(need);
        return result;
    }
    while (kept < VGW_MAX_GPUS &&
           (need->bytes[kept] == 0 || vgw_keep(VGW_GRAPH, key_of(*exec, kept), need->bytes[kept], 0, kept)))
        kept++;
    if (kept == VGW_MAX_GPUS) {
        vgw_late_here(); /* its kernels' code may have been loaded */
        return CUDA_SUCCESS;
    }
    vgw_driver.cuGraphExecDestroy(*exec);
    while (kept-- > 0)
        vgw_forget(VGW_GRAPH, key_of(*exec, kept));
    give_back(need);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* To be launched by kernels, where nobody could wait for the share: not in a container that has one. */
#define INSTANTIATE_FOR_DEVICE 2u /* CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH */
static bool from_device(unsigned long long flags)
{
    return (flags & INSTANTIATE_FOR_DEVICE) != 0 && !vgw_no_limit();
}

CUresult vgw_graph_instantiate(vgw_fn_graph_instantiate *real, CUgraphExec *phGraphExec, CUgraph hGraph,
                               CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize)
{
    struct need need;
    if (phGraphExec == NULL || hGraph == NULL)
        return real(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize);
    const CUresult result = begin(hGraph, &need);
    if (result != CUDA_SUCCESS)
        return result;
    return end(real(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize), phGraphExec, &need);
}

CUresult vgw_graph_instantiate_flags(vgw_fn_graph_instantiate_flags *real, CUgraphExec *phGraphExec, CUgraph hGraph,
                                     unsigned long long flags)
{
    struct need need;
    if (from_device(flags))
        return vgw_refuse();
    if (phGraphExec == NULL || hGraph == NULL)
        return real(phGraphExec, hGraph, flags);
    const CUresult result = begin(hGraph, &need);
    return result != CUDA_SUCCESS ? result : end(real(phGraphExec, hGraph, flags), phGraphExec, &need);
}

CUresult vgw_graph_instantiate_params(vgw_fn_graph_instantiate_params *real, CUgraphExec *phGraphExec, CUgraph hGraph,
                                      CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams)
{
    struct need need;
    if (instantiateParams != NULL && from_device(instantiateParams->flags))
        return vgw_refuse();
    if (phGraphExec == NULL || hGraph == NULL)
        return real(phGraphExec, hGraph, instantiateParams);
    const CUresult result = begin(hGraph, &need);
    return result != CUDA_SUCCESS ? result : end(real(phGraphExec, hGraph, instantiateParams), phGraphExec, &need);
}

CUresult vgw_graph_exec_destroy(vgw_fn_graph_exec_destroy *real, CUgraphExec hGraphExec)
{
    struct vgw_freeing freeing[VGW_MAX_GPUS];
    bool any = false;
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS; gpu++) { /* before the call: the handle may come back at once */
        freeing[gpu] = vgw_forget(VGW_GRAPH, key_of(hGraphExec, gpu));
        any = any || freeing[gpu].known;
    }
    vgw_ran_forget(hGraphExec);
    const CUresult result = real(hGraphExec);
    if (!any)
        return result;
    pthread_mutex_lock(&owing);
    for (unsigned gpu = 0; result == CUDA_SUCCESS && gpu < VGW_MAX_GPUS; gpu++)
        owed.bytes[gpu] += freeing[gpu].known ? freeing[gpu].entry.bytes : 0;
    ends++;
    pthread_mutex_unlock(&owing);
    for (unsigned gpu = 0; result != CUDA_SUCCESS && gpu < VGW_MAX_GPUS; gpu++)
        vgw_freed(&freeing[gpu], result); /* it is still there */
    vgw_reclaim[VGW_RECLAIM_GRAPHS] = trim;
    for (unsigned gpu = 0; result == CUDA_SUCCESS && gpu < VGW_MAX_GPUS; gpu++)
        trim(gpu);
    return result;
}

CUresult vgw_graph_mem_trim(vgw_fn_graph_mem_trim *real, CUdevice device)
{
    unsigned gpu;
    CUresult result = real(device);
    if (result == CUDA_SUCCESS && vgw_device_gpu(device, &gpu) == CUDA_SUCCESS)
        settle(device, gpu);
    return result;
}

/* vgs_graph.c - graphs: nodes of kernels, copies, fills and host functions, built by hand or captured from a stream, run in order. */
#include <stdlib.h>
#include <string.h>

#include "vgs_driver.h"

struct CUgraphNode_st {
    struct vgs_object head;
    CUgraph graph;
    CUgraphNode next; /* in the order they were added: each after all it depends on */
    struct vgs_operation operation;
};

struct CUgraph_st {
    struct vgs_object head;
    CUgraphNode first, last;
    size_t count;
    bool captured; /* by a stream, not yet ended */
};

struct CUgraphExec_st {
    struct vgs_object head;
    size_t count;
    struct vgs_operation *operations;
};

CUresult vgs_graph_add(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                       const struct vgs_operation *operation)
{
    VGS_VALUE(vgs_valid(graph, VGS_GRAPH) && (dependencies || !count));
    for (size_t i = 0; i < count; i++)
        VGS_VALUE(vgs_valid(dependencies[i], VGS_NODE) && dependencies[i]->graph == graph);
    CUgraphNode node = vgs_new(VGS_NODE, sizeof *node, NULL);
    VGS_CHECK(node, CUDA_ERROR_OUT_OF_MEMORY);
    node->graph = graph;
    node->operation = *operation;
    vgs_graph_hold(operation, 1);
    *(graph->last ? &graph->last->next : &graph->first) = node;
    graph->last = node;
    graph->count++;
    if (out)
        *out = node;
    return CUDA_SUCCESS;
}

const struct vgs_operation *vgs_node_operation(CUgraphNode node)
{
    return vgs_valid(node, VGS_NODE) ? &node->operation : NULL;
}

bool vgs_captured(CUstream stream, const struct vgs_operation *operation)
{
    return stream->capture && vgs_graph_add(NULL, stream->capture, NULL, 0, operation) == CUDA_SUCCESS;
}

VGS_API cuGraphCreate(CUgraph *graph, unsigned int flags)
{
    VGS_ENTER();
    VGS_VALUE(graph && flags == 0);
    VGS_CHECK(*graph = vgs_new(VGS_GRAPH, sizeof **graph, NULL), CUDA_ERROR_OUT_OF_MEMORY);
    return CUDA_SUCCESS;
}

VGS_API cuGraphDestroy(CUgraph graph)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(graph, VGS_GRAPH));
    for (CUgraphNode node = graph->first, next; node; node = next) {
        next = node->next;
        vgs_graph_hold(&node->operation, -1);
        vgs_delete(node);
    }
    vgs_delete(graph);
    return CUDA_SUCCESS;
}

static CUresult add_kernel(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                           CUDA_KERNEL_NODE_PARAMS params)
{
    if (!params.func)
        params.func = params.kern;
    VGS_VALUE(node && vgs_valid(params.func, VGS_FUNCTION));
    struct vgs_operation operation = {.kind = VGS_NODE_KERNEL, .as.kernel = params};
    return vgs_graph_add(node, graph, dependencies, count, &operation);
}

VGS_API cuGraphAddKernelNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                             const CUDA_KERNEL_NODE_PARAMS *params)
{
    VGS_ENTER();
    VGS_VALUE(params);
    CUDA_KERNEL_NODE_PARAMS known = {0}; /* version 1 ends before `kern` */
    memcpy(&known, params, offsetof(CUDA_KERNEL_NODE_PARAMS, kern));
    return add_kernel(node, graph, dependencies, count, known);
}

VGS_API cuGraphAddKernelNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                const CUDA_KERNEL_NODE_PARAMS *params)
{
    VGS_ENTER();
    VGS_VALUE(params);
    return add_kernel(node, graph, dependencies, count, *params);
}

VGS_API cuGraphAddMemcpyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                             const CUDA_MEMCPY3D *copy, CUcontext ctx)
{
    VGS_ENTER();
    VGS_VALUE(node && copy);
    VGS_CHECK(vgs_valid(ctx, VGS_CONTEXT), CUDA_ERROR_INVALID_CONTEXT);
    struct vgs_operation operation = {.kind = VGS_NODE_MEMCPY, .as.copy = *copy};
    return vgs_graph_add(node, graph, dependencies, count, &operation);
}

VGS_API cuGraphAddMemsetNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                             const CUDA_MEMSET_NODE_PARAMS *set, CUcontext ctx)
{
    VGS_ENTER();
    VGS_VALUE(node && set && (set->elementSize == 1 || set->elementSize == 2 || set->elementSize == 4));
    VGS_CHECK(vgs_valid(ctx, VGS_CONTEXT), CUDA_ERROR_INVALID_CONTEXT);
    struct vgs_operation operation = {.kind = VGS_NODE_MEMSET, .as.set = *set};
    return vgs_graph_add(node, graph, dependencies, count, &operation);
}

VGS_API cuGraphAddHostNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                           const CUDA_HOST_NODE_PARAMS *host)
{
    VGS_ENTER();
    VGS_VALUE(node && host && host->fn);
    struct vgs_operation operation = {.kind = VGS_NODE_HOST, .as.host = *host};
    return vgs_graph_add(node, graph, dependencies, count, &operation);
}

VGS_API cuGraphAddEmptyNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count)
{
    VGS_ENTER();
    VGS_VALUE(node);
    struct vgs_operation operation = {.kind = VGS_NODE_EMPTY};
    return vgs_graph_add(node, graph, dependencies, count, &operation);
}

VGS_API cuGraphAddChildGraphNode(CUgraphNode *node, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                                 CUgraph child)
{
    VGS_ENTER();
    VGS_VALUE(node && vgs_valid(child, VGS_GRAPH) && child != graph);
    struct vgs_operation operation = {.kind = VGS_NODE_CHILD, .as.child = child};
    return vgs_graph_add(node, graph, dependencies, count, &operation);
}

VGS_API cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph *child)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(node, VGS_NODE) && node->operation.kind == VGS_NODE_CHILD && child);
    *child = node->operation.as.child;
    return CUDA_SUCCESS;
}

VGS_API cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(graph, VGS_GRAPH) && count);
    size_t room = nodes ? *count : 0, i = 0;
    for (CUgraphNode node = graph->first; node && i < room; node = node->next)
        nodes[i++] = node;
    *count = nodes ? i : graph->count;
    return CUDA_SUCCESS;
}

VGS_API cuGraphNodeGetType(CUgraphNode node, int *type)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(node, VGS_NODE) && type);
    *type = (int)node->operation.kind;
    return CUDA_SUCCESS;
}

static size_t flat_count(CUgraph graph)
{
    size_t count = 0;
    for (CUgraphNode node = graph->first; node; node = node->next)
        count += node->operation.kind == VGS_NODE_CHILD ? flat_count(node->operation.as.child) : 1;
    return count;
}

static struct vgs_operation *flatten(CUgraph graph, struct vgs_operation *out)
{
    for (CUgraphNode node = graph->first; node; node = node->next)
        if (node->operation.kind == VGS_NODE_CHILD)
            out = flatten(node->operation.as.child, out);
        else
            *out++ = node->operation;
    return out;
}

static CUresult instantiate(CUgraphExec *out, CUgraph graph)
{
    VGS_VALUE(out && vgs_valid(graph, VGS_GRAPH) && !graph->captured);
    CUgraphExec exec = vgs_new(VGS_EXEC, sizeof *exec, NULL);
    VGS_CHECK(exec, CUDA_ERROR_OUT_OF_MEMORY);
    exec->count = flat_count(graph);
    exec->operations = calloc(exec->count ? exec->count : 1, sizeof *exec->operations);
    if (!exec->operations) {
        vgs_delete(exec);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    flatten(graph, exec->operations);
    for (size_t i = 0; i < exec->count; i++)
        vgs_graph_hold(&exec->operations[i], 1);
    *out = exec;
    return CUDA_SUCCESS;
}

VGS_API cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t log_size)
{
    VGS_ENTER();
    if (error_node)
        *error_node = NULL;
    if (log && log_size)
        *log = '\0';
    return instantiate(exec, graph);
}

VGS_API cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error_node, char *log, size_t log_size)
{
    VGS_ENTER();
    return cuGraphInstantiate(exec, graph, error_node, log, log_size);
}

VGS_API cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
    VGS_ENTER();
    VGS_VALUE(flags <= 15);
    return instantiate(exec, graph);
}

VGS_API cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params)
{
    VGS_ENTER();
    VGS_VALUE(params && params->flags <= 15);
    CUresult result = instantiate(exec, graph);
    params->result_out = result == CUDA_SUCCESS ? 0 : 1;
    params->hErrNode_out = NULL;
    return result;
}

static CUresult run(const struct vgs_operation *operation, CUstream stream)
{
    switch (operation->kind) {
    case VGS_NODE_KERNEL:
        VGS_CHECK(vgs_valid(operation->as.kernel.func, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
        VGS_CHECK(vgs_function_load(operation->as.kernel.func) == CUDA_SUCCESS, CUDA_ERROR_OUT_OF_MEMORY);
        vgs_queue_kernel(stream, vgs_kernel_ns(operation->as.kernel.func));
        return CUDA_SUCCESS;
    case VGS_NODE_MEMCPY:
        return vgs_copy_now(&operation->as.copy);
    case VGS_NODE_MEMSET:
        return vgs_set_on(stream, &operation->as.set);
    case VGS_NODE_HOST:
        vgs_queue_host(stream, operation->as.host.fn, operation->as.host.userData);
        return CUDA_SUCCESS;
    case VGS_NODE_ALLOC:
    case VGS_NODE_FREE:
        return vgs_graph_run(operation);
    default:
        return CUDA_SUCCESS;
    }
}

VGS_API cuGraphLaunch(CUgraphExec exec, CUstream hStream)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUstream stream = vgs_stream(hStream);
    VGS_VALUE(vgs_valid(exec, VGS_EXEC));
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    for (size_t i = 0; i < exec->count; i++) {
        CUresult result = vgs_captured(stream, &exec->operations[i]) ? CUDA_SUCCESS : run(&exec->operations[i], stream);
        if (result != CUDA_SUCCESS)
            return result;
    }
    return CUDA_SUCCESS;
}

VGS_API cuGraphUpload(CUgraphExec exec, CUstream hStream)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    VGS_VALUE(vgs_valid(exec, VGS_EXEC));
    VGS_CHECK(vgs_stream(hStream), CUDA_ERROR_INVALID_HANDLE);
    return CUDA_SUCCESS;
}

VGS_API cuGraphExecDestroy(CUgraphExec exec)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(exec, VGS_EXEC));
    for (size_t i = 0; i < exec->count; i++)
        vgs_graph_hold(&exec->operations[i], -1);
    free(exec->operations);
    vgs_delete(exec);
    return CUDA_SUCCESS;
}

static CUresult begin_capture(CUstream hStream, int mode)
{
    CUstream stream = vgs_stream(hStream);
    VGS_CHECK(stream, vgs_context() ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_CONTEXT);
    VGS_VALUE(mode >= 0 && mode <= 2);
    VGS_CHECK(stream != &stream->head.ctx->main,
              CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED); /* the legacy stream cannot be captured */
    VGS_CHECK(!stream->capture, CUDA_ERROR_ILLEGAL_STATE);
    CUgraph graph = vgs_new(VGS_GRAPH, sizeof *graph, NULL);
    VGS_CHECK(graph, CUDA_ERROR_OUT_OF_MEMORY);
    graph->captured = true;
    stream->capture = graph;
    stream->capture_id = vgs_next_id();
    return CUDA_SUCCESS;
}

VGS_API cuStreamBeginCapture(CUstream hStream)
{
    VGS_ENTER();
    return begin_capture(hStream, 0);
}

VGS_API cuStreamBeginCapture_v2(CUstream hStream, int mode)
{
    VGS_ENTER();
    return begin_capture(hStream, mode);
}

static bool leave_capture(void *object, void *graph)
{
    CUstream stream = object;
    if (stream->capture == graph)
        stream->capture = NULL;
    return false;
}

VGS_API cuStreamEndCapture(CUstream hStream, CUgraph *graph)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUstream stream = vgs_stream(hStream);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(graph);
    VGS_CHECK(stream->capture, CUDA_ERROR_ILLEGAL_STATE);
    VGS_CHECK(stream->capture_id, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED); /* it only joined */
    *graph = stream->capture;
    (*graph)->captured = false;
    stream->capture_id = 0;
    vgs_each(VGS_STREAM, NULL, leave_capture, *graph); /* those that joined leave with it */
    return CUDA_SUCCESS;
}

VGS_API cuStreamIsCapturing(CUstream hStream, int *status)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUstream stream = vgs_stream(hStream);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(status);
    *status = stream->capture != NULL;
    return CUDA_SUCCESS;
}

VGS_API cuStreamGetCaptureInfo(CUstream hStream, int *status, cuuint64_t *id)
{
    VGS_ENTER();
    CUresult result = cuStreamIsCapturing(hStream, status);
    if (result == CUDA_SUCCESS && *status && id)
        *id = vgs_stream(hStream)->capture_id;
    return result;
}

VGS_API cuStreamGetCaptureInfo_v2(CUstream hStream, int *status, cuuint64_t *id, CUgraph *graph,
                                  const CUgraphNode **dependencies, size_t *count)
{
    VGS_ENTER();
    CUresult result = cuStreamGetCaptureInfo(hStream, status, id);
    if (result == CUDA_SUCCESS && *status) {
        CUstream stream = vgs_stream(hStream);
        if (graph)
            *graph = stream->capture;
        if (dependencies)
            *dependencies = &stream->capture->last;
        if (count)
            *count = stream->capture->last != NULL;
    }
    return result;
}

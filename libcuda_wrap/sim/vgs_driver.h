/* vgs_driver.h - what the files of the simulated libcuda share: handles, contexts, streams, memory blocks.
 *
 * Locks of a process, outermost first: a context's or object's registry (vgs_object.c), the arena (vgs_arena.c), a stream's host
 * queue (vgs_stream.c). The shared GPU lock (vgs_lock.h) is taken last and never held across anything else.
 */
#ifndef VGS_DRIVER_H
#define VGS_DRIVER_H

#include <stdbool.h>

#include "vgs_cuda.h"
#include "vgs_fault.h"
#include "vgs_region.h"

#define VGS_API       __attribute__((visibility("default"))) CUresult
#define VGS_LIKELY(x) __builtin_expect(!!(x), 1)

/* Every exported function begins with it: not initialised, a forked child, a fault that was asked for. */
#define VGS_ENTER()                                                                                                    \
    do {                                                                                                               \
        CUresult early_ = vgs_enter(__func__);                                                                         \
        if (early_ != CUDA_SUCCESS)                                                                                    \
            return early_;                                                                                             \
    } while (0)
/* …and one that needs a current context, which is then `ctx`. */
#define VGS_ENTER_CONTEXT()                                                                                            \
    VGS_ENTER();                                                                                                       \
    CUcontext ctx = vgs_context();                                                                                     \
    if (!ctx)                                                                                                          \
    return CUDA_ERROR_INVALID_CONTEXT
#define VGS_CHECK(condition, error)                                                                                    \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return error;                                                                                              \
    } while (0)
#define VGS_VALUE(condition) VGS_CHECK(condition, CUDA_ERROR_INVALID_VALUE)

enum vgs_ready { VGS_NOT_READY, VGS_READY, VGS_FORKED };
extern int vgs_ready;
extern struct vgs_visible vgs_gpus; /* device ordinal -> GPU; filled by cuInit */
CUresult vgs_enter_slow(const char *function);
int vgs_cuda_version(void); /* also before cuInit */

static inline CUresult vgs_enter(const char *function)
{
    if (VGS_LIKELY(vgs_ready == VGS_READY && !vgs_any_fault && vgs_state->fault_count == vgs_faults_seen))
        return CUDA_SUCCESS;
    return vgs_enter_slow(function);
}

/* Handles. A deleted one keeps its memory, so that its late use is an error and not a crash. */
enum vgs_kind {
    VGS_CONTEXT = 1,
    VGS_STREAM,
    VGS_EVENT,
    VGS_MODULE,
    VGS_FUNCTION,
    VGS_ARRAY,
    VGS_MIPMAP,
    VGS_POOL,
    VGS_PHYSICAL,
    VGS_GRAPH,
    VGS_NODE,
    VGS_EXEC,
    VGS_EXTERNAL,
    VGS_GREEN,
    VGS_RESOURCES,
    VGS_KINDS
};
struct vgs_object {
    uint32_t magic;
    uint32_t kind;
    CUcontext ctx; /* NULL: of no context */
    struct vgs_object *next, *previous;
};
void *vgs_new(enum vgs_kind kind, size_t size, CUcontext ctx); /* zeroed; NULL: no host memory */
bool vgs_valid(const void *object, enum vgs_kind kind);
void vgs_delete(void *object);
/* Calls `visit` for each live object of `kind` in `ctx` (NULL: any) until it returns true; the object may be deleted. */
void *vgs_each(enum vgs_kind kind, CUcontext ctx, bool (*visit)(void *object, void *argument), void *argument);

struct CUstream_st {
    struct vgs_object head;
    uint64_t end_virtual_ns; /* when all that was queued so far is done, by the GPU's clock: vgs_clock.c */
    uint64_t id;
    uint64_t host_queued; /* host functions asked for and run: vgs_stream.c */
    uint64_t host_done;
    unsigned int flags;
    int priority;
    CUcontext green; /* not NULL: made in this green context, of which `ctx` is the primary one */
    CUgraph capture; /* not NULL: operations become its nodes */
    uint64_t capture_id;
};

#define VGS_LIMITS 10
struct CUctx_st {
    struct vgs_object head;
    CUdevice device; /* ordinal in this process */
    uint32_t gpu;    /* in vgs_state */
    unsigned int flags, api_version;
    uint64_t id;
    bool primary, dead;
    uint32_t retained; /* primary: by cuDevicePrimaryCtxRetain */
    uint64_t charged;  /* bytes of the context itself */
    uint32_t peers;    /* bit per device ordinal */
    size_t limits[VGS_LIMITS];
    CUcontext green_of;      /* not NULL: a green context, which is that primary one but for its streams */
    struct CUstream_st main; /* the stream that NULL means */
};
CUcontext vgs_context(void);    /* the calling thread's, a primary one for a green one; NULL if none or destroyed */
CUcontext vgs_green_here(void); /* the calling thread's green one, NULL if it is another */
CUresult vgs_primary_retain(CUdevice device, CUcontext *out);
void vgs_primary_release(CUcontext ctx);
void vgs_greens_end(CUcontext primary); /* with their primary context */
void vgs_greens_wait(CUcontext primary);
bool vgs_event_record(CUevent event, CUcontext ctx, CUstream latest); /* when all is done that `latest` has queued */
uint64_t vgs_event_end(CUevent event);
CUresult vgs_context_of(CUcontext given, CUcontext *out); /* given, or the current one for NULL */
bool vgs_device_ok(CUdevice device);
CUcontext vgs_primary(CUdevice device); /* active, or NULL */
/* NULL: no such stream, or no context. Handles 0, 1 and 2 are the default streams. */
CUstream vgs_stream(CUstream handle);
void vgs_wait_stream(CUstream stream);
void vgs_wait_context(CUcontext ctx);
void vgs_queue_kernel(CUstream stream, uint64_t duration_ns);
void vgs_queue_host(CUstream stream, CUhostFn function, void *argument);
uint64_t vgs_next_id(void);

/* Memory: one arena of addresses for all GPUs, device memory and pinned host memory; a page exists once it is touched. */
enum vgs_block_kind {
    VGS_FREE,
    VGS_DEVICE,
    VGS_MANAGED,
    VGS_POOLED,
    VGS_HOST,
    VGS_RESERVED,
    VGS_ARRAY_DATA,
    VGS_GRAPH_DATA,
    VGS_OPENED
};
struct vgs_block {
    uint64_t size; /* as asked for */
    CUcontext ctx;
    CUmemoryPool pool;
    uint32_t gpu;
    uint32_t flags;
    uint32_t next_free;
    uint8_t kind;
    uint8_t touched;
    uint64_t id;
};
bool vgs_arena_open(void);
/* Address of `size` bytes, 0 if none is left. Nothing is charged here. */
CUdeviceptr vgs_arena_take(const struct vgs_block *like);
/* The block that has `address`, and where it begins; NULL: none. Stays valid until the block is freed. */
struct vgs_block *vgs_arena_find(CUdeviceptr address, CUdeviceptr *base);
void vgs_arena_give(CUdeviceptr base);
/* Calls `visit` for every block in use. */
void vgs_arena_each(void (*visit)(CUdeviceptr base, struct vgs_block *block, void *argument), void *argument);
bool vgs_in_arena(CUdeviceptr address);

/* Charged memory of `ctx`; *out is its address. */
CUresult vgs_take_memory(CUcontext ctx, size_t size, enum vgs_block_kind kind, uint32_t flags, CUdeviceptr *out);
void vgs_free_memory(CUdeviceptr base, struct vgs_block *block);
void vgs_free_all_of(CUcontext ctx);
/* May `size` bytes at `address` be read or written as device memory? Marks them as touched. */
bool vgs_accessible(CUdeviceptr address, size_t size);
/* Within a reserved range (vgs_vmm.c): is all of it mapped? What is mapped at the address. */
bool vgs_mapped(CUdeviceptr address, size_t size);
bool vgs_mapped_range(CUdeviceptr address, CUdeviceptr *begin, size_t *size);
/* A memfd of `size` bytes that names its GPU, and the GPU and size of such a one that came from somewhere; < 0, false: no. */
int vgs_shared_file(uint32_t gpu, uint64_t size);
bool vgs_is_shared_file(int fd, uint32_t *gpu, uint64_t *size);
void vgs_pool_free(CUdeviceptr base, struct vgs_block *block);
void vgs_pools_settle(CUcontext ctx); /* at a synchronisation: gives back above the release threshold */
uint64_t vgs_pools_trim(void);        /* before out of memory */
CUmemoryPool vgs_default_pool(CUdevice device);

struct CUarray_st {
    struct vgs_object head;
    CUDA_ARRAY3D_DESCRIPTOR shape;
    CUdeviceptr data;
    size_t element;          /* bytes */
    bool borrowed;           /* a mipmap's level */
    struct vgs_tiles *tiles; /* what cuMemMapArrayAsync has bound to it */
};
/* Tiles of sparse arrays (vgs_tiles.c), and the whole of deferred ones. */
void vgs_tiles_free(struct vgs_tiles *tiles);
size_t vgs_array_bytes(CUarray array);
CUarray vgs_mipmap_level(CUmipmappedArray mipmap, unsigned int level); /* NULL: no such */
/* Physical memory that may be bound so, one reference more; NULL: it is none, another GPU's, or has less than `end` bytes. */
void *vgs_physical_hold(CUmemGenericAllocationHandle handle, CUdevice device, uint64_t end);
void vgs_physical_let_go(void *physical);

struct CUfunc_st {
    struct vgs_object head;
    CUmodule module;
    uint64_t duration_ns; /* 0: the default */
    int max_dynamic_shared, carveout;
    bool loaded; /* its code is on the GPU: from when it is got from a module, or a library's is first launched */
    char name[160];
};
CUresult vgs_function_load_slow(CUfunction function);
static inline CUresult vgs_function_load(CUfunction function)
{
    return VGS_LIKELY(function->loaded) ? CUDA_SUCCESS : vgs_function_load_slow(function);
}
uint64_t vgs_kernel_ns(CUfunction function);
void vgs_module_free(CUmodule module);

/* In a capture the operation becomes a node and true is returned. `operation` is copied. */
enum vgs_node_kind {
    VGS_NODE_KERNEL = 0,
    VGS_NODE_MEMCPY = 1,
    VGS_NODE_MEMSET = 2,
    VGS_NODE_HOST = 3,
    VGS_NODE_CHILD = 4,
    VGS_NODE_EMPTY = 5,
    VGS_NODE_ALLOC = 10,
    VGS_NODE_FREE = 11
};
struct vgs_operation {
    enum vgs_node_kind kind;
    union {
        CUDA_KERNEL_NODE_PARAMS kernel;
        CUDA_MEMCPY3D copy;
        CUDA_MEMSET_NODE_PARAMS set;
        CUDA_HOST_NODE_PARAMS host;
        CUgraph child;
        CUDA_MEM_ALLOC_NODE_PARAMS alloc;
        CUdeviceptr free;
    } as;
};
CUresult vgs_graph_add(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                       const struct vgs_operation *operation);
const struct vgs_operation *vgs_node_operation(CUgraphNode node);
/* Graph memory (vgs_graphmem.c). A node, and an executable graph, holds its addresses; a launch takes and frees the memory. */
CUresult vgs_graph_address(CUdevice device, CUDA_MEM_ALLOC_NODE_PARAMS *params);
void vgs_graph_hold(const struct vgs_operation *operation, int by);
CUresult vgs_graph_run(const struct vgs_operation *operation);
CUresult vgs_graph_free(CUdeviceptr base);
CUresult vgs_capture_alloc(CUstream stream, CUdeviceptr *dptr, size_t size, CUdevice device);
CUresult vgs_capture_free(CUstream stream, CUdeviceptr dptr);
bool vgs_captured(CUstream stream, const struct vgs_operation *operation);
CUresult vgs_copy_now(const CUDA_MEMCPY3D *copy);
CUresult vgs_set_on(CUstream stream, const CUDA_MEMSET_NODE_PARAMS *set);

#endif

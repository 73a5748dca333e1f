/* limit.c - every function that makes the GPU work waits here until the container's share has room: docs/compute-share.md.
 *
 * Where no GPU of the slice has a share below 100 %, a launch costs one load and a comparison more. */
#include <time.h>

#include "vgw_bucket.h"
#include "vgw_context.h"
#include "vgw_late.h"
#include "vgw_limit.h"
#include "vgw_real.h"
#include "vgw_region.h"

#include "cuda_handlers.h"

#define SLICE_NS 5000000u  /* longest sleep: then shares may have changed, and tokens come back */
#define REAP_NS  20000000u /* how often a waiting launch looks for dead processes, whose tokens come back */
#define POLL_NS  100000u   /* first sleep while too much is unmeasured; doubles */
#define POLL_MAX 1000000u
#define LOOK_NS  1000000u /* longest sleep of who may borrow: neighbours do not say when they stop */

static void sleep_ns(uint64_t ns)
{
    const struct timespec length = {.tv_sec = 0, .tv_nsec = (long)(ns < SLICE_NS ? ns : SLICE_NS)};
    nanosleep(&length, NULL); /* a signal ends it early: the caller asks again */
}

/* Until the share has room, and not too much is under way. Returns the tokens taken. */
static uint64_t wait_for_share(unsigned gpu, uint64_t key)
{
    const uint64_t since = vgw_now_ns();
    uint64_t poll = POLL_NS, looked = since, tokens;
    bool waited = false;
    for (;;) {
        const uint32_t share = vgw_bucket_share(gpu); /* live */
        const bool room = vgw_measure_room(gpu);
        tokens = vgw_bucket_tokens(gpu, vgw_measure_estimate(key));
        const uint64_t wait = !room && share < 100 ? poll : vgw_bucket_take(gpu, tokens, share);
        if (wait == 0 || share == 100)
            break;
        if (room && vgw_bucket_borrow(gpu))
            continue;
        waited = true;
        sleep_ns(wait > LOOK_NS && (vgw_bucket_soft(gpu) || vgw_measure_under_way(gpu)) ? LOOK_NS : wait);
        if (!room && poll < POLL_MAX)
            poll *= 2;
        const uint64_t now = vgw_now_ns();
        if (now - looked < REAP_NS)
            continue;
        looked = now;
        vgw_reap();
    }
    if (waited)
        vgw_bucket_waited(gpu, vgw_now_ns() - since);
    return tokens;
}

/* Equal functions with about the same size, in threads or bytes, cost about the same. */
static uint64_t key_of(const void *what, uint64_t size)
{
    const uint64_t bits = size == 0 ? 0 : 64u - (uint64_t)__builtin_clzll(size);
    return (uint64_t)(uintptr_t)what * 0x9e3779b97f4a7c15u + (bits << 1);
}

/* Waits for the share of the current context's GPU. limited: false if the driver's function is all there is to do. */
static void wait_for(struct vgw_launch *launch, const void *what, uint64_t size, CUstream stream)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    struct vgw_place place;
    launch->limited = false;
    if (vgw_place_here(&place) != CUDA_SUCCESS || vgw_bucket_share(place.gpu) == 100)
        return;
    if (vgw_driver.cuStreamIsCapturing != NULL &&
        (vgw_driver.cuStreamIsCapturing(stream, &status) != CUDA_SUCCESS || status != CU_STREAM_CAPTURE_STATUS_NONE))
        return; /* captured: the graph's launch is charged */
    const uint64_t key = (key_of(what, size) ^ place.gpu ^ vgw_green_of(stream)) | 1;
    *launch = (struct vgw_launch){place.context, stream, key, 0, place.gpu, true};
    launch->tokens = wait_for_share(place.gpu, launch->key);
}

static void begin(struct vgw_launch *launch)
{
    if (launch->limited)
        launch->limited = vgw_measure_begin(launch);
}

void vgw_limit_begin(struct vgw_launch *launch, const void *what, uint64_t size, CUstream stream)
{
    bool pushed = false;
    launch->limited = false;
    /* with several contexts a kernel may be launched in a stream of another than the current one */
    if (vgw_several && vgw_stream_enter(stream, &pushed) != CUDA_SUCCESS)
        return; /* the driver will say what is wrong with it */
    wait_for(launch, what, size, stream);
    begin(launch);
    vgw_stream_leave(pushed);
}

CUresult vgw_limit_end(const struct vgw_launch *launch, CUresult result)
{
    if (launch->limited)
        vgw_measure_end(launch, result);
    return result;
}

CUresult vgw_launch_kernel(vgw_fn_launch_kernel *real, CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                           unsigned int gridDimZ, unsigned int blockDimX, unsigned int blockDimY,
                           unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream, void **kernelParams,
                           void **extra)
{
    struct vgw_launch launch;
    if (__builtin_expect(vgw_no_limit(), true))
        return vgw_ran(f, real(f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes,
                               hStream, kernelParams, extra));
    const uint64_t threads = (uint64_t)gridDimX * gridDimY * gridDimZ * blockDimX * blockDimY * blockDimZ;
    vgw_limit_begin(&launch, f, threads, vgw_meant(hStream, VGW_IS(cuLaunchKernel_ptsz)));
    return vgw_ran(f, vgw_limit_end(&launch, real(f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ,
                                                  sharedMemBytes, hStream, kernelParams, extra)));
}

CUresult vgw_launch_cooperative(vgw_fn_launch_cooperative *real, CUfunction f, unsigned int gridDimX,
                                unsigned int gridDimY, unsigned int gridDimZ, unsigned int blockDimX,
                                unsigned int blockDimY, unsigned int blockDimZ, unsigned int sharedMemBytes,
                                CUstream hStream, void **kernelParams)
{
    struct vgw_launch launch;
    if (__builtin_expect(vgw_no_limit(), true))
        return vgw_ran(f, real(f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes,
                               hStream, kernelParams));
    const uint64_t threads = (uint64_t)gridDimX * gridDimY * gridDimZ * blockDimX * blockDimY * blockDimZ;
    vgw_limit_begin(&launch, f, threads, vgw_meant(hStream, VGW_IS(cuLaunchCooperativeKernel_ptsz)));
    return vgw_ran(f, vgw_limit_end(&launch, real(f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ,
                                                  sharedMemBytes, hStream, kernelParams)));
}

CUresult vgw_launch_kernel_ex(vgw_fn_launch_kernel_ex *real, const CUlaunchConfig *config, CUfunction f,
                              void **kernelParams, void **extra)
{
    struct vgw_launch launch;
    if (__builtin_expect(vgw_no_limit(), true) || config == NULL)
        return vgw_ran(f, real(config, f, kernelParams, extra));
    const uint64_t blocks = (uint64_t)config->gridDimX * config->gridDimY * config->gridDimZ;
    const uint64_t threads = blocks * config->blockDimX * config->blockDimY * config->blockDimZ;
    vgw_limit_begin(&launch, f, threads, vgw_meant(config->hStream, VGW_IS(cuLaunchKernelEx_ptsz)));
    return vgw_ran(f, vgw_limit_end(&launch, real(config, f, kernelParams, extra)));
}

CUresult vgw_launch_old(vgw_fn_launch_old *real, CUfunction f)
{
    struct vgw_launch launch;
    if (vgw_no_limit())
        return vgw_ran(f, real(f));
    vgw_limit_begin(&launch, f, 0, NULL);
    return vgw_ran(f, vgw_limit_end(&launch, real(f)));
}

CUresult vgw_launch_grid(vgw_fn_launch_grid *real, CUfunction f, int grid_width, int grid_height)
{
    struct vgw_launch launch;
    if (vgw_no_limit())
        return vgw_ran(f, real(f, grid_width, grid_height));
    vgw_limit_begin(&launch, f, (uint64_t)grid_width * (uint64_t)grid_height, NULL);
    return vgw_ran(f, vgw_limit_end(&launch, real(f, grid_width, grid_height)));
}

CUresult vgw_launch_grid_async(vgw_fn_launch_grid_async *real, CUfunction f, int grid_width, int grid_height,
                               CUstream hStream)
{
    struct vgw_launch launch;
    if (vgw_no_limit())
        return vgw_ran(f, real(f, grid_width, grid_height, hStream));
    vgw_limit_begin(&launch, f, (uint64_t)grid_width * (uint64_t)grid_height, hStream);
    return vgw_ran(f, vgw_limit_end(&launch, real(f, grid_width, grid_height, hStream)));
}

typedef void step(struct vgw_launch *launch, const CUDA_LAUNCH_PARAMS *kernel);

static void wait_for_kernel(struct vgw_launch *launch, const CUDA_LAUNCH_PARAMS *kernel)
{
    const uint64_t blocks = (uint64_t)kernel->gridDimX * kernel->gridDimY * kernel->gridDimZ;
    const uint64_t threads = blocks * kernel->blockDimX * kernel->blockDimY * kernel->blockDimZ;
    wait_for(launch, kernel->function, threads, kernel->hStream);
}

static void begin_kernel(struct vgw_launch *launch, const CUDA_LAUNCH_PARAMS *kernel)
{
    (void)kernel;
    begin(launch);
}

static void ran_kernel(struct vgw_launch *launch, const CUDA_LAUNCH_PARAMS *kernel)
{
    (void)launch;
    vgw_ran(kernel->function, CUDA_SUCCESS);
}

/* A step for each kernel, in the context of its stream. */
static void each_kernel(step *step, struct vgw_launch *launches, const CUDA_LAUNCH_PARAMS *list, unsigned count)
{
    bool pushed;
    for (unsigned at = 0; at < count; at++) {
        if (vgw_stream_enter(list[at].hStream, &pushed) != CUDA_SUCCESS)
            continue; /* the driver will say what is wrong with it */
        step(&launches[at], &list[at]);
        vgw_stream_leave(pushed);
    }
}

/* A kernel on each of several GPUs, which may wait for one another: each GPU's share is waited for, and each kernel is
 * charged to its GPU. All waiting comes first: a launch that is being measured and not made yet could hold up another
 * one that holds up this one. */
CUresult vgw_launch_multi_device(vgw_fn_launch_multi_device *real, CUDA_LAUNCH_PARAMS *launchParamsList,
                                 unsigned int numDevices, unsigned int flags)
{
    struct vgw_launch launches[VGW_MAX_GPUS] = {{.limited = false}};
    if (launchParamsList == NULL || numDevices > VGW_MAX_GPUS)
        return real(launchParamsList, numDevices, flags); /* more than there are: the driver refuses it */
    const bool limited = !vgw_no_limit();
    if (limited && vgw_driver.cuStreamGetCtx == NULL)
        return vgw_refuse(); /* closed: whose kernels they are could not be told */
    if (limited) {
        each_kernel(wait_for_kernel, launches, launchParamsList, numDevices);
        each_kernel(begin_kernel, launches, launchParamsList, numDevices);
    }
    const CUresult result = real(launchParamsList, numDevices, flags);
    for (unsigned at = 0; at < numDevices; at++)
        vgw_limit_end(&launches[at], result);
    if (result == CUDA_SUCCESS)
        each_kernel(ran_kernel, launches, launchParamsList, numDevices);
    return result;
}

CUresult vgw_graph_launch(vgw_fn_graph_launch *real, CUgraphExec hGraphExec, CUstream hStream)
{
    struct vgw_launch launch;
    if (__builtin_expect(vgw_no_limit(), true))
        return vgw_ran(hGraphExec, real(hGraphExec, hStream));
    vgw_limit_begin(&launch, hGraphExec, 0, vgw_meant(hStream, VGW_IS(cuGraphLaunch_ptsz)));
    return vgw_ran(hGraphExec, vgw_limit_end(&launch, real(hGraphExec, hStream)));
}

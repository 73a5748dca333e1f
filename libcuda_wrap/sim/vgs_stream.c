/* vgs_stream.c - streams and events. A stream is a point of the GPU's virtual time: when all that was queued in it is done. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>

#include "vgs_driver.h"

struct CUevent_st {
    struct vgs_object head;
    unsigned int flags;
    bool recorded;
    uint32_t gpu;
    uint64_t end_virtual_ns; /* when what was queued before it is done */
    uint64_t recorded_ns;    /* it happens no earlier than it was asked for */
    uint64_t happened_ns;    /* 0: not known yet */
    CUstream stream;         /* and how many of its host functions come before */
    uint64_t host_ticket;
    CUgraph capture;
};

struct host_job {
    CUstream stream;
    CUhostFn function;
    void *argument;
    uint64_t ticket, end_virtual_ns;
};

static pthread_mutex_t host_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t host_moved = PTHREAD_COND_INITIALIZER;

CUstream vgs_stream(CUstream handle)
{
    CUcontext ctx = vgs_context();
    if (!ctx)
        return NULL;
    if ((uintptr_t)handle <= 2)
        return vgs_green_here() ? &vgs_green_here()->main : &ctx->main;
    return vgs_valid(handle, VGS_STREAM) ? handle : NULL;
}

static void wait_host(CUstream stream, uint64_t ticket)
{
    pthread_mutex_lock(&host_lock);
    while (stream->host_done < ticket)
        pthread_cond_wait(&host_moved, &host_lock);
    pthread_mutex_unlock(&host_lock);
}

static bool host_is_done(CUstream stream, uint64_t ticket)
{
    pthread_mutex_lock(&host_lock);
    bool done = stream->host_done >= ticket;
    pthread_mutex_unlock(&host_lock);
    return done;
}

static void *run_host_job(void *argument)
{
    struct host_job job = *(struct host_job *)argument;
    free(argument);
    vgs_wait(job.stream->head.ctx->gpu, job.end_virtual_ns);
    wait_host(job.stream, job.ticket - 1);
    job.function(job.argument);
    pthread_mutex_lock(&host_lock);
    job.stream->host_done = job.ticket;
    pthread_cond_broadcast(&host_moved);
    pthread_mutex_unlock(&host_lock);
    return NULL;
}

static uint64_t queued(CUstream stream)
{
    return __atomic_load_n(&stream->end_virtual_ns, __ATOMIC_RELAXED);
}

void vgs_queue_host(CUstream stream, CUhostFn function, void *argument)
{
    pthread_t thread;
    struct host_job *job = malloc(sizeof *job);
    if (!job)
        abort(); /* the simulation itself has no memory left */
    pthread_mutex_lock(&host_lock);
    *job = (struct host_job){stream, function, argument, ++stream->host_queued, queued(stream)};
    pthread_mutex_unlock(&host_lock);
    if (pthread_create(&thread, NULL, run_host_job, job) == 0)
        pthread_detach(thread);
    else
        run_host_job(job);
}

void vgs_wait_stream(CUstream stream)
{
    uint64_t ticket = __atomic_load_n(&stream->host_queued, __ATOMIC_RELAXED);
    vgs_wait(stream->head.ctx->gpu, queued(stream));
    if (ticket)
        wait_host(stream, ticket);
}

struct stream_list { /* a host function may create streams: no waiting while the registry is locked */
    CUstream *items;
    size_t count, room;
};

static bool collect(void *object, void *argument)
{
    struct stream_list *list = argument;
    if (list->count < list->room)
        list->items[list->count] = object;
    list->count++;
    return false;
}

void vgs_wait_context(CUcontext ctx)
{
    struct stream_list list = {0};
    vgs_each(VGS_STREAM, ctx, collect, &list);
    if (list.count) {
        list.room = list.count;
        list.count = 0;
        list.items = malloc(list.room * sizeof(CUstream));
        if (list.items)
            vgs_each(VGS_STREAM, ctx, collect, &list);
        for (size_t i = 0; list.items && i < list.count && i < list.room; i++)
            vgs_wait_stream(list.items[i]);
        free(list.items);
    }
    vgs_wait_stream(&ctx->main);
    vgs_greens_wait(ctx);
    vgs_pools_settle(ctx);
}

void vgs_queue_kernel(CUstream stream, uint64_t duration_ns)
{
    __atomic_store_n(&stream->end_virtual_ns, vgs_occupy(stream->head.ctx->gpu, duration_ns), __ATOMIC_RELAXED);
}

VGS_API cuStreamCreateWithPriority(CUstream *phStream, unsigned int flags, int priority)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(phStream && flags <= 1);
    CUstream stream = vgs_new(VGS_STREAM, sizeof *stream, ctx);
    VGS_CHECK(stream, CUDA_ERROR_OUT_OF_MEMORY);
    stream->id = vgs_next_id();
    stream->flags = flags;
    stream->green = vgs_green_here();
    stream->priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
    *phStream = stream;
    return CUDA_SUCCESS;
}

VGS_API cuStreamCreate(CUstream *phStream, unsigned int flags)
{
    VGS_ENTER();
    return cuStreamCreateWithPriority(phStream, flags, 0);
}

VGS_API cuStreamDestroy_v2(CUstream stream)
{
    VGS_ENTER_CONTEXT();
    VGS_CHECK(vgs_valid(stream, VGS_STREAM), CUDA_ERROR_INVALID_HANDLE);
    vgs_wait_stream(stream);
    vgs_delete(stream);
    return CUDA_SUCCESS;
}

/* The function's stream is then `stream`, never NULL. */
#define VGS_ENTER_STREAM()                                                                                             \
    VGS_ENTER_CONTEXT();                                                                                               \
    CUstream stream = vgs_stream(hStream);                                                                             \
    (void)ctx;                                                                                                         \
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE)

VGS_API cuStreamSynchronize(CUstream hStream)
{
    VGS_ENTER_STREAM();
    VGS_CHECK(!stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    vgs_wait_stream(stream);
    vgs_pools_settle(stream->head.ctx);
    return CUDA_SUCCESS;
}

VGS_API cuStreamQuery(CUstream hStream)
{
    VGS_ENTER_STREAM();
    VGS_CHECK(!stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    return vgs_done(stream->head.ctx->gpu, queued(stream)) && host_is_done(stream, stream->host_queued)
               ? CUDA_SUCCESS
               : CUDA_ERROR_NOT_READY;
}

VGS_API cuStreamGetFlags(CUstream hStream, unsigned int *flags)
{
    VGS_ENTER_STREAM();
    VGS_VALUE(flags);
    *flags = stream->flags;
    return CUDA_SUCCESS;
}

VGS_API cuStreamGetPriority(CUstream hStream, int *priority)
{
    VGS_ENTER_STREAM();
    VGS_VALUE(priority);
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

VGS_API cuStreamGetId(CUstream hStream, unsigned long long *id)
{
    VGS_ENTER_STREAM();
    VGS_VALUE(id);
    *id = stream->id;
    return CUDA_SUCCESS;
}

VGS_API cuStreamGetCtx(CUstream hStream, CUcontext *pctx)
{
    VGS_ENTER_STREAM();
    VGS_VALUE(pctx);
    *pctx = stream->green ? stream->green : stream->head.ctx;
    return CUDA_SUCCESS;
}

VGS_API cuStreamGetDevice(CUstream hStream, CUdevice *device)
{
    VGS_ENTER_STREAM();
    VGS_VALUE(device);
    *device = stream->head.ctx->device;
    return CUDA_SUCCESS;
}

VGS_API cuStreamWaitEvent(CUstream hStream, CUevent event, unsigned int flags)
{
    VGS_ENTER_STREAM();
    VGS_CHECK(vgs_valid(event, VGS_EVENT), CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(flags <= 1);
    if (event->capture)
        stream->capture = event->capture; /* the stream joins the capture */
    else if (event->recorded && event->gpu != stream->head.ctx->gpu)
        vgs_wait(event->gpu, event->end_virtual_ns); /* another GPU's clock: the program waits, and not the stream */
    else if (event->recorded && event->end_virtual_ns > queued(stream))
        __atomic_store_n(&stream->end_virtual_ns, event->end_virtual_ns, __ATOMIC_RELAXED);
    return CUDA_SUCCESS;
}

VGS_API cuEventCreate(CUevent *phEvent, unsigned int flags)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(phEvent && flags <= 7 && (flags & 6) != 4); /* between processes only without timing */
    CUevent event = vgs_new(VGS_EVENT, sizeof *event, ctx);
    VGS_CHECK(event, CUDA_ERROR_OUT_OF_MEMORY);
    event->flags = flags;
    *phEvent = event;
    return CUDA_SUCCESS;
}

VGS_API cuEventDestroy_v2(CUevent event)
{
    VGS_ENTER_CONTEXT();
    VGS_CHECK(vgs_valid(event, VGS_EVENT), CUDA_ERROR_INVALID_HANDLE);
    vgs_delete(event);
    return CUDA_SUCCESS;
}

static CUresult record(CUevent event, CUstream stream)
{
    VGS_CHECK(vgs_valid(event, VGS_EVENT), CUDA_ERROR_INVALID_HANDLE);
    VGS_CHECK(event->head.ctx == stream->head.ctx, CUDA_ERROR_INVALID_HANDLE);
    event->capture = stream->capture;
    event->recorded = !stream->capture;
    event->gpu = stream->head.ctx->gpu;
    event->end_virtual_ns = queued(stream);
    event->recorded_ns = vgs_now_ns();
    event->happened_ns = 0;
    event->stream = stream;
    event->host_ticket = stream->host_queued;
    return CUDA_SUCCESS;
}

bool vgs_event_record(CUevent event, CUcontext ctx, CUstream latest)
{
    return vgs_valid(event, VGS_EVENT) && event->head.ctx == ctx && record(event, latest) == CUDA_SUCCESS;
}

uint64_t vgs_event_end(CUevent event)
{
    return vgs_valid(event, VGS_EVENT) && event->recorded ? event->end_virtual_ns : 0;
}

VGS_API cuEventRecord(CUevent event, CUstream hStream)
{
    VGS_ENTER_STREAM();
    return record(event, stream);
}

VGS_API cuEventRecordWithFlags(CUevent event, CUstream hStream, unsigned int flags)
{
    VGS_ENTER_STREAM();
    VGS_VALUE(flags <= 1);
    return record(event, stream);
}

static bool happened(CUevent event)
{
    return !event->recorded ||
           (vgs_done(event->gpu, event->end_virtual_ns) && host_is_done(event->stream, event->host_ticket));
}

/* Of an event that has happened; asked early, as the past is not remembered for ever. */
static uint64_t time_of(CUevent event)
{
    uint64_t at = __atomic_load_n(&event->happened_ns, __ATOMIC_RELAXED);
    if (at == 0) {
        at = vgs_when(event->gpu, event->end_virtual_ns);
        if (at < event->recorded_ns)
            at = event->recorded_ns;
        __atomic_store_n(&event->happened_ns, at, __ATOMIC_RELAXED);
    }
    return at;
}

VGS_API cuEventQuery(CUevent event)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(event, VGS_EVENT), CUDA_ERROR_INVALID_HANDLE);
    VGS_CHECK(happened(event), CUDA_ERROR_NOT_READY);
    if (event->recorded)
        time_of(event);
    return CUDA_SUCCESS;
}

VGS_API cuEventSynchronize(CUevent event)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(event, VGS_EVENT), CUDA_ERROR_INVALID_HANDLE);
    if (event->recorded) {
        vgs_wait(event->gpu, event->end_virtual_ns);
        if (event->host_ticket)
            wait_host(event->stream, event->host_ticket);
        time_of(event);
        vgs_pools_settle(event->head.ctx);
    }
    return CUDA_SUCCESS;
}

static CUresult elapsed(float *milliseconds, CUevent start, CUevent end)
{
    VGS_VALUE(milliseconds);
    VGS_CHECK(vgs_valid(start, VGS_EVENT) && vgs_valid(end, VGS_EVENT), CUDA_ERROR_INVALID_HANDLE);
    VGS_CHECK(start->recorded && end->recorded && !((start->flags | end->flags) & 2), CUDA_ERROR_INVALID_HANDLE);
    VGS_CHECK(happened(start) && happened(end), CUDA_ERROR_NOT_READY);
    *milliseconds = (float)((double)((int64_t)(time_of(end) - time_of(start))) / 1e6);
    return CUDA_SUCCESS;
}

VGS_API cuEventElapsedTime(float *pMilliseconds, CUevent start, CUevent end)
{
    VGS_ENTER();
    return elapsed(pMilliseconds, start, end);
}

VGS_API cuEventElapsedTime_v2(float *pMilliseconds, CUevent start, CUevent end)
{
    VGS_ENTER();
    return elapsed(pMilliseconds, start, end);
}

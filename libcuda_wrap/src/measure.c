/* measure.c - launches in batches between two events of their stream, and what they really took.
 *
 * A batch is open while launches join it, closed once its second event is recorded, and settled when that event has
 * happened. If the stream ran dry while a batch was open, its end is not known, and what was estimated stands; the next
 * batches are then of one launch each, and grow again while the stream is kept busy. Batches of two streams may overlap:
 * only what lies after the end of the one settled before counts.
 *
 * `lock` is held across calls for events and queries of streams, which never call back into us; never across a launch. */
#include "vgw_measure.h"

#include <pthread.h>
#include <string.h>

#include "vgw_bucket.h"
#include "vgw_cost.h"
#include "vgw_driver.h"
#include "vgw_neighbours.h"
#include "vgw_past.h"
#include "vgw_region.h"

#define BATCHES      16u
#define KINDS        8u
#define BATCH_NS     2000000u  /* of estimated time: then a batch is closed */
#define SMALLEST_NS  50000u    /* goal of the first batch that may have more than one launch */
#define MOST_STRETCH 16.0      /* more neighbours at once are not believed */
#define LONG_NS      750000u   /* of one launch: shorter ones have moments enough at which nobody disturbs */
#define BACKLOG_NS   20000000u /* of estimated time, unmeasured: no more is launched */

struct batch {
    CUcontext context;
    CUstream stream;
    CUevent begin, end;
    struct vgw_cost *costs[KINDS];
    unsigned launches[KINDS];
    unsigned kinds;
    unsigned in_flight;             /* launches whose driver call has not returned */
    uint64_t estimated_ns;          /* of GPU time */
    uint64_t tokens;                /* taken */
    uint64_t opened_ns, running_ns; /* when it was opened; when it was last seen not to have ended */
    bool first;                     /* nothing else was under way when it was opened */
    bool unknown;                   /* has a launch that was never measured */
    bool closed, lost;
};

static struct lane { /* one per GPU */
    struct batch batches[BATCHES];
    uint64_t first, next; /* batches first to next - 1 are not settled; [next - 1] may be open */
    CUevent settled_end;  /* of the batch settled last, still in batches[(first - 1) % BATCHES] */
    CUcontext settled_context;
    uint64_t settled_end_ns, busy_since_ns; /* CLOCK_MONOTONIC; since when there has been something under way */
    uint64_t goal_ns;                       /* of a batch; 0: one launch each */
    uint64_t estimated_ns, tokens;
    double stretch; /* by neighbours, of the last batches: 1 is none */
    bool unknown;
} lanes[VGW_MAX_GPUS];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Elsewhere in this process a stream may be captured in a way that forbids questions about any stream; ours are
 * harmless. Called in pairs. */
static void relax(CUstreamCaptureMode *mode)
{
    if (vgw_driver.cuThreadExchangeStreamCaptureMode != NULL)
        vgw_driver.cuThreadExchangeStreamCaptureMode(mode);
}

static struct batch *newest(struct lane *lane)
{
    return lane->next == lane->first ? NULL : &lane->batches[(lane->next - 1) % BATCHES];
}

static struct batch *open_batch(struct lane *lane)
{
    struct batch *batch = newest(lane);
    return batch == NULL || batch->closed ? NULL : batch;
}

static void tell_owed(struct lane *lane, unsigned gpu)
{
    const bool any = lane->first != lane->next;
    vgw_bucket_owe(gpu, any ? lane->tokens : 0, any ? lane->batches[lane->first % BATCHES].opened_ns : 0);
}

/* Until when all that is under way will run. With a margin: who lends while it computes would be held up the longer. */
static void tell_active(const struct lane *lane, unsigned gpu)
{
    const double stretch = lane->stretch < 1 ? 1 : lane->stretch > MOST_STRETCH ? MOST_STRETCH : lane->stretch;
    const uint64_t now = vgw_now_ns(), left = (uint64_t)((double)lane->estimated_ns * stretch);
    vgw_tell_active(gpu, now + left + left / 4);
    vgw_past_work(gpu, now, now + 2 * left); /* twice: who waits for a kernel cannot tell more before it has ended */
}

static void close_batch(struct batch *batch)
{
    batch->closed = true;
    if (!batch->lost && vgw_driver.cuEventRecord(batch->end, batch->stream) != CUDA_SUCCESS)
        batch->lost = true;
}

/* Nanoseconds between two events that have happened; negative: the other way round. false: not to be had. */
static bool between(CUevent from, CUevent to, int64_t *ns)
{
    float ms = 0;
    if (vgw_driver.cuEventElapsedTime(&ms, from, to) != CUDA_SUCCESS)
        return false;
    *ns = (int64_t)((double)ms * 1e6);
    return true;
}

/* What the batch took is shared out among its kinds in proportion to their estimates; returns the new estimate. */
static uint64_t learn(struct batch *batch, uint64_t took_ns, bool own)
{
    const uint64_t now = vgw_now_ns();
    uint64_t sum = 0, known = 0;
    for (unsigned kind = 0; kind < batch->kinds; kind++)
        known += batch->launches[kind] * (batch->costs[kind]->ns + 1);
    for (unsigned kind = 0; kind < batch->kinds; kind++) {
        struct vgw_cost *cost = batch->costs[kind];
        const double part = (double)(cost->ns + 1) / (double)(known == 0 ? 1 : known);
        vgw_cost_learn(cost, (uint64_t)(part * (double)took_ns), own, now);
        sum += batch->launches[kind] * cost->ns;
    }
    return sum;
}

struct span {
    uint64_t took_ns, own_ns, end_ns; /* own: not counted with the batch settled before; end: CLOCK_MONOTONIC */
    bool overlaps;
};

/* When the batch ran. The GPU's clock is not ours: from a batch that was begun on an idle GPU each end is known by the one
 * before, within what was seen. false: it cannot be told. */
static bool span_of(const struct lane *lane, const struct batch *batch, struct span *span)
{
    int64_t took = 0, since = 0;
    if (batch->lost || !between(batch->begin, batch->end, &took) || took < 0)
        return false;
    const bool follows = lane->settled_end != NULL && lane->settled_context == batch->context &&
                         between(lane->settled_end, batch->end, &since);
    const uint64_t now = vgw_now_ns();
    span->overlaps = follows && since < took;
    span->took_ns = (uint64_t)took;
    span->own_ns = span->overlaps ? (uint64_t)(since < 0 ? 0 : since) : (uint64_t)took;
    span->end_ns =
        follows && !batch->first ? lane->settled_end_ns + (uint64_t)since : batch->opened_ns + (uint64_t)took;
    span->end_ns = span->end_ns < batch->running_ns ? batch->running_ns : span->end_ns;
    span->end_ns = span->end_ns > now ? now : span->end_ns;
    return true;
}

/* What the batch is charged, and what is learned from it. */
static uint64_t charge_of(struct lane *lane, unsigned gpu, struct batch *batch, const struct span *span,
                          uint64_t launches)
{
    struct vgw_own own = {span->own_ns, vgw_alone(gpu, vgw_now_ns())};
    if (!own.all_seen && span->took_ns >= LONG_NS * launches)
        own = vgw_past_own(gpu, span->end_ns - span->own_ns, span->end_ns);
    const double part = span->own_ns == 0 ? 1 : (double)own.ns / (double)span->own_ns;
    const uint64_t took = (uint64_t)(part * (double)span->took_ns);
    const bool learns = !span->overlaps || batch->unknown;
    const uint64_t expected = learns ? learn(batch, took, own.all_seen) : batch->estimated_ns;
    if (!span->overlaps && expected > 0)
        lane->stretch = (lane->stretch + (double)span->took_ns / (double)expected) / 2;
    return own.all_seen || own.ns < expected ? own.ns : expected;
}

static void settle(struct lane *lane, unsigned gpu, struct batch *batch)
{
    struct span span;
    uint64_t charge_ns = batch->estimated_ns, launches = 0;
    for (unsigned kind = 0; kind < batch->kinds; kind++)
        launches += batch->launches[kind];
    const bool measured = span_of(lane, batch, &span);
    if (measured)
        charge_ns = charge_of(lane, gpu, batch, &span, launches);
    const uint64_t tokens = vgw_bucket_tokens(gpu, charge_ns);
    vgw_bucket_correct(gpu, (int64_t)(tokens - batch->tokens));
    vgw_bucket_used(gpu, tokens, launches);
    lane->settled_end = batch->lost ? NULL : batch->end;
    lane->settled_end_ns = measured ? span.end_ns : vgw_now_ns();
    lane->settled_context = batch->context;
    lane->estimated_ns -= batch->estimated_ns;
    lane->tokens -= batch->tokens;
    lane->first++;
}

static void settle_ready(struct lane *lane, unsigned gpu)
{
    const uint64_t first = lane->first;
    while (lane->first != lane->next) {
        struct batch *batch = &lane->batches[lane->first % BATCHES];
        if (!batch->closed)
            break;
        if (!batch->lost && vgw_driver.cuEventQuery(batch->end) == CUDA_ERROR_NOT_READY) {
            batch->running_ns = vgw_now_ns();
            const uint64_t longer = (batch->running_ns - batch->opened_ns) / 8; /* until it is looked at again */
            vgw_past_work(gpu, lane->busy_since_ns, batch->running_ns + longer);
            break;
        }
        settle(lane, gpu, batch);
    }
    if (lane->first != first && lane->first == lane->next)
        vgw_past_done(gpu, lane->busy_since_ns, lane->settled_end_ns);
    lane->unknown = false;
    for (uint64_t at = lane->first; at != lane->next; at++)
        lane->unknown |= lane->batches[at % BATCHES].unknown;
    if (lane->first != first)
        tell_owed(lane, gpu);
}

uint64_t vgw_measure_estimate(uint64_t key)
{
    pthread_mutex_lock(&lock);
    const struct vgw_cost *cost = vgw_cost_of(key);
    const uint64_t ns = cost->samples == 0 ? VGW_COST_UNKNOWN_NS : cost->ns;
    pthread_mutex_unlock(&lock);
    return ns;
}

bool vgw_measure_room(unsigned gpu)
{
    struct lane *lane = &lanes[gpu];
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    pthread_mutex_lock(&lock);
    relax(&mode);
    settle_ready(lane, gpu);
    /* the last two places are for threads that have seen room and not begun yet; the one before `first` has the end
     * that the next is compared with */
    bool room = !lane->unknown && lane->estimated_ns < BACKLOG_NS && lane->next - lane->first < BATCHES - 4;
    struct batch *open = open_batch(lane);
    if (!room && open != NULL && open->in_flight == 0)
        close_batch(open);
    relax(&mode);
    pthread_mutex_unlock(&lock);
    return room;
}

bool vgw_measure_under_way(unsigned gpu)
{
    pthread_mutex_lock(&lock);
    const struct lane *lane = &lanes[gpu];
    const bool any = lane->first != lane->next && lane->batches[lane->first % BATCHES].closed;
    pthread_mutex_unlock(&lock);
    return any;
}

/* Two events of the context; those of the batch that was here before, if they are of the same. */
static bool have_events(struct batch *batch, CUcontext context)
{
    if (batch->context == context && batch->begin != NULL && batch->end != NULL)
        return true;
    if (batch->begin != NULL && batch->end != NULL) {
        vgw_driver.cuEventDestroy_v2(batch->begin);
        vgw_driver.cuEventDestroy_v2(batch->end);
    }
    batch->begin = batch->end = NULL;
    return vgw_driver.cuEventCreate(&batch->begin, 0) == CUDA_SUCCESS &&
           vgw_driver.cuEventCreate(&batch->end, 0) == CUDA_SUCCESS;
}

static struct batch *new_batch(struct lane *lane, const struct vgw_launch *launch)
{
    if (lane->next - lane->first >= BATCHES - 1)
        return NULL;
    struct batch *batch = &lane->batches[lane->next % BATCHES];
    const struct batch old = *batch;
    *batch = (struct batch){.begin = old.begin, .end = old.end, .context = old.context};
    batch->lost =
        !have_events(batch, launch->context) || vgw_driver.cuEventRecord(batch->begin, launch->stream) != CUDA_SUCCESS;
    batch->context = launch->context;
    batch->stream = launch->stream;
    batch->opened_ns = vgw_now_ns();
    batch->first = lane->first == lane->next;
    if (batch->first)
        lane->busy_since_ns = batch->opened_ns;
    lane->next++;
    return batch;
}

/* The open batch if this launch may join it; else it is closed. */
static struct batch *joinable(struct lane *lane, const struct vgw_launch *launch, const struct vgw_cost *cost)
{
    struct batch *batch = newest(lane);
    if (batch == NULL)
        return NULL;
    const bool same = batch->stream == launch->stream && batch->context == launch->context;
    const bool may_be_dry = same && vgw_now_ns() - batch->opened_ns >= batch->estimated_ns / 2;
    const bool dry = may_be_dry && batch->in_flight == 0 && vgw_driver.cuStreamQuery(batch->stream) == CUDA_SUCCESS;
    if (dry)
        lane->goal_ns = 0;
    else if (same && batch->closed)
        lane->goal_ns = lane->goal_ns == 0 ? SMALLEST_NS : lane->goal_ns * 2 < BATCH_NS ? lane->goal_ns * 2 : BATCH_NS;
    if (batch->closed)
        return NULL;
    bool joins = same && !dry && cost->samples != 0 && !batch->unknown;
    bool known_here = batch->kinds < KINDS;
    for (unsigned kind = 0; kind < batch->kinds; kind++)
        known_here |= batch->costs[kind] == cost;
    joins = joins && known_here;
    if (!joins) {
        batch->lost |= dry; /* when it ended is not known any more */
        close_batch(batch);
    }
    return joins ? batch : NULL;
}

bool vgw_measure_begin(const struct vgw_launch *launch)
{
    struct lane *lane = &lanes[launch->gpu];
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    pthread_mutex_lock(&lock);
    relax(&mode);
    struct vgw_cost *cost = vgw_cost_of(launch->key);
    struct batch *batch = joinable(lane, launch, cost);
    if (batch == NULL)
        batch = new_batch(lane, launch);
    if (batch != NULL) {
        unsigned kind = 0;
        while (kind < batch->kinds && batch->costs[kind] != cost)
            kind++;
        batch->costs[kind] = cost;
        batch->launches[kind]++;
        batch->kinds += kind == batch->kinds;
        batch->in_flight++;
        batch->unknown |= cost->samples == 0;
        const uint64_t ns = cost->samples == 0 ? VGW_COST_UNKNOWN_NS : cost->ns;
        batch->estimated_ns += ns;
        batch->tokens += launch->tokens;
        lane->estimated_ns += ns;
        lane->tokens += launch->tokens;
        lane->unknown |= batch->unknown;
        tell_owed(lane, launch->gpu);
        tell_active(lane, launch->gpu);
    }
    relax(&mode);
    pthread_mutex_unlock(&lock);
    if (batch == NULL) /* many threads at once: what was taken is what it costs */
        vgw_bucket_used(launch->gpu, launch->tokens, 1);
    return batch != NULL;
}

void vgw_measure_end(const struct vgw_launch *launch, CUresult result)
{
    struct lane *lane = &lanes[launch->gpu];
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    pthread_mutex_lock(&lock);
    relax(&mode);
    /* if another thread's launch has closed it meanwhile, it measures a little less than it counts */
    for (uint64_t at = lane->first; at != lane->next; at++) {
        struct batch *batch = &lane->batches[at % BATCHES];
        if (batch->stream != launch->stream || batch->context != launch->context || batch->in_flight == 0)
            continue;
        batch->in_flight--;
        if (result != CUDA_SUCCESS)
            batch->lost = true; /* it has a launch less than it says */
        if (!batch->closed && batch->in_flight == 0 && (batch->unknown || batch->estimated_ns >= lane->goal_ns))
            close_batch(batch);
        break;
    }
    relax(&mode);
    pthread_mutex_unlock(&lock);
}

void vgw_measure_forget(CUcontext context)
{
    pthread_mutex_lock(&lock);
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS; gpu++) {
        struct lane *lane = &lanes[gpu];
        for (unsigned at = 0; at < BATCHES; at++) {
            struct batch *batch = &lane->batches[at];
            if (batch->context != context)
                continue;
            batch->begin = batch->end = NULL; /* they go with the context */
            batch->context = NULL;
            batch->closed = batch->lost = true;
        }
        if (lane->settled_context == context)
            lane->settled_end = NULL;
    }
    pthread_mutex_unlock(&lock);
}

void vgw_measure_stream_ends(CUstream stream)
{
    pthread_mutex_lock(&lock);
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS; gpu++) {
        struct batch *batch = open_batch(&lanes[gpu]);
        if (batch != NULL && batch->stream == stream)
            close_batch(batch);
    }
    pthread_mutex_unlock(&lock);
}

void vgw_measure_forked(void)
{
    pthread_mutex_init(&lock, NULL);
    memset(lanes, 0, sizeof lanes);
    vgw_cost_forget_all();
    vgw_past_forked();
}

/* bucket.c - the tokens of include/vgw_usage.h. No lock, and nothing that a process which is stopped or killed between
 * two instructions could hold: the worst that it can do is to lose what the share has added since the last refill. */
#include "vgw_bucket.h"

#include <time.h>

#include "vgw_neighbours.h"
#include "vgw_region.h"

#define REFILL_NS 20000u  /* not more often: each refill drops a fraction of a token */
#define BORROW_NS 5000000 /* borrowed tokens are kept up to here: what is given back late is little */
#define GPU_BITS  4u

#define CHARGE_LEAST 250u /* permille, whatever the host has found out: LEAST, MOST of vgpu/monitor/calibrate.py */
#define CHARGE_MOST  2000u

uint64_t vgw_now_ns(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint32_t vgw_bucket_share(unsigned gpu)
{
    const uint32_t percent = __atomic_load_n(&vgw_quota->gpus[gpu].cores_percent, __ATOMIC_RELAXED);
    return percent >= 1 && percent <= 100 ? percent : 100; /* 0 in the file of an older host: nothing asked */
}

static void add(struct vgw_limiter *limiter, int64_t tokens, int64_t most)
{
    int64_t seen = __atomic_load_n(&limiter->tokens_ns, __ATOMIC_RELAXED), then;
    do {
        if (seen > most - tokens)
            then = tokens > 0 && seen > most ? seen : most;
        else if (__builtin_add_overflow(seen, tokens, &then))
            then = INT64_MIN; /* only where somebody has written nonsense */
    } while (!__atomic_compare_exchange_n(&limiter->tokens_ns, &seen, then, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
}

static void tell(unsigned gpu, const struct vgw_limiter *limiter)
{
    vgw_tell_bucket(gpu, __atomic_load_n(&limiter->tokens_ns, __ATOMIC_RELAXED),
                    __atomic_load_n(&limiter->refilled_ns, __ATOMIC_RELAXED));
}

static void refill(struct vgw_limiter *limiter, uint32_t share)
{
    const uint64_t now = vgw_now_ns();
    uint64_t then = __atomic_load_n(&limiter->refilled_ns, __ATOMIC_RELAXED);
    if (now >= then && now - then < REFILL_NS)
        return;
    if (!__atomic_compare_exchange_n(&limiter->refilled_ns, &then, now, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return; /* another has this stretch of time */
    const uint64_t passed = now < then || then == 0 ? 0 : now - then;
    add(limiter, (int64_t)(passed * share / 100), VGW_BUCKET_NS);
}

uint64_t vgw_bucket_take(unsigned gpu, uint64_t tokens, uint32_t share)
{
    struct vgw_limiter *limiter = &vgw_usage->gpus[gpu].limiter;
    refill(limiter, share);
    int64_t seen = __atomic_load_n(&limiter->tokens_ns, __ATOMIC_RELAXED);
    while (seen > 0)
        if (__atomic_compare_exchange_n(&limiter->tokens_ns, &seen, seen - (int64_t)tokens, true, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED)) {
            tell(gpu, limiter);
            return 0;
        }
    return (1 - (uint64_t)seen) * 100 / share + 1; /* modulo 2^64: right also for the deepest debt */
}

void vgw_bucket_correct(unsigned gpu, int64_t tokens)
{
    struct vgw_limiter *limiter = &vgw_usage->gpus[gpu].limiter;
    add(limiter, -tokens, VGW_BUCKET_NS);
    tell(gpu, limiter);
}

bool vgw_bucket_soft(unsigned gpu)
{
    return (__atomic_load_n(&vgw_quota->gpus[gpu].flags, __ATOMIC_RELAXED) & VGW_FLAG_SOFT) != 0;
}

bool vgw_bucket_borrow(unsigned gpu)
{
    const uint64_t idle_ns = vgw_bucket_soft(gpu) ? vgw_idle_time(gpu, vgw_now_ns()) : 0;
    if (idle_ns > 0)
        add(&vgw_usage->gpus[gpu].limiter, (int64_t)idle_ns, BORROW_NS);
    return idle_ns > 0;
}

uint64_t vgw_bucket_tokens(unsigned gpu, uint64_t gpu_ns)
{
    const struct vgw_quota_gpu *quota = &vgw_quota->gpus[gpu];
    uint64_t permille = __atomic_load_n(&quota->charge_permille, __ATOMIC_RELAXED);
    struct timespec now = {0, 0};
    if (permille == 0)
        return gpu_ns;
    clock_gettime(CLOCK_BOOTTIME, &now);
    if (now.tv_sec >= (time_t)__atomic_load_n(&quota->charge_until_s, __ATOMIC_RELAXED))
        return gpu_ns; /* the monitor has stopped: what is measured is what counts */
    permille = permille < CHARGE_LEAST ? CHARGE_LEAST : permille > CHARGE_MOST ? CHARGE_MOST : permille;
    return gpu_ns * permille / 1000;
}

void vgw_bucket_owe(unsigned gpu, uint64_t tokens, uint64_t since_ns)
{
    const int slot = vgw_own_slot();
    if (slot < 0)
        return;
    struct vgw_owed *owed = vgw_usage->slots[slot].owed, *mine = NULL;
    for (unsigned at = 0; at < VGW_OWED && mine == NULL; at++) {
        const uint64_t seen = __atomic_load_n(&owed[at].tokens, __ATOMIC_RELAXED);
        if (seen == 0 || (seen & ((1u << GPU_BITS) - 1)) == gpu)
            mine = &owed[at];
    }
    if (mine == NULL)
        return; /* its fourth GPU: nothing will be given back, which is the safe side */
    __atomic_store_n(&mine->since_ns, since_ns, __ATOMIC_RELEASE);
    __atomic_store_n(&mine->tokens, tokens == 0 ? 0 : tokens << GPU_BITS | gpu, __ATOMIC_RELEASE);
}

void vgw_bucket_recover(unsigned slot)
{
    struct vgw_owed *owed = vgw_usage->slots[slot].owed;
    const uint64_t now = vgw_now_ns();
    for (unsigned at = 0; at < VGW_OWED; at++) {
        const uint64_t word = __atomic_exchange_n(&owed[at].tokens, 0, __ATOMIC_ACQ_REL), tokens = word >> GPU_BITS;
        const uint64_t since = __atomic_load_n(&owed[at].since_ns, __ATOMIC_ACQUIRE);
        const uint64_t ran = now > since ? now - since : 0;
        if (tokens > ran)
            vgw_bucket_correct((unsigned)(word & ((1u << GPU_BITS) - 1)), -(int64_t)(tokens - ran));
    }
}

void vgw_bucket_waited(unsigned gpu, uint64_t ns)
{
    const uint64_t us = ns / 1000;
    unsigned bucket = us == 0 ? 0 : 64u - (unsigned)__builtin_clzll(us);
    if (bucket >= VGW_WAIT_BUCKETS)
        bucket = VGW_WAIT_BUCKETS - 1;
    __atomic_fetch_add(&vgw_usage->gpus[gpu].waits[bucket], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&vgw_usage->gpus[gpu].throttled_ns, ns, __ATOMIC_RELAXED);
}

void vgw_bucket_used(unsigned gpu, uint64_t gpu_ns, uint64_t launches)
{
    const int slot = vgw_own_slot();
    __atomic_fetch_add(&vgw_usage->gpus[gpu].launches, launches, __ATOMIC_RELAXED);
    __atomic_fetch_add(&vgw_usage->gpus[gpu].busy_ns, gpu_ns, __ATOMIC_RELAXED);
    if (slot >= 0)
        __atomic_fetch_add(&vgw_usage->slots[slot].gpus[gpu].busy_ns, gpu_ns, __ATOMIC_RELAXED);
}

/* ledger.c - the lock-free, crash-safe accounting of include/vgw_usage.h; docs/accounting.md has the argument. */
#include "vgw_ledger.h"

#include "vgw_swap16.h"

#ifndef VGW_STEP
#define VGW_STEP() ((void)0) /* tests switch or end the process here: at every touch of shared memory */
#endif

#ifndef VGW_SEQ_WORD
#define VGW_SEQ_WORD 1023u /* the sequence number's part in a GPU's word (tests: less, so that it comes round), */
#endif
#define VGW_SEQ_PENDING 0x7ffffull /* in a slot's pending, */
#define VGW_SEQ_HELD    0xfffffull /* and in its held */
#define VGW_NEGATIVE    (1ull << 19)

struct state { /* a GPU's word and stamp, as they were together */
    uint64_t word;
    uint64_t stamp;
};

static uint64_t load(const uint64_t *at)
{
    VGW_STEP();
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static void store(uint64_t *at, uint64_t value)
{
    VGW_STEP();
    __atomic_store_n(at, value, __ATOMIC_RELEASE);
    VGW_STEP();
}

static bool swap(uint64_t *at, uint64_t from, uint64_t to)
{
    VGW_STEP();
    const bool done = __atomic_compare_exchange_n(at, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
    VGW_STEP();
    return done;
}

static bool swap_state(struct vgw_usage_gpu *gpu, struct state from, struct state to)
{
    VGW_STEP();
    const uint64_t old[2] = {from.word, from.stamp}, new[2] = {to.word, to.stamp};
    const bool done = vgw_swap16(&gpu->word, old, new);
    VGW_STEP();
    return done;
}

static uint64_t bytes_of(uint64_t packed)
{
    return packed >> 20;
}

static unsigned slot_of(struct state state)
{
    return (unsigned)(state.word >> 10) & 1023u;
}

/* No operation came between the two reads of the stamp, so the word between them belongs to it. */
static struct state read_state(const struct vgw_usage_gpu *gpu)
{
    struct state state;
    do {
        state.stamp = load(&gpu->stamp);
        state.word = load(&gpu->word);
    } while (load(&gpu->stamp) != state.stamp);
    return state;
}

/* Acknowledges the operation whose tag `state` has, so that the tag may be replaced. */
static void help(struct vgw_usage *usage, unsigned gpu, struct state state)
{
    uint64_t *acked = &usage->slots[slot_of(state)].gpus[gpu].acked;
    const uint64_t seen = load(acked);
    if (((seen + 1 - state.word) & VGW_SEQ_WORD) == 0 && load(&usage->gpus[gpu].stamp) == state.stamp)
        swap(acked, seen, seen + 1);
}

/* limit: NULL for giving back. */
static bool operate(struct vgw_usage *usage, unsigned slot, unsigned gpu, uint64_t bytes, const uint64_t *limit)
{
    struct vgw_usage_gpu *total = &usage->gpus[gpu];
    struct vgw_usage_slot_gpu *own = &usage->slots[slot].gpus[gpu];
    const uint64_t before = load(&own->acked), sequence = before + 1, held = bytes_of(load(&own->held));
    if (limit == NULL && bytes > held)
        bytes = held; /* nobody gives back what is not his: the total would fall below the truth */
    store(&own->pending, bytes << 20 | (limit == NULL ? VGW_NEGATIVE : 0) | (sequence & VGW_SEQ_PENDING));
    struct state old, new;
    do {
        old = read_state(total);
        help(usage, gpu, old);
        const uint64_t used = bytes_of(old.word);
        uint64_t then = used - bytes;
        if (limit != NULL) {
            const uint64_t said = load(limit);
            const uint64_t most = said < VGW_BYTES_MAX ? said : VGW_BYTES_MAX; /* as much as the word can say */
            if (bytes > most || used > most - bytes)
                return false; /* pending stays: its sequence number is in no word, so it is not done */
            then = used + bytes;
        }
        new = (struct state){then << 20 | (uint64_t)slot << 10 | (sequence & VGW_SEQ_WORD), old.stamp + 1};
    } while (!swap_state(total, old, new));
    swap(&own->acked, before, sequence); /* or another has done it */
    store(&own->held, (limit == NULL ? held - bytes : held + bytes) << 20 | (sequence & VGW_SEQ_HELD));
    return true;
}

bool vgw_ledger_take(struct vgw_usage *usage, unsigned slot, unsigned gpu, uint64_t bytes, const uint64_t *limit)
{
    if (bytes > VGW_BYTES_MAX || !operate(usage, slot, gpu, bytes, limit))
        return false;
    struct vgw_usage_gpu *total = &usage->gpus[gpu];
    const uint64_t used = bytes_of(load(&total->word));
    uint64_t peak = __atomic_load_n(&total->peak_bytes, __ATOMIC_RELAXED); /* a statistic: a kill may lose it */
    while (used > peak &&
           !__atomic_compare_exchange_n(&total->peak_bytes, &peak, used, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
    return true;
}

void vgw_ledger_give(struct vgw_usage *usage, unsigned slot, unsigned gpu, uint64_t bytes)
{
    operate(usage, slot, gpu, bytes, NULL);
}

/* What the dead owner's last operation has become decides what it held; storing that ends the operation. */
static uint64_t settle(struct vgw_usage *usage, unsigned slot, unsigned gpu)
{
    struct vgw_usage_slot_gpu *own = &usage->slots[slot].gpus[gpu];
    const uint64_t pending = load(&own->pending), held = load(&own->held);
    const struct state state =
        read_state(&usage->gpus[gpu]); /* before acked: its tag goes only after it is acknowledged */
    help(usage, gpu, state);
    const uint64_t acked = load(&own->acked);
    if (((pending ^ held) & VGW_SEQ_PENDING) == 0 || ((pending ^ acked) & VGW_SEQ_PENDING) != 0)
        return bytes_of(held); /* stored already, or in no word */
    const uint64_t delta = bytes_of(pending);
    const uint64_t now = (pending & VGW_NEGATIVE) ? bytes_of(held) - delta : bytes_of(held) + delta;
    store(&own->held, now << 20 | (acked & VGW_SEQ_HELD));
    return now;
}

uint64_t vgw_ledger_recover(struct vgw_usage *usage, unsigned slot, unsigned gpu)
{
    const uint64_t held = settle(usage, slot, gpu);
    if (held != 0)
        vgw_ledger_give(usage, slot, gpu, held);
    return held;
}

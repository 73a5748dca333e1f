/* vgs_lock.c - accounting of device memory: one lock per GPU, robust against owners that die. */
#define _GNU_SOURCE
#include "vgs_lock.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WAITED      0x80000000u
#define SPINS       100
#define PATIENCE_NS 1000000 /* then see whether the owner lives */

static void recount(uint32_t gpu)
{
    uint64_t sum = 0;
    for (uint32_t slot = 0; slot < VGS_MAX_SLOTS; slot++)
        sum += vgs_state->slots[slot].gpus[gpu].bytes;
    vgs_state->gpus[gpu].used_bytes = sum;
}

/* The lock is held with value `seen`: waits a little, and takes it over when its owner is dead. True: it is ours now. */
static bool wait_or_take_over(uint32_t gpu, uint32_t seen, uint32_t as)
{
    uint32_t *word = &vgs_state->gpus[gpu].lock;
    if (!(seen & WAITED)) {
        uint32_t waited = seen | WAITED;
        if (!__atomic_compare_exchange_n(word, &seen, waited, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return false;
        seen = waited;
    }
    struct timespec patience = {.tv_nsec = PATIENCE_NS};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &patience, NULL, 0);
    if (__atomic_load_n(word, __ATOMIC_RELAXED) != seen || vgs_slot_lives((seen & ~WAITED) - 1))
        return false;
    if (!__atomic_compare_exchange_n(word, &seen, (as + 1) | WAITED, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return false;
    recount(gpu);
    return true;
}

void vgs_lock(uint32_t gpu, uint32_t as)
{
    uint32_t *word = &vgs_state->gpus[gpu].lock;
    uint32_t mine = as + 1;
    for (uint32_t attempt = 0;; attempt++) {
        uint32_t seen = 0;
        if (__atomic_compare_exchange_n(word, &seen, mine, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            return;
        if (attempt < SPINS)
            continue;
        mine = (as + 1) | WAITED; /* others may wait beside us: our unlock has to wake them */
        if (wait_or_take_over(gpu, seen, as))
            return;
    }
}

void vgs_unlock(uint32_t gpu)
{
    uint32_t *word = &vgs_state->gpus[gpu].lock;
    if (__atomic_exchange_n(word, 0, __ATOMIC_RELEASE) & WAITED)
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

void vgs_lock_inherit(uint32_t gpu, uint32_t slot)
{
    if ((__atomic_load_n(&vgs_state->gpus[gpu].lock, __ATOMIC_ACQUIRE) & ~WAITED) == slot + 1) {
        recount(gpu);
        vgs_unlock(gpu);
    }
}

static bool charge_once(uint32_t gpu, uint64_t bytes)
{
    struct vgs_gpu *card = &vgs_state->gpus[gpu];
    vgs_lock(gpu, vgs_slot);
    bool fits = bytes <= card->memory_bytes && card->used_bytes <= card->memory_bytes - bytes;
    if (fits) {
        vgs_state->slots[vgs_slot].gpus[gpu].bytes += bytes;
        card->used_bytes += bytes;
    }
    vgs_unlock(gpu);
    return fits;
}

bool vgs_charge(uint32_t gpu, uint64_t bytes)
{
    if (charge_once(gpu, bytes))
        return true;
    vgs_reap();
    return charge_once(gpu, bytes);
}

void vgs_refund(uint32_t gpu, uint64_t bytes)
{
    vgs_lock(gpu, vgs_slot);
    vgs_state->slots[vgs_slot].gpus[gpu].bytes -= bytes;
    vgs_state->gpus[gpu].used_bytes -= bytes;
    vgs_unlock(gpu);
}

uint64_t vgs_used(uint32_t gpu)
{
    uint64_t sum = 0;
    uint32_t high = __atomic_load_n(&vgs_state->slot_high, __ATOMIC_RELAXED);
    for (uint32_t slot = 0; slot < high && slot < VGS_MAX_SLOTS; slot++) {
        uint64_t bytes = __atomic_load_n(&vgs_state->slots[slot].gpus[gpu].bytes, __ATOMIC_RELAXED);
        if (bytes && vgs_slot_lives(slot))
            sum += bytes;
    }
    return sum;
}

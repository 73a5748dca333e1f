/* vgw_ledger.h - bytes in use on one GPU, exact although any process may be killed between any two instructions.
 *
 * No locks and no system calls. docs/accounting.md has the argument; include/vgw_usage.h the layout.
 * The caller sees to it that a slot has one operation at a time on a GPU: its process by a lock, or whoever took a dead
 * one over.
 */
#ifndef VGW_LEDGER_H
#define VGW_LEDGER_H

#include <stdbool.h>

#include "vgw_usage.h"

#define VGW_BYTES_MAX ((1ull << 44) - 1)

/* Takes `bytes` for `slot`, unless more than *limit would then be in use; false then. */
bool vgw_ledger_take(struct vgw_usage *usage, unsigned slot, unsigned gpu, uint64_t bytes, const uint64_t *limit);

/* Gives back `bytes` that `slot` holds. */
void vgw_ledger_give(struct vgw_usage *usage, unsigned slot, unsigned gpu, uint64_t bytes);

/* Finishes what a dead owner left half done, gives back all that the slot holds, and returns how much it was. */
uint64_t vgw_ledger_recover(struct vgw_usage *usage, unsigned slot, unsigned gpu);

/* Bytes in use on a GPU, all processes together; bytes that one slot holds. */
static inline uint64_t vgw_ledger_used(const struct vgw_usage *usage, unsigned gpu)
{
    return __atomic_load_n(&usage->gpus[gpu].word, __ATOMIC_ACQUIRE) >> 20;
}

static inline uint64_t vgw_ledger_held(const struct vgw_usage *usage, unsigned slot, unsigned gpu)
{
    return __atomic_load_n(&usage->slots[slot].gpus[gpu].held, __ATOMIC_ACQUIRE) >> 20;
}

#endif

/* vgs_region.h - the shared state, opened: which GPUs this process sees, its slot, and the accounting of device memory. */
#ifndef VGS_REGION_H
#define VGS_REGION_H

#include <stdbool.h>

#include "vgs_state.h"

enum vgs_open_result { VGS_OPEN_OK, VGS_OPEN_MISSING, VGS_OPEN_FAULTY };

struct vgs_visible { /* this process's GPUs, renumbered from 0 as the driver does */
    uint32_t count;
    uint32_t index[VGS_MAX_GPUS]; /* -> vgs_state.gpus */
};

extern struct vgs_state *vgs_state; /* NULL until vgs_open */
extern uint32_t vgs_slot;           /* VGS_MAX_SLOTS: none taken */

/* Maps `ctl`; once per process, callable again. */
enum vgs_open_result vgs_open(void);
/* GPUs whose gpu<minor> this process can open, and with `cuda_order` after CUDA_VISIBLE_DEVICES. */
void vgs_find_gpus(struct vgs_visible *visible, bool cuda_order);
/* Takes a slot, or says that all are taken. */
bool vgs_take_slot(void);
/* In a forked child: the slot is the parent's, and so is the lock that keeps it alive. */
void vgs_forget_slot(void);
/* Is `slot` the slot of a live process? */
bool vgs_slot_lives(uint32_t slot);

/* Device memory of GPU `gpu`, in bytes; false: it does not fit, after the dead were reaped. */
bool vgs_charge(uint32_t gpu, uint64_t bytes);
void vgs_refund(uint32_t gpu, uint64_t bytes);
/* Bytes in use by live processes. Takes no lock and changes nothing: for NVML, which has no slot. */
uint64_t vgs_used(uint32_t gpu);
/* Gives back what dead processes held. */
void vgs_reap(void);

uint64_t vgs_now_ns(void);
/* Kernel time `duration_ns` on `gpu`, not before `ready_ns`; returns when it ends (CLOCK_MONOTONIC). */
uint64_t vgs_occupy(uint32_t gpu, uint64_t ready_ns, uint64_t duration_ns);
void vgs_sleep_until(uint64_t ns);

#endif

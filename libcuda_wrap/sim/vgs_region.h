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
void vgs_sleep_until(uint64_t ns);

/* The GPU's virtual clock, which all times of kernels are told in: vgs_clock.c.
 * vgs_occupy: queues a kernel of this process behind its others; returns the virtual time at which it is done.
 * vgs_done: whether that has come. vgs_when: the real time at which it came, as far as the past is remembered.
 * vgs_wait: sleeps until it has come. vgs_busy: kernel time that a slot has had so far; VGS_MAX_SLOTS: the whole GPU. */
uint64_t vgs_occupy(uint32_t gpu, uint64_t duration_ns);
bool vgs_done(uint32_t gpu, uint64_t virtual_ns);
uint64_t vgs_when(uint32_t gpu, uint64_t virtual_ns);
void vgs_wait(uint32_t gpu, uint64_t virtual_ns);
uint64_t vgs_busy(uint32_t gpu, uint32_t slot);
/* A dead slot's kernels end here. */
void vgs_clock_drop(uint32_t gpu, uint32_t slot);
void vgs_clock_forked(void);

#endif

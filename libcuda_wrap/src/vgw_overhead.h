/* vgw_overhead.h - memory that a driver call takes without saying how much: contexts, modules, what it takes late. */
#ifndef VGW_OVERHEAD_H
#define VGW_OVERHEAD_H

#include "vgw_charge.h"

struct vgw_before {
    uint64_t figure; /* bytes that the driver says this process holds on the GPU */
    uint64_t whole;  /* bytes in use on the GPU, neighbours' too */
    uint64_t held;   /* bytes charged to this process */
    unsigned gpu;
    bool known; /* figure */
};

/* Before such a call. */
struct vgw_before vgw_overhead_before(unsigned gpu);

/* After it: charges what the process has grown by, and writes it down under kind and key until `link` ends. false: the
 * quota has not that much left, nothing is charged; the caller undoes its call. */
bool vgw_overhead_after(const struct vgw_before *before, enum vgw_kind kind, const void *key, const void *link);

/* Instead, if the call has failed. */
void vgw_overhead_failed(const struct vgw_before *before);

/* Charges what this process holds on the GPU beyond all that it is charged otherwise, beyond the quota if need be, or
 * gives back what is charged for that and not held any more. true: something has changed, or could not be told yet. */
bool vgw_overhead_settle(unsigned gpu);

/* Only gives back, where anything is charged for that: before an allocation is refused. */
bool vgw_overhead_reclaim(unsigned gpu);
bool vgw_overhead_beyond(unsigned gpu); /* is there? */

void vgw_overhead_forked(void);

#endif

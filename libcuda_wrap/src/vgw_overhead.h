/* vgw_overhead.h - memory that a driver call takes without saying how much: contexts, modules, code loaded late. */
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

/* The same for what cannot be undone: it is charged beyond the quota if need be. */
void vgw_overhead_owed(const struct vgw_before *before, enum vgw_kind kind, const void *key, const void *link);

void vgw_overhead_forked(void);

#endif

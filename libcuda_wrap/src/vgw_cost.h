/* vgw_cost.h - how long this process's kernels and graphs take, learned from measurements. One caller at a time. */
#ifndef VGW_COST_H
#define VGW_COST_H

#include <stdbool.h>
#include <stdint.h>

#define VGW_COST_UNKNOWN_NS 1000000u /* what is charged for a launch that was never measured */

struct vgw_cost {
    uint64_t key;
    uint64_t ns;                   /* of GPU time, one launch */
    uint64_t samples;              /* 0: not known yet */
    uint64_t lowest_ns, window_ns; /* since when, CLOCK_MONOTONIC */
    uint32_t in_window;
};

/* The cost with this key, new or known; stays valid until vgw_cost_forget_all. */
struct vgw_cost *vgw_cost_of(uint64_t key);

/* A measurement: `ns` for one launch. */
void vgw_cost_learn(struct vgw_cost *cost, uint64_t ns, bool own, uint64_t now_ns);

void vgw_cost_forget_all(void);

#endif

/* vgw_measure.h - batches of launches between two events: how long they really took. */
#ifndef VGW_MEASURE_H
#define VGW_MEASURE_H

#include <stdbool.h>
#include <stdint.h>

#include "vgw_cuda.h"

struct vgw_launch {
    CUcontext context;
    CUstream stream;
    uint64_t key;    /* of what is launched: equal keys, equal cost */
    uint64_t tokens; /* taken for it */
    unsigned gpu;
    bool limited;
};

/* What a launch with this key will probably cost, nanoseconds of GPU time. */
uint64_t vgw_measure_estimate(uint64_t key);

/* Settles what has ended. false: more than may be is still unmeasured; ask again later. */
bool vgw_measure_room(unsigned gpu);

/* Whether something is under way whose end is worth looking for. */
bool vgw_measure_under_way(unsigned gpu);

/* Around the driver's call. The second with its result: a launch that failed is given back; not if the first was false: the
 * launch is charged as expected, and not measured. */
bool vgw_measure_begin(const struct vgw_launch *launch);
void vgw_measure_end(const struct vgw_launch *launch, CUresult result);

/* The context goes, and with it what is being measured there. */
void vgw_measure_forget(CUcontext context);

/* The stream is about to go: what is measured in it ends here. */
void vgw_measure_stream_ends(CUstream stream);

/* In a child just forked: it has launched nothing. */
void vgw_measure_forked(void);

#endif

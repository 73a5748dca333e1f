/* vgw_past.h - when processes had work on a GPU, and so how much of a stretch of time was ours. */
#ifndef VGW_PAST_H
#define VGW_PAST_H

#include <stdbool.h>
#include <stdint.h>

/* This process has work on the GPU between the two moments, told before or not; the second may be a guess, and lie ahead.
 * One caller at a time, as for the next. */
void vgw_past_work(unsigned gpu, uint64_t from_ns, uint64_t until_ns);

/* Its work, begun at `from_ns` or before, ended at `end_ns`, whatever was told. */
void vgw_past_done(unsigned gpu, uint64_t from_ns, uint64_t end_ns);

struct vgw_own {
    uint64_t ns;   /* of the stretch, that this process had the GPU */
    bool all_seen; /* false: there may be others, that tell nothing: ns is all of it */
};

/* Of a stretch of time in which this process had work. */
struct vgw_own vgw_past_own(unsigned gpu, uint64_t from_ns, uint64_t to_ns);

/* What a dead process had told of the time to come is taken off. The caller has the slot's lock. */
void vgw_past_recover(unsigned slot);

void vgw_past_forked(void);

#endif

/* vgw_tiles.h - memory that is bound to sparse and deferred arrays. */
#ifndef VGW_TILES_H
#define VGW_TILES_H

#include <stdbool.h>
#include <stdint.h>

#include "vgw_cuda.h"

/* What is bound to an array, taken aside before it is destroyed; afterwards gone: its memory is let go; else it is put
 * back. NULL: nothing is. */
struct vgw_bound;
struct vgw_bound *vgw_tiles_take(uint64_t array);
void vgw_tiles_ended(struct vgw_bound *bound, bool is_gone);

/* A context may end, known as `mark` from now on; and has, or has not. Its arrays are no longer in the table then. */
void vgw_tiles_set_aside(CUcontext context, uint64_t mark);
void vgw_tiles_context_ended(uint64_t mark, bool is_gone);

extern bool vgw_tiles_leaving; /* memory waits for a stream to let it go */
void vgw_tiles_settle(void);

void vgw_tiles_forked(void);

#endif

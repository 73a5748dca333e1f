/* vgw_share.h - the share file: what containers on the same GPU know of one another: what they leave idle, and when they work.
 *
 * Each container writes its own, VGW_BOX "/share" in there, one record for each of its GPUs, in its own order. All
 * containers on a GPU can read each other's: VGW_BOX "/gpu<number>" is a read-only folder with a link to the share file
 * of each. A link's name is the host's word, its content is the container's, which nobody has to believe:
 *   <cores>.<number>.<gpus>.<class>.<inode>
 *   cores: the share that is kept for it on this GPU, percent, 0: none. number: which of its records is this GPU's.
 *   gpus: how many it has; a file with no more links than that is what an ended container has left.
 *   class: 0 does not borrow, else its priority + 1. inode: of the file.
 * docs/compute-share.md says who may borrow what.
 */
#ifndef VGW_SHARE_H
#define VGW_SHARE_H

#include <stdint.h>

#include "vgw_usage.h"

/* Times are CLOCK_MONOTONIC. All zero: it has launched nothing. */
struct vgw_share_gpu {
    int64_t tokens_ns;        /* of its bucket at refilled_ns; the share has been added to it since */
    uint64_t refilled_ns;     /* later than now, or nonsense: it lends nothing */
    uint64_t active_until_ns; /* until when what it has launched will run, if neighbours do what they did last */
    uint64_t borrow_permille; /* GPU time that it borrows, of the time that passed until borrowed_ns */
    uint64_t borrowed_ns;
    uint64_t claimed_ns; /* its own business: idle time until then is shared out already */
    uint64_t reserved[2];
};

#define VGW_CELL_SHIFT 18u /* of nanoseconds: a cell is about a quarter of a millisecond */
#define VGW_CELLS      16384u

/* When the container's processes had work on the GPU, a ring of cells. Cell n is at n % VGW_CELLS and holds n 32 bits |
 * nanoseconds 32 bits: for how long a process had work in it, summed over processes. What is under way is told ahead, as
 * expected; until when, is kept for each slot of the usage file: of the dead it is taken off again. */
struct vgw_share_past {
    uint64_t cells[VGW_CELLS];
    uint64_t until_ns[VGW_MAX_SLOTS];
};

struct vgw_share {
    struct vgw_share_gpu gpus[VGW_MAX_GPUS];
    struct vgw_share_past past[VGW_MAX_GPUS];
};

_Static_assert(sizeof(struct vgw_share) == 2229248, "share layout 2");

#endif

/* vgw_share.h - the share file: what containers on the same GPU know of one another, so that idle time can be borrowed.
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

#include "vgw_quota.h"

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

struct vgw_share {
    struct vgw_share_gpu gpus[VGW_MAX_GPUS];
};

_Static_assert(sizeof(struct vgw_share) == 1024, "share layout 1");

#endif

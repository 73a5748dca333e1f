/* vgw_usage.h - the usage file: what a container does use. The wrapper of each of its processes maps it read-write, the
 * host reads.
 *
 * The host creates it, with header and size, before the container starts; in the container it is VGW_BOX "/usage".
 *
 * Accounting, exact at any instruction of any process that may be killed there (docs/accounting.md has the proof):
 *   gpus[g].word    all bytes in use on GPU g, with the last operation's tag: bytes 44 bits | slot 10 | sequence 10.
 *   gpus[g].stamp   operations done on GPU g. word and stamp change together, in one 16-byte compare-and-swap, so that
 *                   a process that slept between reading and writing cannot take a later, equal word for the one it
 *                   read.
 *   slots[s].gpus[g].pending   the operation that process s is about to do: bytes 44 bits | negative 1 | sequence 19.
 *   slots[s].gpus[g].acked     64-bit sequence of the last operation known to be in `word`.
 *   slots[s].gpus[g].held      bytes that process s holds: bytes 44 bits | sequence 20 of the operation that made it so.
 * An operation: store pending; swap word and stamp (first acknowledging the operation whose tag goes); acknowledge;
 * store held. A slot belongs to the process that holds an OFD write lock on the slot's first byte in this file. The
 * kernel drops it when the process dies; whoever then takes the lock can tell from the four words what the dead one
 * held, and gives it back.
 */
#ifndef VGW_USAGE_H
#define VGW_USAGE_H

#include <stddef.h>

#include "vgw_quota.h"

#define VGW_USAGE_MAGIC   0x55574756u /* "VGWU" */
#define VGW_USAGE_VERSION 2u
#define VGW_MAX_SLOTS     1024u

/* Why an allocation was refused: index of `denied`. New reasons are added at the end. */
enum vgw_denial {
    VGW_DENIED_QUOTA,   /* it does not fit the quota */
    VGW_DENIED_SLOT,    /* no slot is free for this process: nothing would account for it */
    VGW_DENIED_REFUSED, /* a function whose memory cannot be charged: see entry_points.yaml */
    VGW_DENIED_DRIVER,  /* within the quota, but the driver had no memory left */
    VGW_DENIALS
};
#define VGW_DENIED_ROOM 8u

/* Bucket i: launches that waited less than 2^i microseconds, and not less than half that. */
#define VGW_WAIT_BUCKETS 32u

/* The container's compute share on one GPU (docs/compute-share.md). A token is a nanosecond of GPU time. */
struct vgw_limiter {
    int64_t tokens_ns;    /* may be launched without waiting; negative: debt */
    uint64_t refilled_ns; /* CLOCK_MONOTONIC: until when the share has been added to the tokens */
    uint64_t reserved[62];
};

struct vgw_usage_gpu { /* no cache line shared between GPUs, nor between memory and time */
    uint64_t word;     /* with stamp: 16-byte aligned */
    uint64_t stamp;
    uint64_t reserved0[6];
    uint64_t peak_bytes;
    uint64_t denied_bytes; /* size of the last allocation that was refused */
    uint64_t denied[VGW_DENIED_ROOM];
    uint64_t reserved1[6];
    uint64_t launches;     /* that the limiter has seen; none where there is no limit */
    uint64_t busy_ns;      /* GPU time of the launches, as it was measured and charged */
    uint64_t throttled_ns; /* time that launches waited for the share, summed over threads */
    uint64_t reserved2[5];
    uint64_t waits[VGW_WAIT_BUCKETS]; /* launches that had to wait, by how long */
    struct vgw_limiter limiter;
};

struct vgw_usage_slot_gpu {
    uint64_t pending;
    uint64_t acked;
    uint64_t held;
    uint64_t busy_ns; /* of this process, since it took the slot */
};

/* Tokens that a process has taken for launches that it has not measured yet. They are given back when it is dead, less
 * what may have run since. */
struct vgw_owed {
    uint64_t tokens;   /* nanoseconds 60 bits | GPU 4 */
    uint64_t since_ns; /* CLOCK_MONOTONIC of the oldest such launch */
};
#define VGW_OWED 3u /* GPUs of one process that are remembered so */

struct vgw_usage_slot {
    uint64_t pid;         /* in the container's pid namespace; 0: never used */
    uint64_t start_ticks; /* /proc/<pid>/stat field 22: tells a recycled pid */
    struct vgw_owed owed[VGW_OWED];
    struct vgw_usage_slot_gpu gpus[VGW_MAX_GPUS];
};

struct vgw_usage {
    uint32_t magic;
    uint32_t version;
    uint32_t bytes; /* of the whole file */
    uint32_t slot_count;
    uint64_t armed_ns;        /* CLOCK_BOOTTIME of the wrapper's first use in this container; 0: not yet in force */
    uint32_t wrapper_version; /* of the wrapper that armed it: major << 16 | minor << 8 | patch */
    uint32_t slot_high;       /* slots ever used: readers stop here */
    uint8_t reserved[96];
    struct vgw_usage_gpu gpus[VGW_MAX_GPUS];
    struct vgw_usage_slot slots[VGW_MAX_SLOTS];
};

_Static_assert(sizeof(struct vgw_usage_gpu) == 1024, "usage layout 2");
_Static_assert(sizeof(struct vgw_usage_slot) == 576, "usage layout 2");
_Static_assert(sizeof(struct vgw_usage) == 606336, "usage layout 2");
_Static_assert(offsetof(struct vgw_usage, gpus) % 16 == 0, "word and stamp are swapped together");

#endif

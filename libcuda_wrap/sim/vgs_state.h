/* vgs_state.h - `ctl`, the state file of the simulated GPUs: one for the host and all its containers, mapped shared by every process.
 *
 * libcuda_wrap/sim/create.py writes it; docs/simulated-gpu.md explains it. Little-endian. A process takes a slot and holds an OFD
 * write lock on the slot's first byte in this file; the kernel drops the lock when the process dies, and whoever next looks at the
 * memory gives back what the dead slot held. `gpus[g].lock` guards `used_bytes` and the slots' `bytes` of that GPU.
 * It names its owner by slot, not by thread id: thread ids of two pid namespaces can be equal.
 */
#ifndef VGS_STATE_H
#define VGS_STATE_H

#include <stddef.h>
#include <stdint.h>

#define VGS_MAGIC     0x53474756u /* "VGGS" */
#define VGS_VERSION   2u
#define VGS_MAX_GPUS  16u
#define VGS_MAX_SLOTS 1024u

/* A GPU's virtual clock at a moment: see vgs_clock.c. real_ns: CLOCK_MONOTONIC. */
struct vgs_instant {
    uint64_t real_ns;
    uint64_t virtual_ns;
};

#define VGS_PAST        8192u /* points of the recent past, each where the clock's speed changed */
#define VGS_PAST_COARSE 4096u /* and one for each 2^20 ns (1 ms), for longer */
struct vgs_past {
    struct vgs_instant recent[VGS_PAST];
    struct vgs_instant coarse[VGS_PAST_COARSE];
};

struct vgs_gpu {
    char uuid[48]; /* "GPU-…" */
    char name[64];
    char pci_bus_id[32]; /* "00000000:01:00.0" */
    uint64_t memory_bytes;
    uint64_t used_bytes;      /* sum of the slots' bytes; guarded by `lock` */
    struct vgs_instant clock; /* 16-byte aligned: vgs_clock.c */
    uint32_t lock;            /* 0, or owner's slot + 1; the top bit: somebody waits */
    uint32_t lost;            /* not 0: the GPU fell off the bus */
    uint32_t minor;           /* of gpu<minor> */
    uint32_t reserved0;
    uint64_t busy_ns;    /* kernel time launched, less what died with its process before it ran */
    uint64_t past_count; /* points ever written to `past` */
    uint64_t xid;        /* the last critical error, as the driver numbers them */
    uint64_t xid_count;  /* how many there were; grows after `xid` was written */
    uint64_t reserved1[4];
};

struct vgs_slot_gpu {
    uint64_t bytes;    /* device memory held; guarded by the GPU's lock */
    uint64_t busy_ns;  /* kernel time launched */
    uint32_t contexts; /* alive; NVML lists a process that has one */
    uint32_t reserved0;
    uint64_t end_virtual_ns; /* when all that it has launched is done */
};

struct vgs_slot {
    uint64_t pid;      /* in its own pid namespace; 0: free */
    uint64_t pid_ns;   /* inode of /proc/self/ns/pid; 0: not known */
    uint64_t start_ns; /* CLOCK_MONOTONIC when the slot was taken */
    uint64_t reserved[5];
    struct vgs_slot_gpu gpus[VGS_MAX_GPUS];
};

struct vgs_state {
    uint32_t magic;
    uint32_t version;
    uint32_t bytes; /* of the whole file */
    uint32_t gpu_count;
    uint32_t slot_count;
    uint32_t slot_high;     /* slots ever used: readers stop here */
    uint32_t cuda_version;  /* 13000 is CUDA 13.0 */
    uint32_t fault_count;   /* grows with each change of `fault` */
    uint64_t context_bytes; /* device memory that each context takes */
    char driver_version[24];
    char fault[256]; /* as the environment's VGPU_SIM_FAULT, for all processes */
    uint8_t reserved[192];
    struct vgs_gpu gpus[VGS_MAX_GPUS];
    struct vgs_slot slots[VGS_MAX_SLOTS];
    struct vgs_past past[VGS_MAX_GPUS];
};

_Static_assert(sizeof(struct vgs_gpu) == 256, "state layout 2");
_Static_assert(sizeof(struct vgs_slot_gpu) == 32, "state layout 2");
_Static_assert(sizeof(struct vgs_slot) == 576, "state layout 2");
_Static_assert(offsetof(struct vgs_state, gpus) == 512, "state layout 2");
_Static_assert(offsetof(struct vgs_state, slots) == 4608, "state layout 2");
_Static_assert((offsetof(struct vgs_state, gpus) + offsetof(struct vgs_gpu, clock)) % 16 == 0, "swapped whole");
_Static_assert(sizeof(struct vgs_state) == 3740160, "state layout 2");

#endif

/* vgw_quota.h - the quota file: what a container may use. The host writes it, the wrapper maps it read-only.
 *
 * In the container it is VGW_BOX "/quota". Fields marked `live` may change while it is mapped (live resize): read them with one
 * 64- or 32-bit atomic load each time. Everything else is fixed for the container's life.
 * Little-endian. A file with another magic, version or size is refused: the wrapper then fails closed.
 */
#ifndef VGW_QUOTA_H
#define VGW_QUOTA_H

#include <stdint.h>

#ifndef VGW_BOX
#define VGW_BOX "/usr/lib/vgpu" /* our folder in the container; tests build with another */
#endif

#define VGW_QUOTA_MAGIC   0x51574756u /* "VGWQ" */
#define VGW_QUOTA_VERSION 1u
#define VGW_MAX_GPUS      16u

#define VGW_FLAG_SOFT 1u /* idle time of neighbours may be used */

struct vgw_quota_gpu {
    char uuid[48];          /* "GPU-…", NUL-terminated */
    uint64_t memory_bytes;  /* live */
    uint32_t cores_percent; /* live; 1 to 100, 100: no limit */
    uint32_t flags;         /* live; VGW_FLAG_… */
    uint32_t priority;      /* live; 0 low, 1 normal, 2 high: who is first to use idle time */
    /* live; what is measured is charged times this by 1000, until then (CLOCK_BOOTTIME, seconds), if the host knows better
     * than the wrapper; 0: it does not */
    uint32_t charge_permille;
    uint32_t charge_until_s;
    uint32_t reserved[13];
};

struct vgw_quota {
    uint32_t magic;
    uint32_t version;
    uint32_t bytes;     /* of the whole file */
    uint32_t gpu_count; /* 1 to VGW_MAX_GPUS */
    char container_id[80];
    uint64_t generation; /* live; grows with every change by the host */
    uint8_t reserved[24];
    struct vgw_quota_gpu gpus[VGW_MAX_GPUS]; /* in the container's device order */
};

_Static_assert(sizeof(struct vgw_quota_gpu) == 128, "quota layout 1");
_Static_assert(sizeof(struct vgw_quota) == 2176, "quota layout 1");

#endif

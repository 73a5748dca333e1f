/* nvml_events.c - critical errors (XIDs), told to who has registered for them. create.py's raise_xid makes one.
 *
 * A set looks at the GPUs' counters in ctl every few milliseconds while somebody waits; two errors of one GPU between two
 * looks are told as one, the later.
 */
#define _GNU_SOURCE
#include <stdlib.h>

#include "nvml.h"

#define XID_EVENT 0x8ull /* nvmlEventTypeXidCriticalError, the only kind here */
#define LOOK_NS   5000000ull
#define NONE      0xFFFFFFFFu /* no instance: no MIG */

typedef struct nvmlEventSet_st {
    bool watches[VGS_MAX_GPUS]; /* by ordinal */
    uint64_t seen[VGS_MAX_GPUS];
} * nvmlEventSet_t;

static uint64_t count_of(const struct vgs_gpu *gpu)
{
    return __atomic_load_n(&gpu->xid_count, __ATOMIC_ACQUIRE);
}

VGS_NVML nvmlEventSetCreate(nvmlEventSet_t *set)
{
    NVML_ENTER();
    NVML_ARGUMENT(set);
    *set = calloc(1, sizeof **set);
    return *set ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

VGS_NVML nvmlEventSetFree(nvmlEventSet_t set)
{
    NVML_ENTER();
    NVML_ARGUMENT(set);
    free(set);
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(types);
    *types = XID_EVENT;
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(set);
    NVML_CHECK((types & ~XID_EVENT) == 0, NVML_ERROR_NOT_SUPPORTED);
    if (types != 0) {
        set->watches[nvml_ordinal(device)] = true;
        set->seen[nvml_ordinal(device)] = count_of(gpu);
    }
    return NVML_SUCCESS;
}

static bool take(nvmlEventSet_t set, nvmlEventData_t *data)
{
    for (uint32_t ordinal = 0; ordinal < nvml_gpus.count; ordinal++) {
        const struct vgs_gpu *gpu = &vgs_state->gpus[nvml_gpus.index[ordinal]];
        const uint64_t count = count_of(gpu);
        if (!set->watches[ordinal] || set->seen[ordinal] == count)
            continue;
        set->seen[ordinal] = count;
        *data = (nvmlEventData_t){nvml_handle(ordinal), XID_EVENT, gpu->xid, NONE, NONE};
        return true;
    }
    return false;
}

VGS_NVML nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    NVML_ENTER();
    NVML_ARGUMENT(set && data);
    const uint64_t until = vgs_now_ns() + timeout_ms * 1000000ull;
    while (!take(set, data)) {
        if (vgs_now_ns() >= until)
            return NVML_ERROR_TIMEOUT;
        vgs_sleep_until(vgs_now_ns() + LOOK_NS);
    }
    return NVML_SUCCESS;
}

VGS_NVML nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    return nvmlEventSetWait_v2(set, data, timeout_ms);
}

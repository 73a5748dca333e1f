/* nvml_process.c - NVML's lists of processes: the container's own, by the pids that it knows them under.
 *
 * Memory is the ledger's. Utilization is the driver's own measurement, of which only the container's processes are
 * kept: nobody learns what its neighbours do.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "nvml_handlers.h"
#include "vgw_ledger.h"
#include "vgw_nvml_slice.h"
#include "vgw_real.h"
#include "vgw_region.h"

#define NO_INSTANCE   0xffffffffu /* no MIG */
#define SAMPLES       256u        /* of one look at a GPU's processes: more than a GPU runs at once */
#define WINDOW_US     1000000u    /* how old a sample may be for "now" */
#define PERCENT_WHOLE 100u

static uint64_t pid_of(unsigned slot)
{
    return __atomic_load_n(&vgw_usage->slots[slot].pid, __ATOMIC_ACQUIRE);
}

static unsigned slots_used(void)
{
    const uint32_t high = __atomic_load_n(&vgw_usage->slot_high, __ATOMIC_ACQUIRE);
    return high < VGW_MAX_SLOTS ? high : VGW_MAX_SLOTS;
}

static bool is_ours(unsigned pid)
{
    for (unsigned slot = 0; slot < slots_used(); slot++)
        if (pid != 0 && pid_of(slot) == pid)
            return true;
    return false;
}

/* The container's processes that hold memory on a GPU. infos: as many of them as there is room for. */
static unsigned processes(unsigned gpu, nvmlProcessInfo_t *infos, unsigned room)
{
    unsigned count = 0;
    for (unsigned slot = 0; slot < slots_used(); slot++) {
        const uint64_t held = vgw_ledger_held(vgw_usage, slot, gpu), pid = pid_of(slot);
        if (held == 0 || pid == 0)
            continue;
        if (count < room)
            infos[count] = (nvmlProcessInfo_t){(unsigned)pid, held, NO_INSTANCE, NO_INSTANCE};
        count++;
    }
    return count;
}

/* As NVML does it: *infoCount is the room, and gets the number; too little room is an error that says how much is
 * needed. */
static nvmlReturn_t list(nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_t *infos)
{
    unsigned gpu;
    const nvmlReturn_t result = vgw_nvml_gpu(device, &gpu);
    if (result != NVML_SUCCESS)
        return result;
    vgw_reap();
    const unsigned room = infos == NULL ? 0 : *infoCount;
    *infoCount = processes(gpu, infos, room);
    return *infoCount > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

nvmlReturn_t vgw_nvml_processes(vgw_fn_nvml_processes *real, nvmlDevice_t device, unsigned int *infoCount,
                                nvmlProcessInfo_t *infos)
{
    if (infoCount == NULL)
        return real(device, infoCount, infos);
    vgw_nvml_enter();
    return vgw_nvml_leave(list(device, infoCount, infos));
}

nvmlReturn_t vgw_nvml_processes_v1(vgw_fn_nvml_processes_v1 *real, nvmlDevice_t device, unsigned int *infoCount,
                                   nvmlProcessInfo_v1_t *infos)
{
    nvmlProcessInfo_t wide[VGW_MAX_SLOTS];
    if (infoCount == NULL)
        return real(device, infoCount, infos);
    if (infos != NULL && *infoCount > VGW_MAX_SLOTS)
        *infoCount = VGW_MAX_SLOTS;
    vgw_nvml_enter();
    const nvmlReturn_t result = vgw_nvml_leave(list(device, infoCount, infos == NULL ? NULL : wide));
    for (unsigned at = 0; infos != NULL && result == NVML_SUCCESS && at < *infoCount; at++)
        infos[at] = (nvmlProcessInfo_v1_t){wide[at].pid, wide[at].usedGpuMemory};
    return result;
}

/* Processes that draw, or come through MPS: we count none of either, and the machine's are not the container's. */
static nvmlReturn_t none(nvmlDevice_t device, unsigned int *infoCount)
{
    unsigned gpu;
    vgw_nvml_enter();
    const nvmlReturn_t result = vgw_nvml_leave(vgw_nvml_gpu(device, &gpu));
    if (result == NVML_SUCCESS)
        *infoCount = 0;
    return result;
}

nvmlReturn_t vgw_nvml_no_processes(vgw_fn_nvml_no_processes *real, nvmlDevice_t device, unsigned int *infoCount,
                                   nvmlProcessInfo_t *infos)
{
    return infoCount == NULL ? real(device, infoCount, infos) : none(device, infoCount);
}

nvmlReturn_t vgw_nvml_no_processes_v1(vgw_fn_nvml_no_processes_v1 *real, nvmlDevice_t device, unsigned int *infoCount,
                                      nvmlProcessInfo_v1_t *infos)
{
    return infoCount == NULL ? real(device, infoCount, infos) : none(device, infoCount);
}

nvmlReturn_t vgw_nvml_samples(vgw_fn_nvml_samples *real, nvmlDevice_t device,
                              nvmlProcessUtilizationSample_t *utilization, unsigned int *processSamplesCount,
                              unsigned long long lastSeenTimeStamp)
{
    unsigned gpu, kept = 0;
    vgw_nvml_enter();
    nvmlReturn_t result = real(device, utilization, processSamplesCount, lastSeenTimeStamp);
    if (result == NVML_SUCCESS)
        result = vgw_nvml_gpu(device, &gpu);
    vgw_nvml_leave(result);
    if (result != NVML_SUCCESS || utilization == NULL)
        return result;
    for (unsigned at = 0; at < *processSamplesCount; at++)
        if (is_ours(utilization[at].pid))
            utilization[kept++] = utilization[at];
    memset(utilization + kept, 0, (*processSamplesCount - kept) * sizeof *utilization);
    *processSamplesCount = kept;
    return kept == 0 ? NVML_ERROR_NOT_FOUND : NVML_SUCCESS;
}

nvmlReturn_t vgw_nvml_samples_info(vgw_fn_nvml_samples_info *real, nvmlDevice_t device,
                                   nvmlProcessesUtilizationInfo_t *procesesUtilInfo)
{
    unsigned gpu, kept = 0;
    vgw_nvml_enter();
    nvmlReturn_t result = real(device, procesesUtilInfo);
    if (result == NVML_SUCCESS)
        result = vgw_nvml_gpu(device, &gpu);
    vgw_nvml_leave(result);
    if (result != NVML_SUCCESS || procesesUtilInfo->procUtilArray == NULL)
        return result;
    nvmlProcessUtilizationInfo_v1_t *samples = procesesUtilInfo->procUtilArray;
    const unsigned count = procesesUtilInfo->processSamplesCount;
    for (unsigned at = 0; at < count; at++)
        if (is_ours(samples[at].pid))
            samples[kept++] = samples[at];
    memset(samples + kept, 0, (count - kept) * sizeof *samples);
    procesesUtilInfo->processSamplesCount = kept;
    return kept == 0 ? NVML_ERROR_NOT_FOUND : NVML_SUCCESS;
}

static unsigned at_most_whole(unsigned percent)
{
    return percent < PERCENT_WHOLE ? percent : PERCENT_WHOLE;
}

/* The newest sample of each of the container's processes, added up; where the driver has no samples, its own answer. */
nvmlReturn_t vgw_nvml_utilization(vgw_fn_nvml_utilization *real, nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    nvmlProcessUtilizationSample_t samples[SAMPLES];
    unsigned gpu, count = SAMPLES, gpu_percent = 0, memory_percent = 0;
    unsigned long long newest = 0;
    vgw_fn_nvml_samples *look = (vgw_fn_nvml_samples *)vgw_real(VGW_AT_nvmlDeviceGetProcessUtilization);
    vgw_nvml_enter();
    const nvmlReturn_t looked = look == NULL ? NVML_ERROR_NOT_SUPPORTED : look(device, samples, &count, 0);
    nvmlReturn_t result = real(device, utilization);
    if (result == NVML_SUCCESS)
        result = vgw_nvml_gpu(device, &gpu);
    vgw_nvml_leave(result);
    if (result != NVML_SUCCESS || (looked != NVML_SUCCESS && looked != NVML_ERROR_NOT_FOUND))
        return result;
    count = looked == NVML_SUCCESS ? count : 0;
    for (unsigned at = 0; at < count; at++)
        newest = samples[at].timeStamp > newest ? samples[at].timeStamp : newest;
    for (unsigned at = 0; at < count; at++) {
        bool last = newest - samples[at].timeStamp < WINDOW_US && is_ours(samples[at].pid);
        for (unsigned other = 0; other < count && last; other++)
            last = samples[other].pid != samples[at].pid || samples[other].timeStamp <= samples[at].timeStamp;
        gpu_percent += last ? samples[at].smUtil : 0;
        memory_percent += last ? samples[at].memUtil : 0;
    }
    *utilization = (nvmlUtilization_t){at_most_whole(gpu_percent), at_most_whole(memory_percent)};
    return NVML_SUCCESS;
}

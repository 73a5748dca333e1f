/* nvml_process.c - the processes on a device, by the pid that the asking process knows them under.
 *
 * A slot has its process's pid in that process's own pid namespace. One of another namespace is found by looking for a process of
 * that namespace in our /proc (on the host, all are); what is not there, as a neighbour's process is not in a container, is left out.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "nvml.h"

#define NO_INSTANCE 0xffffffffu

struct seen { /* a process of the device */
    unsigned int pid;
    uint64_t bytes;
    unsigned int percent;
};

static uint64_t namespace_of(const char *pid)
{
    char path[300];
    struct stat info;
    snprintf(path, sizeof path, "/proc/%s/ns/pid", pid);
    return stat(path, &info) == 0 ? (uint64_t)info.st_ino : 0;
}

/* The last number of NSpid in /proc/<pid>/status: the process's pid in its own namespace. */
static unsigned int innermost_pid(const char *pid)
{
    char path[300], line[512];
    unsigned int last = 0;
    snprintf(path, sizeof path, "/proc/%s/status", pid);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "NSpid:", 6) == 0) {
            char *number = strrchr(line, '\t');
            last = number ? (unsigned int)strtoul(number, NULL, 10) : 0;
            break;
        }
    if (file)
        fclose(file);
    return last;
}

/* 0: not to be seen from here. */
static unsigned int pid_here(const struct vgs_slot *slot, uint64_t own_namespace)
{
    if (slot->pid_ns == 0 || slot->pid_ns == own_namespace)
        return (unsigned int)slot->pid;
    unsigned int found = 0;
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; !found && proc && (entry = readdir(proc));)
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && namespace_of(entry->d_name) == slot->pid_ns &&
            innermost_pid(entry->d_name) == (unsigned int)slot->pid)
            found = (unsigned int)strtoul(entry->d_name, NULL, 10);
    if (proc)
        closedir(proc);
    return found;
}

/* Whether the process has become another program, and only a child still has the descriptors of the first. */
static bool is_former(uint32_t slot)
{
    const struct vgs_slot *one = &vgs_state->slots[slot];
    for (uint32_t at = 0; at < vgs_state->slot_high && at < VGS_MAX_SLOTS; at++) {
        const struct vgs_slot *other = &vgs_state->slots[at];
        if (other->pid == one->pid && other->pid_ns == one->pid_ns && other->start_ns > one->start_ns &&
            vgs_slot_lives(at))
            return true;
    }
    return false;
}

/* The live processes with a context on the GPU, at most VGS_MAX_SLOTS. */
static unsigned int processes_of(uint32_t gpu, struct seen *seen)
{
    unsigned int count = 0, percent[VGS_MAX_SLOTS];
    uint64_t own_namespace = namespace_of("self");
    nvml_utilization(gpu, percent);
    for (uint32_t slot = 0; slot < vgs_state->slot_high && slot < VGS_MAX_SLOTS; slot++) {
        const struct vgs_slot *each = &vgs_state->slots[slot];
        if (!each->pid || !(each->gpus[gpu].contexts || each->gpus[gpu].bytes) || !vgs_slot_lives(slot) ||
            is_former(slot))
            continue;
        unsigned int pid = pid_here(each, own_namespace), at = 0;
        if (!pid)
            continue;
        while (at < count && seen[at].pid != pid)
            at++;
        if (at == count)
            seen[count++] = (struct seen){.pid = pid};
        seen[at].bytes += each->gpus[gpu].bytes;
        seen[at].percent += percent[slot];
    }
    return count;
}

/* NVML's way with lists: *count is the room that the caller has, and then what is needed. */
static nvmlReturn_t room_for(unsigned int needed, unsigned int *count, const void *list)
{
    unsigned int room = *count;
    *count = needed;
    if (needed == 0)
        return NVML_SUCCESS;
    return list && room >= needed ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

static nvmlReturn_t list_v2(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v2_t *list, const char *function)
{
    struct vgs_gpu *gpu;
    struct seen seen[VGS_MAX_SLOTS];
    nvmlReturn_t result = nvml_enter(function);
    if (result == NVML_SUCCESS)
        result = nvml_device(device, &gpu);
    NVML_CHECK(result == NVML_SUCCESS, result);
    NVML_ARGUMENT(count);
    unsigned int found = processes_of(nvml_gpu_index(gpu), seen);
    result = room_for(found, count, list);
    for (unsigned int i = 0; result == NVML_SUCCESS && i < found; i++)
        list[i] = (nvmlProcessInfo_v2_t){seen[i].pid, seen[i].bytes, NO_INSTANCE, NO_INSTANCE};
    return result;
}

VGS_NVML nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v2_t *list)
{
    return list_v2(device, count, list, __func__);
}

VGS_NVML nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v2_t *list)
{
    return list_v2(device, count, list, __func__);
}

VGS_NVML nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v1_t *list)
{
    struct seen seen[VGS_MAX_SLOTS];
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(count);
    unsigned int found = processes_of(nvml_gpu_index(gpu), seen);
    nvmlReturn_t result = room_for(found, count, list);
    for (unsigned int i = 0; result == NVML_SUCCESS && i < found; i++)
        list[i] = (nvmlProcessInfo_v1_t){seen[i].pid, seen[i].bytes};
    return result;
}

/* Nothing here draws, and there is no MPS. */
static nvmlReturn_t empty_list(nvmlDevice_t device, unsigned int *count, const char *function)
{
    struct vgs_gpu *gpu;
    nvmlReturn_t result = nvml_enter(function);
    if (result == NVML_SUCCESS)
        result = nvml_device(device, &gpu);
    NVML_CHECK(result == NVML_SUCCESS, result);
    NVML_ARGUMENT(count);
    *count = 0;
    return NVML_SUCCESS;
}

#define NVML_EMPTY_LIST(device, count, list) return ((void)(list), empty_list(device, count, __func__))

VGS_NVML nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned int *count, void *list)
{
    NVML_EMPTY_LIST(device, count, list);
}
VGS_NVML nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int *count, void *list)
{
    NVML_EMPTY_LIST(device, count, list);
}
VGS_NVML nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, void *list)
{
    NVML_EMPTY_LIST(device, count, list);
}
VGS_NVML nvmlDeviceGetMPSComputeRunningProcesses(nvmlDevice_t device, unsigned int *count, void *list)
{
    NVML_EMPTY_LIST(device, count, list);
}
VGS_NVML nvmlDeviceGetMPSComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count, void *list)
{
    NVML_EMPTY_LIST(device, count, list);
}
VGS_NVML nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, void *list)
{
    NVML_EMPTY_LIST(device, count, list);
}

VGS_NVML nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *list, unsigned int *count,
                                         unsigned long long since_us)
{
    struct seen seen[VGS_MAX_SLOTS];
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(count);
    unsigned long long now_us = vgs_now_ns() / 1000;
    unsigned int found = processes_of(nvml_gpu_index(gpu), seen);
    NVML_CHECK(found && since_us <= now_us, NVML_ERROR_NOT_FOUND);
    nvmlReturn_t result = room_for(found, count, list);
    for (unsigned int i = 0; result == NVML_SUCCESS && i < found; i++)
        list[i] = (nvmlProcessUtilizationSample_t){
            .pid = seen[i].pid, .timeStamp = now_us, .smUtil = seen[i].percent > 100 ? 100 : seen[i].percent};
    return result;
}

VGS_NVML nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device, nvmlProcessesUtilizationInfo_t *info)
{
    struct seen seen[VGS_MAX_SLOTS];
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(info);
    NVML_CHECK(info->version == ((unsigned int)sizeof *info | 1u << 24), NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    unsigned long long now_us = vgs_now_ns() / 1000;
    unsigned int found = processes_of(nvml_gpu_index(gpu), seen);
    NVML_CHECK(found && info->lastSeenTimeStamp <= now_us, NVML_ERROR_NOT_FOUND);
    nvmlReturn_t result = room_for(found, &info->processSamplesCount, info->procUtilArray);
    for (unsigned int i = 0; result == NVML_SUCCESS && i < found; i++)
        info->procUtilArray[i] = (nvmlProcessUtilizationInfo_v1_t){
            .pid = seen[i].pid, .timeStamp = now_us, .smUtil = seen[i].percent > 100 ? 100 : seen[i].percent};
    return result;
}

/* nvml_system.c - NVML's start and end, the driver, and finding devices. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "nvml.h"

struct nvmlDevice_st {
    uint32_t ordinal;
};

struct vgs_visible nvml_gpus;
static struct nvmlDevice_st handles[VGS_MAX_GPUS];
static uint32_t users; /* nvmlInit calls without their nvmlShutdown */
static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;

nvmlReturn_t vgs_nvml_not_supported(void);
nvmlReturn_t vgs_nvml_not_supported(void)
{
    return users ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvml_enter(const char *function)
{
    NVML_CHECK(__atomic_load_n(&users, __ATOMIC_ACQUIRE), NVML_ERROR_UNINITIALIZED);
    if (vgs_state->fault_count != vgs_faults_seen)
        vgs_read_faults();
    int fault = vgs_any_fault ? vgs_fault(function) : 0;
    return fault == VGS_FAULT_LOST ? NVML_ERROR_GPU_IS_LOST : (nvmlReturn_t)fault;
}

static nvmlReturn_t start(void)
{
    nvmlReturn_t result = NVML_SUCCESS;
    pthread_mutex_lock(&init_lock);
    if (users == 0) {
        switch (vgs_open()) {
        case VGS_OPEN_MISSING:
            result = NVML_ERROR_DRIVER_NOT_LOADED;
            break;
        case VGS_OPEN_FAULTY:
            result = NVML_ERROR_UNKNOWN;
            break;
        case VGS_OPEN_OK:
            vgs_find_gpus(&nvml_gpus, false);
            vgs_read_faults();
        }
    }
    if (result == NVML_SUCCESS)
        __atomic_add_fetch(&users, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&init_lock);
    return result;
}

VGS_NVML nvmlInit(void)
{
    return start();
}

VGS_NVML nvmlInit_v2(void)
{
    return start();
}

VGS_NVML nvmlInitWithFlags(unsigned int flags)
{
    NVML_ARGUMENT(flags <= 3);
    return start();
}

VGS_NVML nvmlShutdown(void)
{
    pthread_mutex_lock(&init_lock);
    nvmlReturn_t result = users ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    if (users)
        users--;
    pthread_mutex_unlock(&init_lock);
    return result;
}

__attribute__((visibility("default"))) const char *nvmlErrorString(nvmlReturn_t code)
{
    switch (code) {
    case NVML_SUCCESS:
        return "Success";
    case NVML_ERROR_UNINITIALIZED:
        return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT:
        return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED:
        return "Not Supported";
    case NVML_ERROR_NOT_FOUND:
        return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE:
        return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED:
        return "Driver Not Loaded";
    case NVML_ERROR_GPU_IS_LOST:
        return "GPU is lost";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH:
        return "Argument version mismatch";
    default:
        return "Unknown Error";
    }
}

static nvmlReturn_t text(char *out, unsigned int length, const char *value)
{
    NVML_ARGUMENT(out);
    NVML_CHECK(strlen(value) < length, NVML_ERROR_INSUFFICIENT_SIZE);
    strcpy(out, value);
    return NVML_SUCCESS;
}

VGS_NVML nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    NVML_ENTER();
    return text(version, length, vgs_state->driver_version);
}

VGS_NVML nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    char value[64];
    NVML_ENTER();
    snprintf(value, sizeof value, "%u.%s", vgs_state->cuda_version / 1000, vgs_state->driver_version);
    return text(version, length, value);
}

static nvmlReturn_t cuda_version(int *version)
{
    NVML_ARGUMENT(version);
    *version = (int)vgs_state->cuda_version;
    return NVML_SUCCESS;
}

VGS_NVML nvmlSystemGetCudaDriverVersion(int *version)
{
    NVML_ENTER();
    return cuda_version(version);
}

VGS_NVML nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    NVML_ENTER();
    return cuda_version(version);
}

VGS_NVML nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length)
{
    char path[32], line[256] = "";
    NVML_ENTER();
    NVML_ARGUMENT(name && length);
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    NVML_CHECK(file, NVML_ERROR_NOT_FOUND);
    size_t got = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[got] = '\0';
    snprintf(name, length, "%s", line);
    return NVML_SUCCESS;
}

VGS_NVML nvmlUnitGetCount(unsigned int *count)
{
    NVML_ENTER();
    NVML_ARGUMENT(count);
    *count = 0;
    return NVML_SUCCESS;
}

nvmlDevice_t nvml_handle(uint32_t ordinal)
{
    handles[ordinal].ordinal = ordinal;
    return &handles[ordinal];
}

uint32_t nvml_ordinal(nvmlDevice_t handle)
{
    return handle->ordinal;
}

uint32_t nvml_gpu_index(const struct vgs_gpu *gpu)
{
    return (uint32_t)(gpu - vgs_state->gpus);
}

nvmlReturn_t nvml_device(nvmlDevice_t handle, struct vgs_gpu **gpu)
{
    NVML_ARGUMENT(handle >= handles && handle < handles + nvml_gpus.count);
    *gpu = &vgs_state->gpus[nvml_gpus.index[handle->ordinal]];
    return (*gpu)->lost ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

static nvmlReturn_t count_of(unsigned int *count)
{
    NVML_ARGUMENT(count);
    *count = nvml_gpus.count;
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetCount(unsigned int *count)
{
    NVML_ENTER();
    return count_of(count);
}

VGS_NVML nvmlDeviceGetCount_v2(unsigned int *count)
{
    NVML_ENTER();
    return count_of(count);
}

static nvmlReturn_t by_index(unsigned int index, nvmlDevice_t *device)
{
    NVML_ARGUMENT(device && index < nvml_gpus.count);
    *device = nvml_handle(index);
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    NVML_ENTER();
    return by_index(index, device);
}

VGS_NVML nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    NVML_ENTER();
    return by_index(index, device);
}

VGS_NVML nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    NVML_ENTER();
    NVML_ARGUMENT(uuid && device);
    for (uint32_t i = 0; i < nvml_gpus.count; i++)
        if (strcmp(vgs_state->gpus[nvml_gpus.index[i]].uuid, uuid) == 0)
            return by_index(i, device);
    return NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t by_pci(const char *id, nvmlDevice_t *device)
{
    NVML_ARGUMENT(id && device);
    unsigned int domain, bus, slot, d, b, s;
    NVML_ARGUMENT(sscanf(id, "%x:%x:%x", &domain, &bus, &slot) == 3);
    for (uint32_t i = 0; i < nvml_gpus.count; i++)
        if (sscanf(vgs_state->gpus[nvml_gpus.index[i]].pci_bus_id, "%x:%x:%x", &d, &b, &s) == 3 && d == domain &&
            b == bus && s == slot)
            return by_index(i, device);
    return NVML_ERROR_NOT_FOUND;
}

VGS_NVML nvmlDeviceGetHandleByPciBusId(const char *id, nvmlDevice_t *device)
{
    NVML_ENTER();
    return by_pci(id, device);
}

VGS_NVML nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *device)
{
    NVML_ENTER();
    return by_pci(id, device);
}

VGS_NVML nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    unsigned int minor;
    NVML_ENTER();
    NVML_ARGUMENT(serial && device);
    for (uint32_t i = 0; i < nvml_gpus.count; i++)
        if (sscanf(serial, "0000000000%u", &minor) == 1 && vgs_state->gpus[nvml_gpus.index[i]].minor + 1 == minor)
            return by_index(i, device);
    return NVML_ERROR_NOT_FOUND;
}

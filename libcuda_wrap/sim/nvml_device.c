/* nvml_device.c - what a device is: names, numbers, and modes that never change here. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "nvml.h"

static nvmlReturn_t text(char *out, unsigned int length, const char *value)
{
    NVML_ARGUMENT(out);
    NVML_CHECK(strlen(value) < length, NVML_ERROR_INSUFFICIENT_SIZE);
    strcpy(out, value);
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    NVML_ENTER_DEVICE(device);
    return text(name, length, gpu->name);
}

VGS_NVML nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    NVML_ENTER_DEVICE(device);
    return text(uuid, length, gpu->uuid);
}

VGS_NVML nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    char value[16];
    NVML_ENTER_DEVICE(device);
    snprintf(value, sizeof value, "%013u", gpu->minor + 1);
    return text(serial, length, value);
}

VGS_NVML nvmlDeviceGetVbiosVersion(nvmlDevice_t device, char *version, unsigned int length)
{
    NVML_ENTER_DEVICE(device);
    (void)gpu;
    return text(version, length, "00.00.00.00.00");
}

static void pci_numbers(const struct vgs_gpu *gpu, unsigned int *domain, unsigned int *bus, unsigned int *device)
{
    *domain = *bus = *device = 0;
    sscanf(gpu->pci_bus_id, "%x:%x:%x", domain, bus, device);
}

static nvmlReturn_t pci_info(const struct vgs_gpu *gpu, nvmlPciInfo_t *pci)
{
    NVML_ARGUMENT(pci);
    memset(pci, 0, sizeof *pci);
    pci_numbers(gpu, &pci->domain, &pci->bus, &pci->device);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
             pci->device & 0xff);
    snprintf(pci->busId, sizeof pci->busId, "%s", gpu->pci_bus_id);
    pci->pciDeviceId = 0x000110deu;
    pci->pciSubSystemId = 0x000110deu;
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    NVML_ENTER_DEVICE(device);
    return pci_info(gpu, pci);
}

static nvmlReturn_t pci_info_v2(const struct vgs_gpu *gpu, nvmlPciInfo_v2_t *pci)
{
    nvmlPciInfo_t full;
    NVML_ARGUMENT(pci);
    pci_info(gpu, &full);
    *pci = (nvmlPciInfo_v2_t){.domain = full.domain,
                              .bus = full.bus,
                              .device = full.device,
                              .pciDeviceId = full.pciDeviceId,
                              .pciSubSystemId = full.pciSubSystemId};
    memcpy(pci->busId, full.busIdLegacy, sizeof pci->busId);
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_v2_t *pci)
{
    NVML_ENTER_DEVICE(device);
    return pci_info_v2(gpu, pci);
}

VGS_NVML nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_v2_t *pci)
{
    NVML_ENTER_DEVICE(device);
    return pci_info_v2(gpu, pci);
}

VGS_NVML nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    NVML_ENTER_DEVICE(device);
    (void)gpu;
    NVML_ARGUMENT(index);
    *index = nvml_ordinal(device);
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(minor);
    *minor = gpu->minor;
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    NVML_ENTER_DEVICE(device);
    (void)gpu;
    NVML_ARGUMENT(major && minor);
    *major = 9;
    *minor = 0;
    return NVML_SUCCESS;
}

/* One number that is the same for every device, always. */
#define NVML_CONSTANT(value)                                                                                           \
    NVML_ENTER_DEVICE(device);                                                                                         \
    (void)gpu;                                                                                                         \
    NVML_ARGUMENT(out);                                                                                                \
    *out = value;                                                                                                      \
    return NVML_SUCCESS

VGS_NVML nvmlDeviceGetBrand(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(14); /* NVIDIA */
}
VGS_NVML nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(9); /* of compute capability 9.0 */
}
VGS_NVML nvmlDeviceGetPersistenceMode(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(1);
}
VGS_NVML nvmlDeviceGetComputeMode(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceGetDisplayMode(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceGetDisplayActive(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceGetPerformanceState(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceGetPowerState(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceGetMultiGpuBoard(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceGetNumGpuCores(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(16896);
}
VGS_NVML nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(5120);
}
VGS_NVML nvmlDeviceGetNumFans(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(1);
}
VGS_NVML nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(30); /* percent */
}
VGS_NVML nvmlDeviceGetPowerManagementMode(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(1);
}
VGS_NVML nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(700000); /* mW */
}
VGS_NVML nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(700000);
}
VGS_NVML nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(700000);
}
VGS_NVML nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(5);
}
VGS_NVML nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(5);
}
VGS_NVML nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(16);
}
VGS_NVML nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(16);
}
VGS_NVML nvmlDeviceGetPcieReplayCounter(nvmlDevice_t device, unsigned int *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *out)
{
    NVML_CONSTANT(0);
}
VGS_NVML nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *out)
{
    NVML_CONSTANT(0);
}

VGS_NVML nvmlDeviceGetFanSpeed_v2(nvmlDevice_t device, unsigned int fan, unsigned int *out)
{
    NVML_ARGUMENT(fan == 0);
    NVML_CONSTANT(30);
}

VGS_NVML nvmlDeviceGetPcieThroughput(nvmlDevice_t device, unsigned int counter, unsigned int *out)
{
    NVML_ARGUMENT(counter <= 1);
    NVML_CONSTANT(0); /* KB/s */
}

VGS_NVML nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned int kind, unsigned int counter,
                                     unsigned long long *out)
{
    NVML_ARGUMENT(kind <= 1 && counter <= 1);
    NVML_CONSTANT(0);
}

VGS_NVML nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, unsigned int kind, unsigned int counter,
                                         unsigned int where, unsigned long long *out)
{
    NVML_ARGUMENT(kind <= 1 && counter <= 1 && where <= 7);
    NVML_CONSTANT(0);
}

/* By clock type: graphics, SM, memory, video; MHz. */
static const unsigned int clocks[] = {1785, 1785, 2619, 1545};

static nvmlReturn_t clock_of(nvmlDevice_t device, unsigned int type, unsigned int *out, const char *function)
{
    struct vgs_gpu *gpu;
    nvmlReturn_t result = nvml_enter(function);
    if (result == NVML_SUCCESS)
        result = nvml_device(device, &gpu);
    if (result == NVML_SUCCESS && !(out && type < sizeof clocks / sizeof *clocks))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        *out = clocks[type];
    return result;
}

VGS_NVML nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *out)
{
    return clock_of(device, type, out, __func__);
}
VGS_NVML nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *out)
{
    return clock_of(device, type, out, __func__);
}
VGS_NVML nvmlDeviceGetApplicationsClock(nvmlDevice_t device, unsigned int type, unsigned int *out)
{
    return clock_of(device, type, out, __func__);
}

VGS_NVML nvmlDeviceGetClock(nvmlDevice_t device, unsigned int type, unsigned int id, unsigned int *out)
{
    NVML_ARGUMENT(id <= 3);
    return clock_of(device, type, out, __func__);
}

VGS_NVML nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    NVML_ENTER_DEVICE(device);
    (void)gpu;
    NVML_ARGUMENT(current && pending);
    *current = *pending = 1;
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    NVML_ENTER_DEVICE(device);
    (void)gpu;
    NVML_ARGUMENT(current && pending);
    *current = *pending = 0;
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig)
{
    NVML_ENTER_DEVICE(device);
    (void)gpu;
    (void)index;
    NVML_ARGUMENT(mig);
    return NVML_ERROR_NOT_FOUND;
}

VGS_NVML nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *least, unsigned int *most)
{
    NVML_ENTER_DEVICE(device);
    (void)gpu;
    NVML_ARGUMENT(least && most);
    *least = 200000;
    *most = 700000;
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned int type, unsigned int *out)
{
    NVML_ARGUMENT(type <= 3);
    NVML_CONSTANT(90u + type);
}

VGS_NVML nvmlDeviceOnSameBoard(nvmlDevice_t one, nvmlDevice_t two, int *same)
{
    struct vgs_gpu *other;
    NVML_ENTER_DEVICE(one);
    (void)gpu;
    NVML_ARGUMENT(same && nvml_device(two, &other) == NVML_SUCCESS);
    *same = one == two;
    return NVML_SUCCESS;
}

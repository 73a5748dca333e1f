/* nvml.h - the part of NVML's interface that the simulated libnvidia-ml answers. Layouts are NVML's own; tests compare with pynvml. */
#ifndef VGS_NVML_H
#define VGS_NVML_H

#include "vgs_fault.h"
#include "vgs_region.h"

typedef enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999
} nvmlReturn_t;

typedef struct nvmlDevice_st *nvmlDevice_t;

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

typedef struct {
    char busId[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId, reserved[4];
} nvmlPciInfo_v2_t;

typedef struct {
    unsigned int gpu, memory;
} nvmlUtilization_t;

typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
} nvmlProcessInfo_v1_t;

typedef struct { /* version 3 has the same layout */
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_v2_t;

typedef struct {
    unsigned int pid;
    unsigned long long timeStamp; /* µs */
    unsigned int smUtil, memUtil, encUtil, decUtil;
} nvmlProcessUtilizationSample_t;

typedef struct {
    unsigned long long timeStamp; /* µs */
    unsigned int pid, smUtil, memUtil, encUtil, decUtil, jpgUtil, ofaUtil;
} nvmlProcessUtilizationInfo_v1_t;

typedef struct {
    unsigned int version, processSamplesCount;
    unsigned long long lastSeenTimeStamp;
    nvmlProcessUtilizationInfo_v1_t *procUtilArray;
} nvmlProcessesUtilizationInfo_t;

typedef struct {
    unsigned int fieldId, scopeId;
    long long timestamp, latencyUsec;
    unsigned int valueType, nvmlReturn;
    unsigned long long value;
} nvmlFieldValue_t;

typedef struct {
    unsigned int version, sensorType;
    int temperature;
} nvmlTemperature_t;

typedef struct {
    nvmlDevice_t device;
    unsigned long long eventType, eventData; /* of a critical error: its number */
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlEventData_t;

_Static_assert(sizeof(nvmlEventData_t) == 32, "NVML");
_Static_assert(sizeof(nvmlMemory_v2_t) == 40, "NVML");
_Static_assert(sizeof(nvmlPciInfo_t) == 68, "NVML");
_Static_assert(sizeof(nvmlProcessInfo_v2_t) == 24, "NVML");
_Static_assert(sizeof(nvmlProcessUtilizationSample_t) == 32, "NVML");
_Static_assert(sizeof(nvmlProcessUtilizationInfo_v1_t) == 40, "NVML");
_Static_assert(sizeof(nvmlProcessesUtilizationInfo_t) == 24, "NVML");
_Static_assert(sizeof(nvmlFieldValue_t) == 40, "NVML");

#define VGS_NVML __attribute__((visibility("default"))) nvmlReturn_t
#define NVML_CHECK(condition, error)                                                                                   \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return error;                                                                                              \
    } while (0)
#define NVML_ARGUMENT(condition) NVML_CHECK(condition, NVML_ERROR_INVALID_ARGUMENT)
/* Every function but init begins with one of these. */
#define NVML_ENTER()                                                                                                   \
    do {                                                                                                               \
        nvmlReturn_t early_ = nvml_enter(__func__);                                                                    \
        if (early_ != NVML_SUCCESS)                                                                                    \
            return early_;                                                                                             \
    } while (0)
#define NVML_ENTER_DEVICE(handle)                                                                                      \
    NVML_ENTER();                                                                                                      \
    struct vgs_gpu *gpu;                                                                                               \
    do {                                                                                                               \
        nvmlReturn_t bad_ = nvml_device(handle, &gpu);                                                                 \
        if (bad_ != NVML_SUCCESS)                                                                                      \
            return bad_;                                                                                               \
    } while (0)

extern struct vgs_visible nvml_gpus;
nvmlReturn_t nvml_enter(const char *function);
nvmlReturn_t nvml_device(nvmlDevice_t handle, struct vgs_gpu **gpu);
uint32_t nvml_gpu_index(const struct vgs_gpu *gpu); /* in vgs_state */
nvmlDevice_t nvml_handle(uint32_t ordinal);
uint32_t nvml_ordinal(nvmlDevice_t handle);
/* Percent of its time that the GPU was busy since the last look; `slots`, if given, gets each slot's share. */
unsigned int nvml_utilization(uint32_t gpu, unsigned int *slots);

#endif

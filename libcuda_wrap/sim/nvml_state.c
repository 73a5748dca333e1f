/* nvml_state.c - what a device does: memory in use, utilisation, and the temperature and power that follow from it. */
#include <pthread.h>
#include <string.h>

#include "nvml.h"

#define WINDOW_NS 100000000u /* a figure is at least this old before it is made anew */

static struct look {
    uint64_t at_ns, busy_ns;
    unsigned int percent;
    uint64_t slot_busy_ns[VGS_MAX_SLOTS];
    uint64_t slot_start_ns[VGS_MAX_SLOTS]; /* tells a slot's next process */
    unsigned int slot_percent[VGS_MAX_SLOTS];
} looks[VGS_MAX_GPUS];
static pthread_mutex_t look_lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned int percent_of(uint64_t part_ns, uint64_t whole_ns)
{
    return whole_ns == 0 ? 0 : part_ns >= whole_ns ? 100 : (unsigned int)(part_ns * 100 / whole_ns);
}

/* Under look_lock. */
static void look_again(struct look *look, uint32_t index, uint64_t now)
{
    uint64_t busy = vgs_busy(index, VGS_MAX_SLOTS), passed = now - look->at_ns;
    bool first = look->at_ns == 0;
    look->percent = first ? (vgs_state->gpus[index].busy_ns > busy ? 100 : 0)
                          : percent_of(busy > look->busy_ns ? busy - look->busy_ns : 0, passed);
    for (uint32_t slot = 0; slot < vgs_state->slot_high && slot < VGS_MAX_SLOTS; slot++) {
        const struct vgs_slot *each = &vgs_state->slots[slot];
        uint64_t slot_busy = vgs_busy(index, slot);
        bool fresh = first || look->slot_start_ns[slot] != each->start_ns;
        uint64_t since = fresh ? 0 : look->slot_busy_ns[slot], span = fresh ? now - each->start_ns : passed;
        look->slot_percent[slot] = each->pid ? percent_of(slot_busy > since ? slot_busy - since : 0, span) : 0;
        look->slot_busy_ns[slot] = slot_busy;
        look->slot_start_ns[slot] = each->start_ns;
    }
    look->at_ns = now;
    look->busy_ns = busy;
}

unsigned int nvml_utilization(uint32_t gpu, unsigned int *slots)
{
    struct look *look = &looks[gpu];
    pthread_mutex_lock(&look_lock);
    uint64_t now = vgs_now_ns();
    if (look->at_ns == 0 || now - look->at_ns >= WINDOW_NS)
        look_again(look, gpu, now);
    unsigned int percent = look->percent;
    if (slots)
        memcpy(slots, look->slot_percent, sizeof look->slot_percent);
    pthread_mutex_unlock(&look_lock);
    return percent;
}

VGS_NVML nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(memory);
    uint64_t used = vgs_used(nvml_gpu_index(gpu));
    *memory = (nvmlMemory_t){.total = gpu->memory_bytes, .free = gpu->memory_bytes - used, .used = used};
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(memory);
    NVML_CHECK(memory->version == (sizeof *memory | 2u << 24), NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    uint64_t used = vgs_used(nvml_gpu_index(gpu));
    memory->total = gpu->memory_bytes;
    memory->reserved = 0;
    memory->free = gpu->memory_bytes - used;
    memory->used = used;
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    NVML_ENTER_DEVICE(device);
    (void)gpu;
    NVML_ARGUMENT(memory);
    *memory = (nvmlMemory_t){.total = 128ull << 30, .free = 128ull << 30, .used = 0};
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(utilization);
    *utilization = (nvmlUtilization_t){.gpu = nvml_utilization(nvml_gpu_index(gpu), NULL)};
    return NVML_SUCCESS;
}

/* Encoder and decoder: idle, sampled every 0.1 s. */
static nvmlReturn_t idle_engine(nvmlDevice_t device, unsigned int *utilization, unsigned int *period_us,
                                const char *function)
{
    struct vgs_gpu *gpu;
    nvmlReturn_t result = nvml_enter(function);
    if (result == NVML_SUCCESS)
        result = nvml_device(device, &gpu);
    if (result == NVML_SUCCESS && !(utilization && period_us))
        result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) {
        *utilization = 0;
        *period_us = 100000;
    }
    return result;
}

VGS_NVML nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *us)
{
    return idle_engine(device, percent, us, __func__);
}
VGS_NVML nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *us)
{
    return idle_engine(device, percent, us, __func__);
}
VGS_NVML nvmlDeviceGetJpgUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *us)
{
    return idle_engine(device, percent, us, __func__);
}
VGS_NVML nvmlDeviceGetOfaUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *us)
{
    return idle_engine(device, percent, us, __func__);
}

static unsigned int celsius(const struct vgs_gpu *gpu)
{
    return 30 + nvml_utilization(nvml_gpu_index(gpu), NULL) * 4 / 10;
}

VGS_NVML nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int *temperature)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(temperature && sensor == 0);
    *temperature = celsius(gpu);
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(temperature && temperature->sensorType == 0);
    NVML_CHECK(temperature->version == (sizeof *temperature | 1u << 24), NVML_ERROR_ARGUMENT_VERSION_MISMATCH);
    temperature->temperature = (int)celsius(gpu);
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(milliwatts);
    *milliwatts = 70000 + nvml_utilization(nvml_gpu_index(gpu), NULL) * 6300;
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules)
{
    NVML_ENTER_DEVICE(device);
    NVML_ARGUMENT(millijoules);
    *millijoules = vgs_busy(nvml_gpu_index(gpu), VGS_MAX_SLOTS) / 1000 * 700 / 1000; /* 700 W while busy */
    return NVML_SUCCESS;
}

VGS_NVML nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    NVML_ENTER_DEVICE(device);
    (void)gpu;
    NVML_ARGUMENT(values && count > 0);
    for (int i = 0; i < count; i++) {
        values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        values[i].timestamp = (long long)(vgs_now_ns() / 1000);
    }
    return NVML_SUCCESS;
}

/* nvml.c - NVML as the slice has it: its GPUs in its order, its memory, its processes.
 *
 * The driver's NVML calls its own functions through the dynamic linker, and so arrives here. Such a call must see the
 * machine as it is: it is told from a program's by where it comes from, or by being inside one of ours.
 */
#define _GNU_SOURCE /* dl_iterate_phdr */
#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "nvml_handlers.h"
#include "vgw_ledger.h"
#include "vgw_nvml_slice.h"
#include "vgw_real.h"
#include "vgw_region.h"

static __thread bool inside; /* one of ours is calling the driver */
static uintptr_t driver_start, driver_end;
static nvmlReturn_t (*get_uuid)(nvmlDevice_t, char *, unsigned int);
static nvmlReturn_t (*get_by_uuid)(const char *, nvmlDevice_t *);

static int note_driver(struct dl_phdr_info *object, size_t size, void *symbol)
{
    (void)size;
    for (unsigned at = 0; at < object->dlpi_phnum; at++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[at];
        const uintptr_t start = object->dlpi_addr + segment->p_vaddr, end = start + segment->p_memsz;
        if (segment->p_type == PT_LOAD && (segment->p_flags & PF_X) && (uintptr_t)symbol - start < end - start) {
            driver_start = start;
            driver_end = end;
            return 1;
        }
    }
    return 0;
}

void vgw_real_more(void *library)
{
    get_uuid = (__typeof__(get_uuid))vgw_real_symbol(library, "nvmlDeviceGetUUID");
    get_by_uuid = (__typeof__(get_by_uuid))vgw_real_symbol(library, "nvmlDeviceGetHandleByUUID");
    if (get_uuid != NULL)
        dl_iterate_phdr(note_driver, (void *)get_uuid);
}

bool vgw_by_driver(const void *caller)
{
    return inside || (uintptr_t)caller - driver_start < driver_end - driver_start;
}

void vgw_nvml_enter(void)
{
    inside = true;
}

nvmlReturn_t vgw_nvml_leave(nvmlReturn_t result)
{
    inside = false;
    return result;
}

nvmlReturn_t vgw_nvml_gpu(nvmlDevice_t device, unsigned *gpu)
{
    char uuid[96];
    if (!vgw_region_ready() || get_uuid == NULL)
        return NVML_ERROR_OPERATING_SYSTEM; /* closed: no slice is known */
    const nvmlReturn_t result = get_uuid(device, uuid, sizeof uuid);
    if (result != NVML_SUCCESS)
        return result;
    const int found = vgw_gpu_by_uuid(uuid);
    *gpu = (unsigned)found;
    return found < 0 ? NVML_ERROR_NOT_FOUND : NVML_SUCCESS;
}

nvmlReturn_t vgw_nvml_refuse(void)
{
    unsigned int count;
    vgw_fn_nvml_count *real = (vgw_fn_nvml_count *)vgw_real(VGW_AT_nvmlDeviceGetCount_v2);
    inside = true;
    const nvmlReturn_t result = real == NULL ? NVML_SUCCESS : real(&count);
    inside = false;
    return result != NVML_SUCCESS ? result : NVML_ERROR_NOT_SUPPORTED;
}

/* The slice's GPUs that the driver shows, in the slice's order. */
static nvmlReturn_t devices(nvmlDevice_t *found, unsigned *count)
{
    if (!vgw_region_ready() || get_by_uuid == NULL)
        return NVML_ERROR_OPERATING_SYSTEM; /* closed */
    *count = 0;
    for (unsigned gpu = 0; gpu < vgw_quota->gpu_count; gpu++) {
        const nvmlReturn_t result = get_by_uuid(vgw_quota->gpus[gpu].uuid, &found[*count]);
        if (result == NVML_SUCCESS)
            ++*count;
        else if (result != NVML_ERROR_NOT_FOUND && result != NVML_ERROR_INVALID_ARGUMENT)
            return result;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t vgw_nvml_count(vgw_fn_nvml_count *real, unsigned int *deviceCount)
{
    nvmlDevice_t found[VGW_MAX_GPUS];
    unsigned count = 0;
    inside = true;
    nvmlReturn_t result = real(deviceCount);
    if (result == NVML_SUCCESS)
        result = devices(found, &count);
    inside = false;
    if (result == NVML_SUCCESS)
        *deviceCount = count;
    return result;
}

nvmlReturn_t vgw_nvml_by_index(vgw_fn_nvml_by_index *real, unsigned int index, nvmlDevice_t *device)
{
    if (device == NULL)
        return real(index, device);
    nvmlDevice_t found[VGW_MAX_GPUS];
    unsigned count = 0;
    inside = true;
    const nvmlReturn_t result = devices(found, &count);
    inside = false;
    if (result != NVML_SUCCESS)
        return result;
    if (index >= count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = found[index];
    return NVML_SUCCESS;
}

/* The end of a look-up, while `inside`: the device must be of the slice. */
static nvmlReturn_t found(nvmlReturn_t result, const nvmlDevice_t *device)
{
    unsigned gpu;
    if (result == NVML_SUCCESS)
        result = vgw_nvml_gpu(*device, &gpu);
    inside = false;
    return result;
}

nvmlReturn_t vgw_nvml_by_name(vgw_fn_nvml_by_name *real, const char *name, nvmlDevice_t *device)
{
    inside = true;
    return found(real(name, device), device);
}

nvmlReturn_t vgw_nvml_by_uuid(vgw_fn_nvml_by_uuid *real, const nvmlUUID_t *uuid, nvmlDevice_t *device)
{
    inside = true;
    return found(real(uuid, device), device);
}

nvmlReturn_t vgw_nvml_index(vgw_fn_nvml_index *real, nvmlDevice_t device, unsigned int *index)
{
    nvmlDevice_t found[VGW_MAX_GPUS];
    unsigned count = 0;
    inside = true;
    nvmlReturn_t result = real(device, index);
    if (result == NVML_SUCCESS)
        result = devices(found, &count);
    inside = false;
    for (unsigned at = 0; result == NVML_SUCCESS && at < count; at++)
        if (found[at] == device) {
            *index = at;
            return NVML_SUCCESS;
        }
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_FOUND : result;
}

static unsigned long long smaller(unsigned long long one, unsigned long long other)
{
    return one < other ? one : other;
}

/* Replaces the machine's figures by the slice's. */
static nvmlReturn_t slice_memory(nvmlDevice_t device, unsigned long long *total, unsigned long long *free,
                                 unsigned long long *used)
{
    unsigned gpu;
    const nvmlReturn_t result = vgw_nvml_gpu(device, &gpu);
    if (result != NVML_SUCCESS)
        return result;
    vgw_reap(); /* a question for people: the answer should not have the dead in it */
    *total = smaller(*total, __atomic_load_n(&vgw_quota->gpus[gpu].memory_bytes, __ATOMIC_RELAXED));
    *used = smaller(*total, vgw_ledger_used(vgw_usage, gpu));
    *free = *total - *used;
    return NVML_SUCCESS;
}

nvmlReturn_t vgw_nvml_memory(vgw_fn_nvml_memory *real, nvmlDevice_t device, nvmlMemory_t *memory)
{
    inside = true;
    nvmlReturn_t result = real(device, memory);
    if (result == NVML_SUCCESS)
        result = slice_memory(device, &memory->total, &memory->free, &memory->used);
    inside = false;
    return result;
}

nvmlReturn_t vgw_nvml_memory_v2(vgw_fn_nvml_memory_v2 *real, nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    inside = true;
    nvmlReturn_t result = real(device, memory);
    if (result == NVML_SUCCESS)
        result = slice_memory(device, &memory->total, &memory->free, &memory->used);
    if (result == NVML_SUCCESS)
        memory->reserved = 0; /* the driver's own part is not taken from the slice */
    inside = false;
    return result;
}

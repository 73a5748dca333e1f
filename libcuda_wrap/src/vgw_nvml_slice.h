/* vgw_nvml_slice.h - what the handlers of nvml.c and nvml_process.c share. */
#ifndef VGW_NVML_SLICE_H
#define VGW_NVML_SLICE_H

#include "vgw_nvml.h"
#include "vgw_real.h"

/* Around calls of the driver: its own calls of our functions, in between, see the machine as it is. */
void vgw_nvml_enter(void);
nvmlReturn_t vgw_nvml_leave(nvmlReturn_t result);

/* The slice's GPU that this device is. NVML_SUCCESS, or the error to answer. Called between enter and leave. */
nvmlReturn_t vgw_nvml_gpu(nvmlDevice_t device, unsigned *gpu);

/* NVML_ERROR_NOT_SUPPORTED, or what the driver answers before nvmlInit. */
nvmlReturn_t vgw_nvml_refuse(void);

#endif

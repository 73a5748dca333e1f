/* client_overhead.h - client.c's commands for modules. */
#ifndef CLIENT_OVERHEAD_H
#define CLIENT_OVERHEAD_H

#include <stdio.h>
#include <string.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"

/* Loads an image of `bytes` of device memory; `path` has one too. */
static inline CUresult load(const char *how, unsigned long long *at, unsigned long long bytes, const char *path)
{
    char image[64];
    snprintf(image, sizeof image, "// vgpu-sim device_bytes=%llu", bytes);
    CUmodule *module = (CUmodule *)at;
    CUlibrary *library = (CUlibrary *)at;
    if (strcmp(how, "data") == 0)
        return cuModuleLoadData(module, image);
    if (strcmp(how, "data_ex") == 0)
        return cuModuleLoadDataEx(module, image, 0, NULL, NULL);
    if (strcmp(how, "fat") == 0)
        return cuModuleLoadFatBinary(module, image);
    if (strcmp(how, "file") == 0)
        return cuModuleLoad(module, path);
    if (strcmp(how, "library") == 0)
        return cuLibraryLoadData(library, image, NULL, NULL, 0, NULL, NULL, 0);
    return cuLibraryLoadFromFile(library, path, NULL, NULL, 0, NULL, NULL, 0);
}

static inline CUresult unload(const char *how, unsigned long long value)
{
    return strncmp(how, "library", 7) == 0 ? cuLibraryUnload((CUlibrary)value) : cuModuleUnload((CUmodule)value);
}

#endif

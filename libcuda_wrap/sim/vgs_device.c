/* vgs_device.c - devices and the driver: what a program asks before it has a context. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "vgs_driver.h"

#ifndef VGS_CUDA_VERSION
#define VGS_CUDA_VERSION 13000 /* the interface of entry_points.yaml */
#endif
#define SMS 132

/* By CUdevice_attribute; those not named are 0. The GPU is one of compute capability 9.0 without what we do not simulate. */
static const int attributes[148] = {
    [1] = 1024,
    [2] = 1024,
    [3] = 1024,
    [4] = 64,
    [5] = 2147483647,
    [6] = 65535,
    [7] = 65535,
    [8] = 49152,
    [9] = 65536,
    [10] = 32,
    [11] = 2147483647,
    [12] = 65536,
    [13] = 1785000 /* kHz */,
    [14] = 512,
    [15] = 1,
    [16] = SMS,
    [19] = 1,
    [21] = 131072,
    [22] = 131072,
    [23] = 65536,
    [24] = 16384,
    [25] = 16384,
    [26] = 16384,
    [27] = 32768,
    [28] = 32768,
    [29] = 2048,
    [30] = 512,
    [31] = 1,
    [32] = 1,
    [36] = 2619000 /* kHz */,
    [37] = 5120 /* bits */,
    [38] = 50 << 20,
    [39] = 2048,
    [40] = 3,
    [41] = 1,
    [42] = 32768,
    [43] = 2048,
    [45] = 32768,
    [46] = 32768,
    [47] = 16384,
    [48] = 16384,
    [49] = 16384,
    [51] = 32,
    [52] = 32768,
    [53] = 32768,
    [54] = 2046,
    [55] = 32768,
    [56] = 131072,
    [57] = 65536,
    [58] = 16384,
    [59] = 16384,
    [60] = 16384,
    [61] = 32768,
    [62] = 2048,
    [63] = 32768,
    [64] = 32768,
    [65] = 2048,
    [66] = 32768,
    [67] = 32768,
    [68] = 2046,
    [69] = 268435456,
    [70] = 131072,
    [71] = 65000,
    [72] = 2097120,
    [73] = 32768,
    [74] = 32768,
    [75] = 9,
    [76] = 0,
    [77] = 32768,
    [78] = 1,
    [79] = 1,
    [80] = 1,
    [81] = 233472,
    [82] = 65536,
    [83] = 1,
    [87] = 2,
    [89] = 1,
    [90] = 1,
    [91] = 1,
    [95] = 1,
    [97] = 232448,
    [99] = 1,
    [102] = 1,
    [103] = 1,
    [106] = 32,
    [108] = 32 << 20,
    [109] = 128 << 20,
    [111] = 1024,
    [115] = 1,
    [119] = 1 /* descriptors */,
    [120] = 1,
    [126] = 4,
    [129] = 1,
    [130] = 0,
    [131] = -1,
    [132] = 1,
    [134] = -1,
};

/* What each GPU has of its own. */
static const struct vgs_gpu *gpu_of(CUdevice dev)
{
    return &vgs_state->gpus[vgs_gpus.index[dev]];
}

#define VGS_DEVICE(dev) VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE)

int vgs_cuda_version(void)
{
    return vgs_state ? (int)vgs_state->cuda_version : VGS_CUDA_VERSION;
}

VGS_API cuDriverGetVersion(int *version)
{
    VGS_VALUE(version); /* works before cuInit */
    *version = vgs_cuda_version();
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetCount(int *count)
{
    VGS_ENTER();
    VGS_VALUE(count);
    *count = (int)vgs_gpus.count;
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGet(CUdevice *device, int ordinal)
{
    VGS_ENTER();
    VGS_VALUE(device);
    VGS_DEVICE(ordinal);
    *device = ordinal;
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetName(char *name, int len, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(name && len > 0);
    VGS_DEVICE(dev);
    snprintf(name, (size_t)len, "%s", gpu_of(dev)->name);
    return CUDA_SUCCESS;
}

static int hex_value(char digit)
{
    return digit >= '0' && digit <= '9' ? digit - '0' : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

static CUresult uuid_of(CUuuid *uuid, CUdevice dev)
{
    VGS_VALUE(uuid);
    VGS_DEVICE(dev);
    const char *text = gpu_of(dev)->uuid + strlen("GPU-");
    memset(uuid, 0, sizeof *uuid);
    for (size_t nibble = 0; *text && nibble < 32; text++)
        if (hex_value(*text) >= 0) {
            uuid->bytes[nibble / 2] = (char)(uuid->bytes[nibble / 2] << 4 | hex_value(*text));
            nibble++;
        }
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetUuid(CUuuid *uuid, CUdevice dev)
{
    VGS_ENTER();
    return uuid_of(uuid, dev);
}

VGS_API cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice dev)
{
    VGS_ENTER();
    return uuid_of(uuid, dev);
}

VGS_API cuDeviceGetLuid(char *luid, unsigned int *mask, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(luid && mask);
    VGS_DEVICE(dev);
    return CUDA_ERROR_NOT_SUPPORTED; /* as on Linux */
}

VGS_API cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(bytes);
    VGS_DEVICE(dev);
    *bytes = gpu_of(dev)->memory_bytes;
    return CUDA_SUCCESS;
}

static void pci_of(CUdevice dev, unsigned int *domain, unsigned int *bus, unsigned int *device)
{
    *domain = *bus = *device = 0;
    sscanf(gpu_of(dev)->pci_bus_id, "%x:%x:%x", domain, bus, device);
}

VGS_API cuDeviceGetAttribute(int *pi, int attribute, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(pi && attribute >= 1 && attribute < (int)(sizeof attributes / sizeof *attributes));
    VGS_DEVICE(dev);
    unsigned int domain, bus, device;
    pci_of(dev, &domain, &bus, &device);
    *pi = attribute == 33   ? (int)bus
          : attribute == 34 ? (int)device
          : attribute == 50 ? (int)domain
                            : attributes[attribute];
    return CUDA_SUCCESS;
}

VGS_API cuDeviceComputeCapability(int *major, int *minor, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(major && minor);
    VGS_DEVICE(dev);
    *major = attributes[75];
    *minor = attributes[76];
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetProperties(CUdevprop *prop, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(prop);
    VGS_DEVICE(dev);
    *prop = (CUdevprop){
        attributes[1],
        {attributes[2], attributes[3], attributes[4]},
        {attributes[5], attributes[6], attributes[7]},
        attributes[8],
        attributes[9],
        attributes[10],
        attributes[11],
        attributes[12],
        attributes[13],
        attributes[14],
    };
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetPCIBusId(char *id, int len, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(id && len > 12);
    VGS_DEVICE(dev);
    unsigned int domain, bus, device;
    pci_of(dev, &domain, &bus, &device);
    snprintf(id, (size_t)len, "%04x:%02x:%02x.0", domain & 0xffff, bus & 0xff, device & 0xff);
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetByPCIBusId(CUdevice *dev, const char *id)
{
    VGS_ENTER();
    VGS_VALUE(dev && id);
    unsigned int domain = 0, bus, device;
    if (sscanf(id, "%x:%x:%x", &domain, &bus, &device) != 3) {
        domain = 0;
        VGS_VALUE(sscanf(id, "%x:%x", &bus, &device) == 2);
    }
    for (int i = 0; i < (int)vgs_gpus.count; i++) {
        unsigned int d, b, s;
        pci_of(i, &d, &b, &s);
        if (d == domain && b == bus && s == device) {
            *dev = i;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

VGS_API cuDeviceCanAccessPeer(int *can, CUdevice dev, CUdevice peer)
{
    VGS_ENTER();
    VGS_VALUE(can);
    VGS_DEVICE(dev);
    VGS_DEVICE(peer);
    *can = dev != peer;
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetP2PAttribute(int *value, int attribute, CUdevice source, CUdevice target)
{
    VGS_ENTER();
    VGS_VALUE(value && attribute >= 1 && attribute <= 5);
    VGS_CHECK(vgs_device_ok(source) && vgs_device_ok(target) && source != target, CUDA_ERROR_INVALID_DEVICE);
    *value = attribute == 2; /* access, yes; rank, atomics and arrays, no */
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetExecAffinitySupport(int *pi, int type, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(pi && type == 0);
    VGS_DEVICE(dev);
    *pi = 0;
    return CUDA_SUCCESS;
}

VGS_API cuDeviceGetTexture1DLinearMaxWidth(size_t *width, int format, unsigned channels, CUdevice dev)
{
    VGS_ENTER();
    (void)format;
    VGS_VALUE(width && channels >= 1 && channels <= 4);
    VGS_DEVICE(dev);
    *width = (size_t)attributes[69];
    return CUDA_SUCCESS;
}

/* client_tiles.h - kernels.c's commands for sparse and deferred arrays. */
#ifndef CLIENT_TILES_H
#define CLIENT_TILES_H

#include <stdint.h>
#include <string.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"

static inline CUresult make_pool(unsigned long long *at, unsigned long long bytes, int device)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, device},
                                .allocFlags = {.usage = CU_MEM_CREATE_USAGE_TILE_POOL}};
    return cuMemCreate(at, bytes, &prop, 0);
}

/* Of elements of four bytes: a tile is 128 by 128 of them. */
static inline CUresult make_tiled(unsigned long long *at, unsigned long long width, unsigned long long height,
                                  unsigned flags, unsigned levels)
{
    const CUDA_ARRAY3D_DESCRIPTOR shape = {
        .Width = width, .Height = height, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1, .Flags = flags};
    return levels == 0 ? cuArray3DCreate_v2((CUarray *)at, &shape)
                       : cuMipmappedArrayCreate((CUmipmappedArray *)at, &shape, levels);
}

/* what: array, memory (0: unbind), level, x, y, width, height in tiles. For level 99 of a mipmap x and width are those of its tail. */
static inline CUarrayMapInfo tile_operation(unsigned long long array, int is_mipmap, unsigned long long memory,
                                            const unsigned long long *where)
{
    CUarrayMapInfo info;
    memset(&info, 0, sizeof info);
    info.resourceType = is_mipmap ? CU_RESOURCE_TYPE_MIPMAPPED_ARRAY : CU_RESOURCE_TYPE_ARRAY;
    info.resource.array = (CUarray)(uintptr_t)array;
    info.memOperationType = memory == 0 ? CU_MEM_OPERATION_TYPE_UNMAP : CU_MEM_OPERATION_TYPE_MAP;
    info.memHandle.memHandle = memory;
    info.deviceBitMask = 1;
    if (where[0] == 99) {
        info.subresourceType = CU_ARRAY_SPARSE_SUBRESOURCE_TYPE_MIPTAIL;
        info.subresource.miptail.offset = where[1] * 65536;
        info.subresource.miptail.size = where[3] * 65536;
        return info;
    }
    info.subresource.sparseLevel.level = (unsigned)where[0];
    info.subresource.sparseLevel.offsetX = (unsigned)where[1] * 128;
    info.subresource.sparseLevel.offsetY = (unsigned)where[2] * 128;
    info.subresource.sparseLevel.extentWidth = (unsigned)where[3] * 128;
    info.subresource.sparseLevel.extentHeight = (unsigned)where[4] * 128;
    info.subresource.sparseLevel.extentDepth = 1;
    return info;
}

#endif

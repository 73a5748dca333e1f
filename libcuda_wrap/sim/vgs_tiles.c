/* vgs_tiles.c - memory bound to sparse arrays, tile by tile of 64 KiB, and to deferred ones as a whole.
 * What is bound keeps its memory. A call changes the table at once; memory that it unbinds is let go when the stream gets there.
 */
#include <stdlib.h>

#include "vgs_driver.h"

#define TILE_BYTES 65536u

struct vgs_tiles { /* of one array, or of one level; of a mipmap's tail: its first level has them */
    unsigned int across, down, deep, layers; /* tiles each way */
    unsigned int size[3];                    /* elements of a tile each way */
    void **bound;                            /* physical memory of each tile */
    size_t tail_tiles;
    void **tail;
};

struct dropped { /* to let go of when the stream gets there */
    size_t count, room;
    void **items;
};

static void add(struct dropped *dropped, void *physical)
{
    if (dropped->count == dropped->room) {
        dropped->room = dropped->room ? 2 * dropped->room : 16;
        dropped->items = realloc(dropped->items, dropped->room * sizeof *dropped->items);
        if (!dropped->items)
            abort(); /* the simulation itself has no memory left */
    }
    dropped->items[dropped->count++] = physical;
}

static void let_go(void *argument)
{
    struct dropped *dropped = argument;
    for (size_t i = 0; i < dropped->count; i++)
        vgs_physical_let_go(dropped->items[i]);
    free(dropped->items);
    free(dropped);
}

static bool is_deep(const CUDA_ARRAY3D_DESCRIPTOR *shape)
{
    return shape->Depth > 0 && !(shape->Flags & 0x01u); /* and not layered */
}

/* A tile's sides, by bytes of an element: the standard block shapes of 64 KiB. */
static void shape_of(CUarray array, unsigned int size[3])
{
    static const unsigned int flat[5][2] = {{256, 256}, {256, 128}, {128, 128}, {128, 64}, {64, 64}};
    static const unsigned int deep[5][3] = {{64, 32, 32}, {32, 32, 32}, {32, 32, 16}, {32, 16, 16}, {16, 16, 16}};
    unsigned int power = 0;
    while (power < 4 && (1u << power) < array->element)
        power++;
    const bool three = is_deep(&array->shape);
    size[0] = three ? deep[power][0] : flat[power][0];
    size[1] = three ? deep[power][1] : flat[power][1];
    size[2] = three ? deep[power][2] : 1;
}

static unsigned int tiles_in(size_t length, unsigned int tile)
{
    return length == 0 ? 1 : (unsigned int)((length + tile - 1) / tile);
}

/* Whether a level is part of the tail: smaller than a tile somewhere. */
static bool is_small(CUarray level, const unsigned int size[3])
{
    return level->shape.Width < size[0] || level->shape.Height < size[1] ||
           (is_deep(&level->shape) && level->shape.Depth < size[2]);
}

static struct vgs_tiles *tiles_of(CUarray array)
{
    if (array->tiles)
        return array->tiles;
    struct vgs_tiles *made = calloc(1, sizeof *made);
    if (!made)
        return NULL;
    shape_of(array, made->size);
    const CUDA_ARRAY3D_DESCRIPTOR *shape = &array->shape;
    const bool whole = shape->Flags & CUDA_ARRAY3D_DEFERRED_MAPPING;
    made->across = whole ? 1 : tiles_in(shape->Width, made->size[0]);
    made->down = whole ? 1 : tiles_in(shape->Height, made->size[1]);
    made->deep = whole || !is_deep(shape) ? 1 : tiles_in(shape->Depth, made->size[2]);
    made->layers = whole || is_deep(shape) || shape->Depth == 0 ? 1 : (unsigned int)shape->Depth;
    made->bound = calloc((size_t)made->across * made->down * made->deep * made->layers, sizeof(void *));
    if (!made->bound) {
        free(made);
        return NULL;
    }
    array->tiles = made;
    return made;
}

void vgs_tiles_free(struct vgs_tiles *tiles)
{
    if (!tiles)
        return;
    for (size_t i = 0; i < (size_t)tiles->across * tiles->down * tiles->deep * tiles->layers; i++)
        if (tiles->bound[i])
            vgs_physical_let_go(tiles->bound[i]);
    for (size_t i = 0; i < tiles->tail_tiles; i++)
        if (tiles->tail[i])
            vgs_physical_let_go(tiles->tail[i]);
    free(tiles->bound);
    free(tiles->tail);
    free(tiles);
}

static CUresult properties(CUDA_ARRAY_SPARSE_PROPERTIES *out, CUarray first, CUmipmappedArray mipmap)
{
    unsigned int size[3], level = 0;
    VGS_VALUE(out && first->shape.Flags & CUDA_ARRAY3D_SPARSE);
    shape_of(first, size);
    *out = (CUDA_ARRAY_SPARSE_PROPERTIES){.tileExtent = {size[0], size[1], size[2]}};
    for (CUarray at; mipmap && (at = vgs_mipmap_level(mipmap, level)) != NULL; level++) {
        if (!is_small(at, size) && out->miptailSize == 0) {
            out->miptailFirstLevel = level + 1;
            continue;
        }
        out->miptailSize += vgs_array_bytes(at);
    }
    out->miptailSize = (out->miptailSize + TILE_BYTES - 1) / TILE_BYTES * TILE_BYTES;
    return CUDA_SUCCESS;
}

VGS_API cuArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *out, CUarray array)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(array, VGS_ARRAY), CUDA_ERROR_INVALID_HANDLE);
    return properties(out, array, NULL);
}

VGS_API cuMipmappedArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *out, CUmipmappedArray mipmap)
{
    VGS_ENTER();
    CUarray first = vgs_mipmap_level(mipmap, 0);
    VGS_CHECK(first, CUDA_ERROR_INVALID_HANDLE);
    return properties(out, first, mipmap);
}

struct part { /* of the table: `count` tiles, found one after the other */
    void **bound;
    size_t first[4], last[4], sides[4]; /* x, y, z, layer */
    uint64_t bytes;                     /* of memory, from the offset */
};

static bool inside(size_t from, size_t to, size_t unit, size_t tiles, struct part *part, unsigned int axis)
{
    part->first[axis] = from / unit;
    part->last[axis] = (to + unit - 1) / unit;
    part->sides[axis] = tiles;
    return to > from && from % unit == 0 && part->last[axis] <= tiles;
}

static bool tail_of(const CUarrayMapInfo *info, CUarray first, struct part *part)
{
    CUDA_ARRAY_SPARSE_PROPERTIES tail;
    struct vgs_tiles *tiles = tiles_of(first);
    if (!tiles || info->resourceType != CU_RESOURCE_TYPE_MIPMAPPED_ARRAY ||
        properties(&tail, first, info->resource.mipmap) != CUDA_SUCCESS || tail.miptailSize == 0)
        return false;
    if (!tiles->tail) {
        tiles->tail_tiles = tail.miptailSize / TILE_BYTES;
        tiles->tail = calloc(tiles->tail_tiles, sizeof(void *));
    }
    const uint64_t from = info->subresource.miptail.offset, to = from + info->subresource.miptail.size;
    *part = (struct part){.bound = tiles->tail, .last = {0, 1, 1, 1}, .sides = {0, 1, 1, 1}, .bytes = to - from};
    return tiles->tail && to % TILE_BYTES == 0 && inside(from, to, TILE_BYTES, tiles->tail_tiles, part, 0);
}

static bool level_of(const CUarrayMapInfo *info, CUarray array, struct part *part)
{
    struct vgs_tiles *tiles = tiles_of(array);
    const unsigned int *from = &info->subresource.sparseLevel.offsetX, *extent = from + 3;
    if (!tiles || is_small(array, tiles->size))
        return false;
    *part = (struct part){.bound = tiles->bound};
    const unsigned int sides[3] = {tiles->across, tiles->down, tiles->deep};
    for (unsigned int axis = 0; axis < 3; axis++)
        if (!inside(from[axis], (size_t)from[axis] + extent[axis], tiles->size[axis], sides[axis], part, axis))
            return false;
    const size_t layer = info->subresource.sparseLevel.layer;
    part->bytes = TILE_BYTES;
    for (unsigned int axis = 0; axis < 3; axis++)
        part->bytes *= part->last[axis] - part->first[axis];
    return inside(layer, layer + 1, 1, tiles->layers, part, 3);
}

/* The part of the table that an operation is about. */
static bool part_of(const CUarrayMapInfo *info, struct part *part)
{
    const bool levels = info->resourceType == CU_RESOURCE_TYPE_MIPMAPPED_ARRAY;
    CUarray first = levels ? vgs_mipmap_level(info->resource.mipmap, 0) : info->resource.array;
    if ((!levels && (!vgs_valid(first, VGS_ARRAY) || first->borrowed)) || !first || first->shape.Height == 0)
        return false;
    if (first->shape.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING) {
        struct vgs_tiles *tiles = tiles_of(first);
        *part = (struct part){.last = {1, 1, 1, 1}, .sides = {1, 1, 1, 1}};
        part->bound = tiles ? tiles->bound : NULL;
        CUarray each;
        for (unsigned int level = 0; levels && (each = vgs_mipmap_level(info->resource.mipmap, level)); level++)
            part->bytes += vgs_array_bytes(each);
        part->bytes += levels ? 0 : vgs_array_bytes(first);
        return tiles != NULL;
    }
    if (!(first->shape.Flags & CUDA_ARRAY3D_SPARSE))
        return false;
    if (info->subresourceType == CU_ARRAY_SPARSE_SUBRESOURCE_TYPE_MIPTAIL)
        return tail_of(info, first, part);
    CUarray level = levels ? vgs_mipmap_level(info->resource.mipmap, info->subresource.sparseLevel.level) : first;
    return level && (levels || info->subresource.sparseLevel.level == 0) && level_of(info, level, part);
}

/* Binds each tile of the part to the memory, NULL: to none. What was bound is dropped. */
static void bind(const struct part *part, CUmemGenericAllocationHandle handle, CUdevice device, bool to_memory,
                 struct dropped *dropped)
{
    for (size_t layer = part->first[3]; layer < part->last[3]; layer++)
        for (size_t z = part->first[2]; z < part->last[2]; z++)
            for (size_t y = part->first[1]; y < part->last[1]; y++)
                for (size_t x = part->first[0]; x < part->last[0]; x++) {
                    void **tile =
                        &part->bound[((layer * part->sides[2] + z) * part->sides[1] + y) * part->sides[0] + x];
                    if (*tile)
                        add(dropped, *tile);
                    *tile = to_memory ? vgs_physical_hold(handle, device, 0) : NULL;
                }
}

static CUresult check(const CUarrayMapInfo *info, CUdevice device, struct part *part)
{
    VGS_VALUE(info->resourceType == CU_RESOURCE_TYPE_ARRAY || info->resourceType == CU_RESOURCE_TYPE_MIPMAPPED_ARRAY);
    VGS_VALUE(info->flags == 0 && info->deviceBitMask == 1u << device && part_of(info, part));
    if (info->memOperationType == CU_MEM_OPERATION_TYPE_UNMAP) {
        VGS_VALUE(info->memHandle.memHandle == 0);
        return CUDA_SUCCESS;
    }
    VGS_VALUE(info->memOperationType == CU_MEM_OPERATION_TYPE_MAP && info->offset % TILE_BYTES == 0 &&
              info->memHandleType == CU_MEM_HANDLE_TYPE_GENERIC);
    void *held = vgs_physical_hold(info->memHandle.memHandle, device, info->offset + part->bytes);
    VGS_VALUE(held);
    vgs_physical_let_go(held);
    return CUDA_SUCCESS;
}

VGS_API cuMemMapArrayAsync(CUarrayMapInfo *list, unsigned int count, CUstream hStream)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    struct part part;
    CUstream stream = vgs_stream(hStream);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(list && count);
    VGS_CHECK(!stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    const CUdevice device = stream->head.ctx->device;
    for (unsigned int i = 0; i < count; i++) {
        CUresult result = check(&list[i], device, &part);
        VGS_CHECK(result == CUDA_SUCCESS, result);
    }
    struct dropped *dropped = calloc(1, sizeof *dropped);
    VGS_CHECK(dropped, CUDA_ERROR_OUT_OF_MEMORY);
    for (unsigned int i = 0; i < count; i++) {
        part_of(&list[i], &part);
        bind(&part, list[i].memHandle.memHandle, device, list[i].memOperationType == CU_MEM_OPERATION_TYPE_MAP,
             dropped);
    }
    if (dropped->count)
        vgs_queue_host(stream, let_go, dropped);
    else
        free(dropped);
    return CUDA_SUCCESS;
}

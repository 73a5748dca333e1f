/* vgs_array.c - arrays and mipmapped arrays. Their bytes lie row after row, without gaps; that is also what is charged. */
#include "vgs_driver.h"

#define FLAG_LAYERED 0x01u
#define FLAG_CUBEMAP 0x04u
#define LEVELS       32

struct CUmipmappedArray_st {
    struct vgs_object head;
    uint32_t levels;
    CUarray level[LEVELS];
};

/* Bytes of one element of `channels` channels; 0: no such format. Formats with an own layout (video, block compression) are not offered. */
static size_t element_bytes(int format, unsigned int channels)
{
    if (channels != 1 && channels != 2 && channels != 4)
        return 0;
    switch (format) {
    case 0x01: /* 8 bits */
    case 0x08:
        return channels;
    case 0x02: /* 16 bits */
    case 0x09:
    case 0x10:
        return 2 * channels;
    case 0x03: /* 32 bits */
    case 0x0a:
    case 0x20:
        return 4 * channels;
    default:
        return 0;
    }
}

static bool size_of(const CUDA_ARRAY3D_DESCRIPTOR *shape, size_t element, size_t *size)
{
    size_t height = shape->Height ? shape->Height : 1, depth = shape->Depth ? shape->Depth : 1;
    return !__builtin_mul_overflow(shape->Width, element, size) && !__builtin_mul_overflow(*size, height, size) &&
           !__builtin_mul_overflow(*size, depth, size);
}

size_t vgs_array_bytes(CUarray array)
{
    size_t size = 0;
    size_of(&array->shape, array->element, &size);
    return size;
}

CUarray vgs_mipmap_level(CUmipmappedArray mipmap, unsigned int level)
{
    return vgs_valid(mipmap, VGS_MIPMAP) && level < mipmap->levels ? mipmap->level[level] : NULL;
}

static CUresult create(CUcontext ctx, const CUDA_ARRAY3D_DESCRIPTOR *shape, CUarray *out)
{
    size_t element = element_bytes((int)shape->Format, shape->NumChannels), size;
    VGS_VALUE(shape->Width && element && !(shape->Depth && !shape->Height && !(shape->Flags & FLAG_LAYERED)));
    VGS_VALUE(!(shape->Flags & FLAG_CUBEMAP) ||
              (shape->Width == shape->Height && shape->Depth && shape->Depth % 6 == 0));
    VGS_CHECK(size_of(shape, element, &size), CUDA_ERROR_OUT_OF_MEMORY);
    CUarray array = vgs_new(VGS_ARRAY, sizeof *array, ctx);
    VGS_CHECK(array, CUDA_ERROR_OUT_OF_MEMORY);
    array->shape = *shape;
    array->element = element;
    if (!(shape->Flags &
          (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING))) { /* those have no memory until it is mapped */
        CUresult result = vgs_take_memory(ctx, size, VGS_ARRAY_DATA, 0, &array->data);
        if (result != CUDA_SUCCESS) {
            vgs_delete(array);
            return result;
        }
    }
    *out = array;
    return CUDA_SUCCESS;
}

static void destroy(CUarray array)
{
    CUdeviceptr base;
    struct vgs_block *block = array->data ? vgs_arena_find(array->data, &base) : NULL;
    if (block)
        vgs_free_memory(base, block);
    vgs_tiles_free(array->tiles);
    vgs_delete(array);
}

VGS_API cuArray3DCreate_v2(CUarray *handle, const CUDA_ARRAY3D_DESCRIPTOR *shape)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(handle && shape);
    return create(ctx, shape, handle);
}

VGS_API cuArrayCreate_v2(CUarray *handle, const CUDA_ARRAY_DESCRIPTOR *shape)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(handle && shape);
    CUDA_ARRAY3D_DESCRIPTOR full = {
        .Width = shape->Width, .Height = shape->Height, .Format = shape->Format, .NumChannels = shape->NumChannels};
    return create(ctx, &full, handle);
}

VGS_API cuArrayDestroy(CUarray array)
{
    VGS_ENTER_CONTEXT();
    VGS_CHECK(vgs_valid(array, VGS_ARRAY) && !array->borrowed, CUDA_ERROR_INVALID_HANDLE);
    destroy(array);
    return CUDA_SUCCESS;
}

VGS_API cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *shape, CUarray array)
{
    VGS_ENTER_CONTEXT();
    VGS_CHECK(vgs_valid(array, VGS_ARRAY), CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(shape);
    *shape = array->shape;
    return CUDA_SUCCESS;
}

VGS_API cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *shape, CUarray array)
{
    VGS_ENTER_CONTEXT();
    VGS_CHECK(vgs_valid(array, VGS_ARRAY), CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(shape);
    *shape =
        (CUDA_ARRAY_DESCRIPTOR){array->shape.Width, array->shape.Height, array->shape.Format, array->shape.NumChannels};
    return CUDA_SUCCESS;
}

VGS_API cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *out, CUarray array, CUdevice device)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(array, VGS_ARRAY), CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(out && array->shape.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING);
    VGS_CHECK(vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    *out = (CUDA_ARRAY_MEMORY_REQUIREMENTS){.alignment = 2u << 20};
    size_of(&array->shape, array->element, &out->size);
    return CUDA_SUCCESS;
}

VGS_API cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *out, CUmipmappedArray mipmap,
                                              CUdevice device)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(mipmap, VGS_MIPMAP), CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(out && mipmap->level[0]->shape.Flags & CUDA_ARRAY3D_DEFERRED_MAPPING);
    VGS_CHECK(vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    *out = (CUDA_ARRAY_MEMORY_REQUIREMENTS){.alignment = 2u << 20};
    for (uint32_t i = 0; i < mipmap->levels; i++)
        out->size += vgs_array_bytes(mipmap->level[i]);
    return CUDA_SUCCESS;
}

static size_t halved(size_t length, uint32_t level)
{
    return length == 0 ? 0 : length >> level ? length >> level : 1;
}

VGS_API cuMipmappedArrayCreate(CUmipmappedArray *handle, const CUDA_ARRAY3D_DESCRIPTOR *shape, unsigned int levels)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(handle && shape && levels >= 1);
    size_t longest = shape->Width > shape->Height ? shape->Width : shape->Height;
    longest = longest > shape->Depth ? longest : shape->Depth;
    uint32_t most = 1;
    while (most < LEVELS && longest >> most)
        most++;
    CUmipmappedArray mipmap = vgs_new(VGS_MIPMAP, sizeof *mipmap, ctx);
    VGS_CHECK(mipmap, CUDA_ERROR_OUT_OF_MEMORY);
    CUresult result = CUDA_SUCCESS;
    bool layered = shape->Flags & (FLAG_LAYERED | FLAG_CUBEMAP);
    for (uint32_t i = 0; result == CUDA_SUCCESS && i < (levels < most ? levels : most); i++) {
        CUDA_ARRAY3D_DESCRIPTOR level = *shape;
        level.Width = halved(shape->Width, i);
        level.Height = halved(shape->Height, i);
        level.Depth = layered ? shape->Depth : halved(shape->Depth, i);
        result = create(ctx, &level, &mipmap->level[i]);
        if (result == CUDA_SUCCESS) {
            mipmap->level[i]->borrowed = true; /* cuArrayDestroy refuses it */
            mipmap->levels++;
        }
    }
    if (result != CUDA_SUCCESS) {
        while (mipmap->levels)
            destroy(mipmap->level[--mipmap->levels]);
        vgs_delete(mipmap);
        return result;
    }
    *handle = mipmap;
    return CUDA_SUCCESS;
}

VGS_API cuMipmappedArrayGetLevel(CUarray *level, CUmipmappedArray mipmap, unsigned int index)
{
    VGS_ENTER_CONTEXT();
    VGS_CHECK(vgs_valid(mipmap, VGS_MIPMAP), CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(level && index < mipmap->levels);
    *level = mipmap->level[index];
    return CUDA_SUCCESS;
}

VGS_API cuMipmappedArrayDestroy(CUmipmappedArray mipmap)
{
    VGS_ENTER_CONTEXT();
    VGS_CHECK(vgs_valid(mipmap, VGS_MIPMAP), CUDA_ERROR_INVALID_HANDLE);
    while (mipmap->levels)
        destroy(mipmap->level[--mipmap->levels]);
    vgs_delete(mipmap);
    return CUDA_SUCCESS;
}

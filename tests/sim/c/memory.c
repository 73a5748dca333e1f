/* memory.c - every way of taking device memory: charged to the byte, given back, refused with the driver's codes. */
#include <string.h>
#include "driver.h"

#define MIB (1ull << 20)

static void linear(void)
{
    CUdeviceptr p, base;
    size_t pitch, size, free_bytes, total;
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    EXPECT(cuMemAlloc_v2(NULL, 1), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemAlloc_v2(&p, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemAlloc_v2(&p, total + 1), CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(cuMemAlloc_v2(&p, SIZE_MAX), CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT(cuMemAllocPitch_v2(&p, &pitch, SIZE_MAX / 2, 4, 4), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&p, total - 1));
    CUdeviceptr last;
    OK(cuMemAlloc_v2(&last, 1));
    EXPECT(used(), total);
    EXPECT(cuMemAlloc_v2(&base, 1), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemGetAddressRange_v2(&base, &size, p + 12345));
    EXPECT(base == p && size == total - 1, 1);
    EXPECT(cuMemFree_v2(p + 1), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFree_v2(p));
    EXPECT(cuMemFree_v2(p), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFree_v2(last));
    OK(cuMemAllocPitch_v2(&p, &pitch, 100, 10, 4));
    EXPECT(pitch >= 100 && used() == pitch * 10, 1);
    OK(cuMemFree_v2(p));
    OK(cuMemAllocManaged(&p, 3 * MIB, 1));
    EXPECT(used(), 3 * MIB);
    OK(cuMemFree_v2(p));
    void *host;
    OK(cuMemHostAlloc(&host, MIB, 0));
    EXPECT(used(), 0);
    memset(host, 1, MIB);
    OK(cuMemFreeHost(host));
}

static void bytes(void)
{
    CUdeviceptr p, q;
    unsigned char in[4096], out[4096];
    for (size_t i = 0; i < sizeof in; i++)
        in[i] = (unsigned char)(i * 7);
    OK(cuMemAlloc_v2(&p, sizeof in));
    OK(cuMemAlloc_v2(&q, sizeof in));
    OK(cuMemcpyHtoD_v2(p, in, sizeof in));
    OK(cuMemcpyDtoD_v2(q, p, sizeof in));
    OK(cuMemcpyDtoH_v2(out, q, sizeof out));
    EXPECT(memcmp(in, out, sizeof in), 0);
    EXPECT(cuMemcpyHtoD_v2(p, in, sizeof in + 1), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemcpyHtoD_v2(0x1234, in, 1), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemsetD32_v2(q, 0xa1b2c3d4, sizeof in / 4));
    EXPECT(cuMemsetD32_v2(q + 1, 0, 1), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemcpyDtoH_v2(out, q, sizeof out));
    EXPECT(out[4092] == 0xd4 && out[4095] == 0xa1, 1);
    CUDA_MEMCPY2D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = p, .srcPitch = 64, .srcY = 1};
    copy.dstMemoryType = CU_MEMORYTYPE_HOST;
    copy.dstHost = out;
    copy.dstPitch = copy.WidthInBytes = 16;
    copy.Height = 3;
    OK(cuMemcpy2D_v2(&copy));
    EXPECT(memcmp(out + 32, in + 64 * 3, 16), 0);
    OK(cuMemFree_v2(p));
    OK(cuMemFree_v2(q));
}

static void arrays(void)
{
    CUDA_ARRAY_DESCRIPTOR shape = {.Width = 100, .Height = 10, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 2};
    CUarray array;
    OK(cuArrayCreate_v2(&array, &shape));
    EXPECT(used(), 100 * 10 * 8);
    OK(cuArrayDestroy(array));
    EXPECT(cuArrayDestroy(array), CUDA_ERROR_INVALID_HANDLE);
    CUDA_ARRAY3D_DESCRIPTOR cube = {.Width = 8, .Height = 4, .Format = CU_AD_FORMAT_UNSIGNED_INT8, .NumChannels = 1};
    CUmipmappedArray mipmap;
    OK(cuMipmappedArrayCreate(&mipmap, &cube, 9));
    EXPECT(used(), 32 + 8 + 2 + 1);
    OK(cuMipmappedArrayDestroy(mipmap));
    shape.NumChannels = 3;
    EXPECT(cuArrayCreate_v2(&array, &shape), CUDA_ERROR_INVALID_VALUE);
}

static void pools(void)
{
    CUmemoryPool pool;
    CUdeviceptr p;
    cuuint64_t value = UINT64_MAX;
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    OK(cuMemPoolSetAttribute(pool, 4, &value));
    OK(cuMemAllocAsync(&p, 3 * MIB, NULL));
    OK(cuMemPoolGetAttribute(pool, 5, &value));
    EXPECT(value == 4 * MIB && used() == 4 * MIB, 1);
    OK(cuMemFreeAsync(p, NULL));
    OK(cuStreamSynchronize(NULL));
    EXPECT(used(), 4 * MIB); /* the threshold keeps it */
    OK(cuMemPoolTrimTo(pool, 0));
    EXPECT(used(), 0);
    value = 0;
    OK(cuMemPoolSetAttribute(pool, 4, &value));
    OK(cuMemAllocAsync(&p, 1, NULL));
    OK(cuMemFree_v2(p));
    OK(cuCtxSynchronize());
    EXPECT(used(), 0);
}

static void shared_pools(void)
{
    CUmemPoolProps props = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                            .handleTypes = CU_MEM_HANDLE_TYPE_FABRIC,
                            .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemoryPool pool, import;
    CUmemPoolPtrExportData data;
    CUdeviceptr p, q;
    cuuint64_t value;
    int fd;
    EXPECT(cuMemPoolCreate(&pool, &props), CUDA_ERROR_NOT_SUPPORTED);
    props.handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    OK(cuMemPoolCreate(&pool, &props));
    OK(cuMemAllocFromPoolAsync(&p, 3 * MIB, pool, NULL));
    EXPECT(cuMemPoolExportPointer(&data, p), CUDA_ERROR_INVALID_VALUE); /* the pool first */
    EXPECT(cuMemPoolExportToShareableHandle(&fd, pool, CU_MEM_HANDLE_TYPE_FABRIC, 0), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemPoolExportToShareableHandle(&fd, pool, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    OK(cuMemPoolExportPointer(&data, p));
    OK(cuMemPoolImportFromShareableHandle(&import, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    EXPECT(cuMemAllocFromPoolAsync(&q, 1, import, NULL), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemPoolImportPointer(&q, pool, &data), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemPoolImportPointer(&q, import, &data));
    OK(cuMemPoolGetAttribute(import, 5, &value));
    EXPECT(value == 4 * MIB && used() == 4 * MIB, 1); /* counted once, with its maker */
    OK(cuMemFreeAsync(q, NULL));
    OK(cuMemFreeAsync(p, NULL));
    OK(cuCtxSynchronize());
    OK(cuMemPoolTrimTo(pool, 0));
    EXPECT(used(), 4 * MIB); /* a shared pool gives nothing back */
    OK(cuMemPoolDestroy(import));
    EXPECT(used(), 4 * MIB);
    OK(cuMemPoolDestroy(pool));
    EXPECT(used(), 0);
}

static void mapped(void)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, 0}, 3};
    CUmemGenericAllocationHandle handle;
    CUdeviceptr range;
    int in = 42, out = 0;
    EXPECT(cuMemCreate(&handle, 1, &prop, 0), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemCreate(&handle, 4 * MIB, &prop, 0));
    EXPECT(used(), 4 * MIB);
    OK(cuMemAddressReserve(&range, 16 * MIB, 0, 0, 0));
    OK(cuMemMap(range, 4 * MIB, 0, handle, 0));
    OK(cuMemMap(range + 8 * MIB, 4 * MIB, 0, handle, 0));
    EXPECT(cuMemMap(range + 2 * MIB, 4 * MIB, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMemcpyHtoD_v2(range, &in, sizeof in), CUDA_ERROR_INVALID_VALUE); /* no access yet */
    OK(cuMemSetAccess(range, 4 * MIB, &access, 1));
    OK(cuMemSetAccess(range + 8 * MIB, 4 * MIB, &access, 1));
    OK(cuMemcpyHtoD_v2(range, &in, sizeof in));
    OK(cuMemcpyDtoH_v2(&out, range + 8 * MIB, sizeof out));
    EXPECT(out, 42); /* one memory under two addresses */
    OK(cuMemRelease(handle));
    EXPECT(used(), 4 * MIB); /* the mappings hold it */
    EXPECT(cuMemAddressFree(range, 16 * MIB), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemUnmap(range, 4 * MIB));
    OK(cuMemUnmap(range + 8 * MIB, 4 * MIB));
    EXPECT(used(), 0);
    OK(cuMemAddressFree(range, 16 * MIB));
}

static void multicast(void)
{
    CUmulticastObjectProp prop = {.numDevices = 2, .size = 4 * MIB};
    CUmemAllocationProp memory = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemGenericAllocationHandle team, handle;
    CUdeviceptr range;
    size_t granularity;
    int supported;
    OK(cuDeviceGetAttribute(&supported, 132, 0));
    EXPECT(supported, 1);
    OK(cuMulticastGetGranularity(&granularity, &prop, 0));
    EXPECT(granularity, 2 * MIB);
    prop.numDevices = 3;
    EXPECT(cuMulticastCreate(&team, &prop), CUDA_ERROR_INVALID_VALUE); /* there are two GPUs */
    prop.numDevices = 2;
    OK(cuMulticastCreate(&team, &prop));
    OK(cuMulticastAddDevice(team, 0));
    EXPECT(cuMulticastAddDevice(team, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT(cuMulticastAddDevice(team, 2), CUDA_ERROR_INVALID_DEVICE);
    OK(cuMulticastAddDevice(team, 1));
    OK(cuMemCreate(&handle, 4 * MIB, &memory, 0));
    EXPECT(cuMulticastBindMem(team, 0, handle, 0, MIB, 0), CUDA_ERROR_INVALID_VALUE); /* no multiple of 2 MiB */
    OK(cuMulticastBindMem(team, 0, handle, 2 * MIB, 2 * MIB, 0));
    EXPECT(cuMulticastBindMem(team, 0, handle, 0, 4 * MIB, 0), CUDA_ERROR_INVALID_VALUE); /* taken */
    OK(cuMemAddressReserve(&range, 8 * MIB, 0, 0, 0));
    OK(cuMemMap(range, 4 * MIB, 0, handle, 0));
    OK(cuMulticastBindAddr(team, 2 * MIB, range, 2 * MIB, 0));
    OK(cuMemUnmap(range, 4 * MIB));
    OK(cuMemRelease(handle));
    OK(cuMemMap(range, 4 * MIB, 0, team, 0));
    OK(cuMulticastUnbind(team, 0, 0, 2 * MIB));
    OK(cuMemRelease(team));
    EXPECT(used(), 4 * MIB); /* the other half is bound, and the mapping keeps the object */
    OK(cuMemUnmap(range, 4 * MIB));
    EXPECT(used(), 0);
    OK(cuMemAddressFree(range, 8 * MIB));
}

int main(void)
{
    CUdeviceptr p;
    EXPECT(cuMemAlloc_v2(&p, 1), CUDA_ERROR_NOT_INITIALIZED);
    EXPECT(cuInit(1), CUDA_ERROR_INVALID_VALUE);
    OK(cuInit(0));
    EXPECT(cuMemAlloc_v2(&p, 1), CUDA_ERROR_INVALID_CONTEXT);
    CUcontext ctx;
    EXPECT(cuCtxCreate_v2(&ctx, 0, 99), CUDA_ERROR_INVALID_DEVICE);
    ctx = start();
    linear();
    bytes();
    arrays();
    pools();
    shared_pools();
    mapped();
    multicast();
    OK(cuMemAlloc_v2(&p, MIB));
    OK(cuCtxDestroy_v2(ctx)); /* takes its memory with it */
    EXPECT(cuMemFree_v2(p), CUDA_ERROR_INVALID_CONTEXT);
    EXPECT(cuCtxSetCurrent(ctx), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    start();
    EXPECT(used(), 0);
    puts("ok");
    return 0;
}

/* fill.c - cuMemset*: the driver fills device memory by kernels, which take their time like others. */
#include "vgw_limit.h"
#include "vgw_real.h"

#include "cuda_handlers.h"

static const char fills; /* its address: the key of their costs, by bytes */

#define FILL(name, stream, parameters, bytes, ...)                                                                     \
    CUresult vgw_##name(vgw_fn_##name *real, parameters)                                                               \
    {                                                                                                                  \
        struct vgw_launch launch;                                                                                      \
        if (__builtin_expect(vgw_no_limit(), true))                                                                    \
            return real(__VA_ARGS__);                                                                                  \
        vgw_limit_begin(&launch, &fills, bytes, stream);                                                               \
        return vgw_limit_end(&launch, real(__VA_ARGS__));                                                              \
    }
#define LIST(...) __VA_ARGS__

/* of one line and of rows, each at once and on a stream */
#define FILLS(bits, type)                                                                                              \
    FILL(fill##bits, vgw_meant(NULL, VGW_IS(cuMemsetD##bits##_v2_ptds)), LIST(CUdeviceptr to, type value, size_t n),   \
         n *(bits / 8), to, value, n)                                                                                  \
    FILL(fill##bits##_async, vgw_meant(stream, VGW_IS(cuMemsetD##bits##Async_ptsz)),                                   \
         LIST(CUdeviceptr to, type value, size_t n, CUstream stream), n *(bits / 8), to, value, n, stream)             \
    FILL(fill_rows##bits, vgw_meant(NULL, VGW_IS(cuMemsetD2D##bits##_v2_ptds)),                                        \
         LIST(CUdeviceptr to, size_t pitch, type value, size_t width, size_t height), width *height *(bits / 8), to,   \
         pitch, value, width, height)                                                                                  \
    FILL(fill_rows##bits##_async, vgw_meant(stream, VGW_IS(cuMemsetD2D##bits##Async_ptsz)),                            \
         LIST(CUdeviceptr to, size_t pitch, type value, size_t width, size_t height, CUstream stream),                 \
         width *height *(bits / 8), to, pitch, value, width, height, stream)

FILLS(8, unsigned char)
FILLS(16, unsigned short)
FILLS(32, unsigned int)

/* vgs_lookup.c - cuGetProcAddress over the generated table of all exports, and what an export is that is not implemented. */
#include "vgs_lookup.h"

#include <string.h>

#include "vgs_driver.h"

#define LEGACY     1u
#define PER_THREAD 2u

/* Exports that we do not implement end here (generated; see build.py). */
CUresult vgs_not_supported(void);
CUresult vgs_not_supported(void)
{
    return vgs_ready == VGS_READY ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_NOT_INITIALIZED;
}

/* The first row of `name`; the rows of a name stand together, oldest first. */
static const struct vgs_export *first_row(const char *name)
{
    size_t low = 0, high = vgs_export_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (strcmp(vgs_exports[middle].base, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < vgs_export_count && strcmp(vgs_exports[low].base, name) == 0 ? &vgs_exports[low] : NULL;
}

static CUdriverProcAddressQueryResult look_up(const char *name, void **pfn, int version, bool per_thread)
{
    const struct vgs_export *row = vgs_symbol_is_missing(name) ? NULL : first_row(name), *best = NULL,
                            *end = vgs_exports + vgs_export_count;
    *pfn = NULL;
    if (!row)
        return CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    for (const char *base = row->base; row < end && strcmp(row->base, base) == 0; row++) {
        if (row->since > version || (row->per_thread && !per_thread))
            continue;
        if (!best || row->per_thread >= best->per_thread)
            best = row; /* newer than the one before, or the per-thread kind that was asked for */
    }
    if (!best)
        return CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
    *pfn = best->address;
    return CU_GET_PROC_ADDRESS_SUCCESS;
}

VGS_API cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                            CUdriverProcAddressQueryResult *symbolStatus)
{
    const int version = vgs_cuda_version();
    VGS_VALUE(symbol && *symbol && pfn && cudaVersion >= 2000 && cudaVersion <= version && flags <= PER_THREAD);
    CUdriverProcAddressQueryResult status = look_up(symbol, pfn, cudaVersion, flags == PER_THREAD);
    if (symbolStatus)
        *symbolStatus = status;
    return CUDA_SUCCESS;
}

VGS_API cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags)
{
    CUdriverProcAddressQueryResult status;
    CUresult result = cuGetProcAddress_v2(symbol, pfn, cudaVersion, flags, &status);
    /* without a status the first version of the function had to fail */
    return result == CUDA_SUCCESS && status != CU_GET_PROC_ADDRESS_SUCCESS ? CUDA_ERROR_NOT_FOUND : result;
}

VGS_API cuGetExportTable(const void **table, const CUuuid *id)
{
    VGS_VALUE(table && id);
    *table = NULL;
    return CUDA_ERROR_INVALID_VALUE; /* we have none of the driver's private tables */
}

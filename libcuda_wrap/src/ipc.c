/* ipc.c - memory that another process has allocated: charged to whoever opens it, for as long as it is open.
 *
 * The memory outlives its maker for as long as somebody has it open, and no call tells when that ends. So each process
 * that has it open is charged in full, its maker too: more than is taken, never less, whoever dies first.
 */
#include "vgw_charge.h"

#include "cuda_handlers.h"

/* Opened again in the same context, the driver gives out the same address and counts. */
CUresult vgw_ipc_open(vgw_fn_ipc_open *real, CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags)
{
    struct vgw_place place;
    struct vgw_entry entry;
    CUdeviceptr base;
    size_t bytes;
    CUresult result = vgw_place_here(&place);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(pdptr, handle, Flags);
    if (result != CUDA_SUCCESS || vgw_table_count(VGW_OPENED, *pdptr, 1, &entry))
        return result;
    /* after the call: the memory is there already, and only now its size can be asked for */
    if (vgw_driver.cuMemGetAddressRange_v2 == NULL ||
        vgw_driver.cuMemGetAddressRange_v2(&base, &bytes, *pdptr) != CUDA_SUCCESS) {
        vgw_driver.cuIpcCloseMemHandle(*pdptr);
        return vgw_refuse(); /* closed: nobody knows how much it is */
    }
    result = CUDA_ERROR_OUT_OF_MEMORY;
    if (vgw_charge(place.gpu, bytes)) {
        if (vgw_keep(VGW_OPENED, *pdptr, bytes, vgw_key(place.context), place.gpu))
            return CUDA_SUCCESS;
        vgw_refund(place.gpu, bytes);
    }
    vgw_driver.cuIpcCloseMemHandle(*pdptr);
    return result;
}

CUresult vgw_ipc_close(vgw_fn_ipc_close *real, CUdeviceptr dptr)
{
    struct vgw_entry entry, old;
    const bool known = vgw_table_count(VGW_OPENED, dptr, -1, &entry); /* before the call: it may be opened at once */
    const CUresult result = real(dptr);
    if (known && result == CUDA_SUCCESS && entry.count == 0) {
        vgw_refund(entry.gpu, entry.bytes);
    } else if (known && result != CUDA_SUCCESS && !vgw_table_count(VGW_OPENED, dptr, 1, &old)) {
        entry.count = 1;
        vgw_table_put(&entry, &old);
    }
    return result;
}

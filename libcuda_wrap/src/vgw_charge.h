/* vgw_charge.h - the steps that every allocating function has: charge, call the driver, then keep or undo. */
#ifndef VGW_CHARGE_H
#define VGW_CHARGE_H

#include "vgw_driver.h"
#include "vgw_region.h"
#include "vgw_table.h"

/* Writes an allocation down. false: no memory for that; the caller undoes the allocation and gives its bytes back. */
bool vgw_keep(enum vgw_kind kind, uint64_t key, uint64_t bytes, uint64_t link, unsigned gpu);

/* A free: forget(...) before the driver's call, which may hand the same key out again at once; then freed(...) with its
 * result. */
struct vgw_freeing {
    struct vgw_entry entry;
    bool known;
};

struct vgw_freeing vgw_forget(enum vgw_kind kind, uint64_t key);
CUresult vgw_freed(const struct vgw_freeing *freeing, CUresult result);

static inline uint64_t vgw_key(const void *handle)
{
    return (uint64_t)(uintptr_t)handle;
}

#endif

/* vgw_vmm.h - physical memory (vmm.c) and what multicast objects keep of it (multicast.c). */
#ifndef VGW_VMM_H
#define VGW_VMM_H

#include <stdbool.h>

#include "vgw_driver.h"
#include "vgw_table.h"

/* An entry of kind VGW_OBJECT with one reference, its key; 0: no memory for that. `next` loses a reference with its last:
 * what one mapping keeps on several GPUs is a chain. gpu VGW_NO_GPU: a multicast object, of which nothing is charged. */
uint64_t vgw_object_new(uint64_t bytes, uint64_t next, unsigned gpu);
void vgw_object_let_go(uint64_t object);
void vgw_object_hold(uint64_t object); /* one more */

/* A reference more to the memory of a handle of this process: its object, or 0 if the handle is none of ours. */
uint64_t vgw_object_of(uint64_t handle);

/* The mapping of ours at an address, wherever in it that is. */
bool vgw_mapping_at(CUdeviceptr address, struct vgw_entry *mapping);

/* Charges `bytes` on each GPU of the slice: what an object that others have too may keep there. A chain, or 0: no room. */
uint64_t vgw_multicast_everywhere(uint64_t bytes);

/* Around an export: false if there is no room for what others may bind; unshare: the export failed. */
bool vgw_multicast_share(uint64_t object);
void vgw_multicast_unshare(uint64_t object);

/* Its last handle and mapping in this process are gone. */
void vgw_multicast_gone(uint64_t object);

/* In a child just forked: it has none of its parent's objects. */
void vgw_multicast_forked(void);

#endif

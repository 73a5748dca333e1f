/* vgw_object.h - physical memory of cuMemCreate, counted by all that keeps it: handles, mappings, tiles of arrays. */
#ifndef VGW_OBJECT_H
#define VGW_OBJECT_H

#include "vgw_table.h"

/* A reference more to the memory of a handle of this process: its object, or 0 if the handle is none of ours. */
uint64_t vgw_object_of(uint64_t handle);

/* One more to an object that has one; one less: the last gives its bytes back. */
void vgw_object_hold(uint64_t object);
void vgw_object_let_go(uint64_t object);

#endif

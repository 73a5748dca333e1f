/* vgs_lock.h - the lock of one GPU's accounting. It survives the death of its owner: whoever waits too long asks the kernel whether
 * the owner's slot still lives, and if not takes the lock over and counts again.
 */
#ifndef VGS_LOCK_H
#define VGS_LOCK_H

#include "vgs_region.h"

/* As slot `as`. Held for a few instructions only; not recursive; two threads of one process exclude each other too. */
void vgs_lock(uint32_t gpu, uint32_t as);
void vgs_unlock(uint32_t gpu);
/* We hold the dead `slot`'s file lock: if it died with the GPU's lock held, counts again and frees it. */
void vgs_lock_inherit(uint32_t gpu, uint32_t slot);

#endif

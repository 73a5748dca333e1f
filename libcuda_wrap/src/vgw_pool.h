/* vgw_pool.h - the pools of this process, for those who share them or free what came from one. */
#ifndef VGW_POOL_H
#define VGW_POOL_H

#include <pthread.h>
#include <stdbool.h>

#include "vgw_driver.h"
#include "vgw_table.h"

struct vgw_pool {
    struct vgw_pool *next;
    CUmemoryPool handle;
    uint64_t charged;
    uint64_t live; /* allocated or imported, and not freed */
    uint64_t kept; /* exported: the most that it has reserved since */
    unsigned gpu;  /* or VGW_NO_GPU: in the host's memory, or an import from which nothing has come yet */
    bool destroyed;
    bool exported; /* others may keep what it had, and no call tells how long */
    bool imported; /* another process's: only pointers are imported from it */
};

extern pthread_mutex_t vgw_pool_lock; /* of all pools of this process; held across the driver's call: see pool.c */

/* These under the lock. find: a pool that the program made or imported, or a device's own. settle gives back what the
 * driver has; true if that was anything. owe: what the driver has reserved and would not give back is charged, beyond
 * the quota if need be. make_room: false if there was too little, and all that was freed has been waited for and given
 * back, as the driver does when a GPU is full. */
struct vgw_pool *vgw_pool_add(CUmemoryPool handle, unsigned gpu);
CUresult vgw_pool_find(CUmemoryPool handle, struct vgw_pool **found);
bool vgw_pool_ask(const struct vgw_pool *pool, CUmemPool_attribute what, uint64_t *value);
bool vgw_pool_settle(struct vgw_pool *pool);
void vgw_pool_owe(struct vgw_pool *pool);
bool vgw_pools_make_room(unsigned gpu, uint64_t bytes);

/* Memory of a pool was freed; entry: of kind VGW_POOLED. at_once: the driver has it back already. */
void vgw_pool_freed(const struct vgw_entry *entry, bool at_once);

/* In a child just forked: it has none of its parent's pools. */
void vgw_pools_forked(void);

#endif

/* vgw_pool.h - the pools of this process, for those who free what came from one. */
#ifndef VGW_POOL_H
#define VGW_POOL_H

#include <stdbool.h>

#include "vgw_table.h"

/* Memory of a pool was freed; entry: of kind VGW_POOLED. at_once: the driver has it back already. */
void vgw_pool_freed(const struct vgw_entry *entry, bool at_once);

/* In a child just forked: it has none of its parent's pools. */
void vgw_pools_forked(void);

#endif

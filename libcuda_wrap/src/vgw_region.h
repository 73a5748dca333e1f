/* vgw_region.h - this container's quota and usage files, and this process's slot in them.
 *
 * Everything is opened at first need: a program that links the library and never uses a GPU pays nothing.
 * Locks, none held across a driver call: mapping, slot (region.c, slot.c), then one per GPU (slot.c).
 */
#ifndef VGW_REGION_H
#define VGW_REGION_H

#include <stdbool.h>

#include "vgw_share.h"
#include "vgw_usage.h"

#define VGW_VERSION (0u << 16 | 1u << 8 | 0u) /* major, minor, patch */

extern const struct vgw_quota *vgw_quota; /* both valid once vgw_region_ready() has returned true */
extern struct vgw_usage *vgw_usage;

/* NULL if there is none: nothing depends on it but what neighbours may borrow. */
extern struct vgw_share *vgw_share;
extern unsigned long vgw_share_inode;

/* Maps both files. false: missing, truncated, or of another version; the caller then refuses (closed: no quota is
 * known). */
bool vgw_region_ready(void);

/* Writes down that the quota is in force in this container, once. */
void vgw_region_arm(void);

/* Index of the slice's GPU with this UUID ("GPU-...", "MIG-..."), or -1. */
int vgw_gpu_by_uuid(const char *uuid);

/* This process's slot, taken at first need; -1: none is free. */
int vgw_own_slot(void);

/* Takes bytes from the quota of a GPU, after taking back what the dead hold if need be. false: no room, or no slot. */
bool vgw_charge(unsigned gpu, uint64_t bytes);
void vgw_refund(unsigned gpu, uint64_t bytes);

/* Charges what is taken already and cannot be undone, beyond the quota if need be: nothing else fits then. */
void vgw_owe(unsigned gpu, uint64_t bytes);

/* Bytes charged to this process. */
uint64_t vgw_held(unsigned gpu);

/* Have this process's pools, graphs and what it took late give back what they keep, before an allocation is refused; true if that was
 * anything. NULL until there are any. */
enum { VGW_RECLAIM_POOLS, VGW_RECLAIM_GRAPHS, VGW_RECLAIM_LATE, VGW_RECLAIM_TILES, VGW_RECLAIMERS };
typedef bool vgw_reclaimer(unsigned gpu);
extern vgw_reclaimer *vgw_reclaim[VGW_RECLAIMERS];

/* Writes down that an allocation was refused. */
void vgw_denied(unsigned gpu, enum vgw_denial why, uint64_t bytes);

/* Gives back what ended processes still hold; true if that was anything. */
bool vgw_reap(void);

/* Bytes in use on a GPU. Where other processes hold something, the dead among them are reaped first, but not more often
 * than every 10 ms. */
uint64_t vgw_used_now(unsigned gpu);

/* In a child just forked: it starts without slot and with free locks. */
void vgw_slot_forked(void);

#endif

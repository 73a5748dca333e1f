/* vgw_table.h - what this process has allocated: kind and key (pointer, handle, address) to size, GPU and context.
 *
 * A striped hash: constant time at any number of entries, and two threads seldom meet.
 */
#ifndef VGW_TABLE_H
#define VGW_TABLE_H

#include <stdbool.h>
#include <stdint.h>

enum vgw_kind {
    VGW_NOTHING,
    VGW_POINTER,  /* cuMemAlloc and its family */
    VGW_ARRAY,    /* arrays and mipmapped arrays */
    VGW_HANDLE,   /* cuMemCreate's handle: count is how often it must be released, link the object */
    VGW_MAPPING,  /* cuMemMap: bytes of the mapping, link the object */
    VGW_OBJECT,   /* physical memory: count is handles and mappings together */
    VGW_POOLED,   /* from a memory pool, which is what is charged: link is the pool */
    VGW_GRAPH,    /* an executable graph: what its memory nodes need on a GPU */
    VGW_IMPORT,   /* handle of another process's physical memory: count as VGW_HANDLE's; its mappings are charged */
    VGW_EXTERNAL, /* another interface's memory */
    /* from here on, what ends with its context */
    VGW_GREEN,   /* a green context, as a CUcontext: link is its primary one */
    VGW_LIMIT,   /* what cuCtxSetLimit reserved in a context */
    VGW_OPENED,  /* memory opened by cuIpcOpenMemHandle: count is how often it must be closed */
    VGW_CONTEXT, /* what a context takes itself, by its handle */
    VGW_MODULE   /* what a module or library takes */
};

#define VGW_NO_GPU 255u /* not on a GPU */

struct vgw_entry {
    uint64_t key;
    uint64_t bytes;
    uint64_t link; /* the context whose end frees it, or an object's key; 0: none */
    uint32_t count;
    uint8_t kind;
    uint8_t gpu;
};

/* Adds or replaces. false: no memory. *old gets what was there, kind VGW_NOTHING if that is nothing. */
bool vgw_table_put(const struct vgw_entry *entry, struct vgw_entry *old);
bool vgw_table_get(enum vgw_kind kind, uint64_t key, struct vgw_entry *found);
bool vgw_table_take(enum vgw_kind kind, uint64_t key, struct vgw_entry *found);

/* Adds `by` to the entry's count, removes it at zero; *found is the entry as it was left. */
bool vgw_table_count(enum vgw_kind kind, uint64_t key, int by, struct vgw_entry *found);

/* What ends with a context only (pointers, arrays, limits, opened memory): gives those of link `from` the link `to`. */
void vgw_table_relink(uint64_t from, uint64_t to);

/* Removes those of a link; adds their bytes per GPU to `bytes`. */
void vgw_table_drop(uint64_t link, uint64_t *bytes);

/* In a child just forked: it has none of its parent's memory. */
void vgw_table_forked(void);

#endif

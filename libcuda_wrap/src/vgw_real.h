/* vgw_real.h - the driver's own functions, and which of ours stands in front of each. */
#ifndef VGW_REAL_H
#define VGW_REAL_H

#include <stdbool.h>
#include <stddef.h>

#define VGW_EXPORT __attribute__((visibility("default")))

struct vgw_wrapped {
    const char *name;
    void *wrapper;
};

extern const struct vgw_wrapped vgw_wrapped[]; /* generated */
extern const unsigned vgw_wrapped_count;
extern void *vgw_real_table[]; /* the driver's function of the same index, or NULL: read it through vgw_real() */
extern bool vgw_real_loaded;

void vgw_real_load(void);
void *vgw_real_symbol(void *library, const char *name);

/* Called once by vgw_real_load with the driver's handle, for what a library needs beyond the functions that it wraps.
 */
void vgw_real_more(void *library);

/* Ours, if `real` is the driver's address of a function that we wrap; else `real`. */
void *vgw_real_swap(void *real);

/* NVML only: whether a call comes from the driver itself, which must see the machine as it is. */
bool vgw_by_driver(const void *caller);

/* pthread_atfork for a child's handler. The function of that name is no longer exported by newer libraries; this one
 * always is. */
int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *library);

/* The driver's function with this index of the generated table; NULL if this driver does not have it. */
static inline void *vgw_real(unsigned index)
{
    if (__builtin_expect(!__atomic_load_n(&vgw_real_loaded, __ATOMIC_ACQUIRE), false))
        vgw_real_load();
    return vgw_real_table[index];
}

#endif

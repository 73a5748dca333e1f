/* vgw_late.h - memory that the driver takes when it likes: code that is loaded when a function is first used, heap and
 * print buffer, its rounding. docs/accounting.md, "Taken late".
 */
#ifndef VGW_LATE_H
#define VGW_LATE_H

#include <stdbool.h>
#include <stdint.h>

#include "vgw_cuda.h"

#define VGW_RAN_SETS 512u /* a power of two */
#define VGW_RAN_WAYS 8u   /* of eight bytes: a cache line */

extern uint32_t vgw_late; /* a bit per GPU of the slice on which something may have been taken since the last look */
extern uint32_t vgw_contexts; /* ever made */
extern bool vgw_several;      /* contexts: then a function may be new to one and not to the other */
extern const void *vgw_ran_before[VGW_RAN_SETS][VGW_RAN_WAYS]; /* what was launched already, as far as there is room */

/* Something may just have been taken in the current context; on that GPU. */
void vgw_late_here(void);
void vgw_late_on(unsigned gpu);

/* A context more. */
void vgw_late_context(unsigned gpu);

/* Code may have gone, and its functions' handles may come back as others; the second: of that graph. */
void vgw_late_unloaded(void);
void vgw_ran_forget(const void *what);

void vgw_late_look_now(void);
void vgw_ran_slowly(const void *what);

/* Where a call comes by that is not too frequent: looks if there is something to look for, at most every 100 ms. */
static inline void vgw_late_look(void)
{
    if (__builtin_expect(__atomic_load_n(&vgw_late, __ATOMIC_RELAXED) != 0, false))
        vgw_late_look_now();
}

static inline const void **vgw_ran_set(const void *what)
{
    return vgw_ran_before[((uintptr_t)what * 0x9E3779B97F4A7C15ull) >> 55];
}

static inline bool vgw_ran_in(const void **set, const void *what)
{
    for (unsigned way = 0; way < VGW_RAN_WAYS; way++)
        if (__atomic_load_n(&set[way], __ATOMIC_RELAXED) == what)
            return true;
    return false;
}

/* After the launch of a function or graph: the first one may have loaded code. Returns the result that it is given. */
static inline CUresult vgw_ran(const void *what, CUresult result)
{
    const bool quiet =
        __atomic_load_n(&vgw_late, __ATOMIC_RELAXED) == 0 && !__atomic_load_n(&vgw_several, __ATOMIC_RELAXED);
    if (__builtin_expect(!quiet || !vgw_ran_in(vgw_ran_set(what), what), false) && result == CUDA_SUCCESS)
        vgw_ran_slowly(what);
    return result;
}

void vgw_late_forked(void);

#endif

/* late.c - what the driver takes without a call that could be measured: looked for afterwards.
 *
 * A function's code is loaded when the function is first asked for or launched, and with it heap and print buffer. Who
 * may have caused that leaves a mark; the next look, which is due 100 ms after the last, compares what the driver says
 * that this process holds with what it is charged, and charges the rest. Looks go on until two in a row find nothing
 * new: one alone may be misled by an allocation of another thread that is under way. A program whose functions have
 * all run is not looked at any more.
 */
#include "vgw_late.h"

#include <time.h>

#include "cuda_handlers.h"
#include "vgw_driver.h"
#include "vgw_overhead.h"
#include "vgw_region.h"

#define EVERY_NS    100000000ull
#define QUIET_LOOKS 2u

uint32_t vgw_late;
uint32_t vgw_contexts;
bool vgw_several;
const void *vgw_ran_before[VGW_RAN_SETS][VGW_RAN_WAYS] __attribute__((aligned(64)));

static uint32_t looks[VGW_MAX_GPUS]; /* still to come, if they find nothing new */
static uint64_t last_ns;             /* look */

static uint64_t coarse_ns(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now); /* good to 4 ms, at a fifth of the price */
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void look(unsigned gpu)
{
    const uint32_t bit = 1u << gpu;
    __atomic_fetch_and(&vgw_late, ~bit, __ATOMIC_ACQ_REL); /* before: a mark that comes meanwhile stays */
    uint32_t left = __atomic_load_n(&looks[gpu], __ATOMIC_RELAXED);
    left = vgw_overhead_settle(gpu) ? QUIET_LOOKS : left - (left > 0);
    __atomic_store_n(&looks[gpu], left, __ATOMIC_RELAXED);
    if (left > 0)
        __atomic_fetch_or(&vgw_late, bit, __ATOMIC_ACQ_REL);
}

void vgw_late_look_now(void)
{
    const uint64_t now = coarse_ns();
    uint64_t last = __atomic_load_n(&last_ns, __ATOMIC_RELAXED);
    if (now - last < EVERY_NS ||
        !__atomic_compare_exchange_n(&last_ns, &last, now, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return;
    const uint32_t which = __atomic_load_n(&vgw_late, __ATOMIC_ACQUIRE);
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS; gpu++)
        if (which & 1u << gpu)
            look(gpu);
    __atomic_store_n(&last_ns, coarse_ns(), __ATOMIC_RELAXED); /* it may have taken long */
}

void vgw_late_on(unsigned gpu)
{
    __atomic_store_n(&looks[gpu], QUIET_LOOKS, __ATOMIC_RELAXED);
    __atomic_fetch_or(&vgw_late, 1u << gpu, __ATOMIC_ACQ_REL);
    vgw_reclaim[VGW_RECLAIM_LATE] = vgw_overhead_reclaim;
    vgw_late_look_now();
}

void vgw_late_here(void)
{
    unsigned gpu;
    if (vgw_gpu_here(&gpu) == CUDA_SUCCESS)
        vgw_late_on(gpu);
}

void vgw_late_context(unsigned gpu)
{
    if (__atomic_add_fetch(&vgw_contexts, 1, __ATOMIC_RELAXED) > 1)
        __atomic_store_n(&vgw_several, true, __ATOMIC_RELAXED);
    vgw_late_on(gpu);
}

void vgw_late_unloaded(void)
{
    for (unsigned set = 0; set < VGW_RAN_SETS; set++)
        for (unsigned way = 0; way < VGW_RAN_WAYS; way++)
            if (__atomic_load_n(&vgw_ran_before[set][way], __ATOMIC_RELAXED) != NULL)
                __atomic_store_n(&vgw_ran_before[set][way], NULL, __ATOMIC_RELAXED);
}

/* A function that several contexts have is loaded into each. */
static const void *in_this_context(const void *what)
{
    CUcontext context = NULL;
    if (vgw_several)
        vgw_driver.cuCtxGetCurrent(&context);
    return (const void *)((uintptr_t)what + (uintptr_t)context * 31u);
}

void vgw_ran_slowly(const void *what)
{
    const void *key = in_this_context(what), **set = vgw_ran_set(key);
    if (vgw_ran_in(set, key)) {
        vgw_late_look();
        return;
    }
    unsigned way = 0;
    while (way < VGW_RAN_WAYS && __atomic_load_n(&set[way], __ATOMIC_RELAXED) != NULL)
        way++;
    if (way == VGW_RAN_WAYS) /* full: another has to go, and is looked at once more if it is launched again */
        way = (unsigned)((uintptr_t)key >> 6) % VGW_RAN_WAYS;
    __atomic_store_n(&set[way], key, __ATOMIC_RELAXED);
    vgw_late_here();
}

void vgw_ran_forget(const void *what)
{
    const void *key = in_this_context(what), **set = vgw_ran_set(key);
    for (unsigned way = 0; way < VGW_RAN_WAYS; way++)
        if (__atomic_load_n(&set[way], __ATOMIC_RELAXED) == key)
            __atomic_store_n(&set[way], NULL, __ATOMIC_RELAXED);
}

/* Asking for a function, or for what a library has on the GPU, loads it; its first launch may take more. Handles are
 * even numbers, so that this is not mistaken for a launch. */
static CUresult asked(CUresult result, const void *handle)
{
    return vgw_ran((const void *)((uintptr_t)handle + 1), result);
}

CUresult vgw_module_get_function(vgw_fn_module_get_function *real, CUfunction *hfunc, CUmodule hmod, const char *name)
{
    const CUresult result = real(hfunc, hmod, name);
    return asked(result, result == CUDA_SUCCESS ? *hfunc : NULL);
}

CUresult vgw_kernel_get_function(vgw_fn_kernel_get_function *real, CUfunction *pFunc, CUkernel kernel)
{
    const CUresult result = real(pFunc, kernel);
    return asked(result, result == CUDA_SUCCESS ? *pFunc : NULL);
}

CUresult vgw_library_get_module(vgw_fn_library_get_module *real, CUmodule *pMod, CUlibrary library)
{
    return asked(real(pMod, library), library);
}

CUresult vgw_library_get_global(vgw_fn_library_get_global *real, CUdeviceptr *dptr, size_t *bytes, CUlibrary library,
                                const char *name)
{
    return asked(real(dptr, bytes, library, name), library);
}

CUresult vgw_func_load(vgw_fn_func_load *real, CUfunction function)
{
    return asked(real(function), function);
}

void vgw_late_forked(void)
{
    vgw_late = vgw_contexts = 0;
    vgw_several = false;
    vgw_late_unloaded();
}

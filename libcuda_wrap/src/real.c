/* real.c - finds the driver's own functions.
 *
 * The driver is a DT_NEEDED of ours, so that it is loaded already and known to the loader by that name. Asking that
 * handle, and not the global scope, gives its functions although ours have the same names.
 */
#include "vgw_real.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>

#define SWAP_SLOTS 512u /* a power of two, several times the number of functions that we wrap */

bool vgw_real_loaded;

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static struct {
    void *real;
    void *wrapper;
} swaps[SWAP_SLOTS];

static unsigned start_of(const void *real)
{
    return (unsigned)(((uintptr_t)real * 0x9E3779B97F4A7C15ull) >> 55);
}

void *vgw_real_symbol(void *library, const char *name)
{
    return library == NULL ? NULL : dlsym(library, name);
}

static void forked(void)
{
    pthread_mutex_init(&loading, NULL);
}

static void load(void)
{
    __register_atfork(NULL, NULL, forked, NULL);
    void *library = dlopen(VGW_DRIVER, RTLD_NOLOAD | RTLD_LAZY);
    for (unsigned index = 0; index < vgw_wrapped_count; index++) {
        void *real = vgw_real_symbol(library, vgw_wrapped[index].name);
        vgw_real_table[index] = real;
        if (real == NULL)
            continue;
        unsigned at = start_of(real);
        while (swaps[at].real != NULL && swaps[at].real != real)
            at = (at + 1) % SWAP_SLOTS;
        if (swaps[at].real == NULL) { /* one address under two names: the first is as good */
            swaps[at].wrapper = vgw_wrapped[index].wrapper;
            swaps[at].real = real;
        }
    }
    vgw_real_more(library);
    dlerror(); /* a function that this driver lacks is no error of the program's */
}

void vgw_real_load(void)
{
    const int error = errno;
    pthread_mutex_lock(&loading);
    if (!vgw_real_loaded) {
        load();
        __atomic_store_n(&vgw_real_loaded, true, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&loading);
    errno = error;
}

void *vgw_real_swap(void *real)
{
    for (unsigned at = start_of(real); swaps[at].real != NULL; at = (at + 1) % SWAP_SLOTS)
        if (swaps[at].real == real)
            return swaps[at].wrapper;
    return real;
}

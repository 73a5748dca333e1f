/* slot.c - this process's slot in the usage file, what it takes and gives back there, and what the dead left.
 *
 * A slot is owned by whoever has an OFD write lock on its first byte. The lock belongs to an open file description, and
 * the kernel drops it with the last reference to that; ours is a mapping (`pin`) and not a descriptor, so that a
 * program which closes descriptors that it does not know keeps its slot, while exec and death, whatever their cause,
 * end it. Forked children do not inherit the mapping, so that they neither share the slot nor hide that their parent
 * has ended.
 */
#include "vgw_region.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vgw_bucket.h"
#include "vgw_ledger.h"
#include "vgw_past.h"

#ifndef F_OFD_SETLK
#define F_OFD_SETLK 37 /* Linux 3.15; the headers of glibc 2.17 do not have it */
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18 /* Linux 4.14 */
#endif

#define PAGE_BYTES    4096u
#define REAP_EVERY_NS 10000000

static pthread_mutex_t slot_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t gpu_locks[VGW_MAX_GPUS] = {[0 ... VGW_MAX_GPUS - 1] = PTHREAD_MUTEX_INITIALIZER};
static unsigned *own; /* slot + 1, or 0; in a page that is zero again in a child, even if no fork handler ran there */

static bool lock_slot(int fd, unsigned slot, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_len = 1};
    lock.l_start = (off_t)(offsetof(struct vgw_usage, slots) + slot * sizeof(struct vgw_usage_slot));
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

/* Field 22 of /proc/self/stat; 0 if that cannot be read. For people and monitors: liveness is the lock's business. */
static uint64_t start_ticks(void)
{
    char text[1024];
    const int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    const ssize_t length = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[length > 0 ? length : 0] = 0;
    const char *field = strrchr(text, ')'); /* ends the second: a name may have blanks and brackets */
    for (int number = 2; field != NULL && number < 22; number++)
        field = strchr(field + 1, ' ');
    return field == NULL ? 0 : strtoull(field + 1, NULL, 10);
}

/* What the slot's last owner still holds goes back; the caller has the slot's lock. */
static bool recover(unsigned slot)
{
    uint64_t bytes = 0;
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS; gpu++)
        bytes += vgw_ledger_recover(vgw_usage, slot, gpu);
    vgw_bucket_recover(slot);
    vgw_past_recover(slot);
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS; gpu++)
        __atomic_store_n(&vgw_usage->slots[slot].gpus[gpu].busy_ns, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&vgw_usage->slots[slot].pid, 0, __ATOMIC_RELEASE);
    return bytes != 0;
}

static unsigned slots_used(void)
{
    const uint32_t high = __atomic_load_n(&vgw_usage->slot_high, __ATOMIC_ACQUIRE);
    return high < VGW_MAX_SLOTS ? high : VGW_MAX_SLOTS;
}

static bool reap(int fd)
{
    bool any = false;
    for (unsigned slot = 0; slot < slots_used(); slot++) {
        if (__atomic_load_n(&vgw_usage->slots[slot].pid, __ATOMIC_ACQUIRE) == 0 || !lock_slot(fd, slot, F_WRLCK))
            continue;
        any |= recover(slot);
        lock_slot(fd, slot, F_UNLCK);
    }
    return any;
}

bool vgw_reap(void)
{
    const int error = errno, fd = open(VGW_BOX "/usage", O_RDWR | O_CLOEXEC);
    const bool any = fd >= 0 && reap(fd);
    if (fd >= 0)
        close(fd);
    errno = error;
    return any;
}

/* The first slot that nobody has. Readers stop at slot_high, so that it grows before the slot is used. */
static int take_free_slot(int fd)
{
    for (unsigned slot = 0; slot < VGW_MAX_SLOTS; slot++) {
        uint32_t high = slot;
        __atomic_compare_exchange_n(&vgw_usage->slot_high, &high, slot + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
        if (lock_slot(fd, slot, F_WRLCK))
            return (int)slot;
    }
    return -1;
}

static void *map_page(int fd, int flags, int advice)
{
    void *page = mmap(NULL, PAGE_BYTES, fd < 0 ? PROT_READ | PROT_WRITE : PROT_READ, flags, fd, 0);
    if (page == MAP_FAILED)
        return NULL;
    madvise(page, PAGE_BYTES, advice);
    return page;
}

static int acquire(void)
{
    if (own == NULL)
        __atomic_store_n(&own, map_page(-1, MAP_PRIVATE | MAP_ANONYMOUS, MADV_WIPEONFORK), __ATOMIC_RELEASE);
    const int fd = open(VGW_BOX "/usage", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -1;
    reap(fd); /* a new process should see the room that there is */
    void *pin = own == NULL ? NULL : map_page(fd, MAP_SHARED, MADV_DONTFORK);
    const int slot = pin == NULL ? -1 : take_free_slot(fd);
    if (slot >= 0) {
        recover((unsigned)slot);
        vgw_usage->slots[slot].start_ticks = start_ticks();
        __atomic_store_n(&vgw_usage->slots[slot].pid, (uint64_t)getpid(), __ATOMIC_RELEASE);
        __atomic_store_n(own, (unsigned)slot + 1, __ATOMIC_RELEASE);
    } else if (pin != NULL) {
        munmap(pin, PAGE_BYTES);
    }
    close(fd);
    return slot;
}

int vgw_own_slot(void)
{
    const unsigned *at = __atomic_load_n(&own, __ATOMIC_ACQUIRE);
    const unsigned slot = at == NULL ? 0 : __atomic_load_n(at, __ATOMIC_ACQUIRE);
    if (__builtin_expect(slot != 0, true))
        return (int)slot - 1;
    const int error = errno;
    pthread_mutex_lock(&slot_lock);
    const int got = own != NULL && *own != 0 ? (int)*own - 1 : acquire();
    pthread_mutex_unlock(&slot_lock);
    errno = error;
    return got;
}

static bool take(unsigned slot, unsigned gpu, uint64_t bytes)
{
    pthread_mutex_lock(&gpu_locks[gpu]);
    const bool done = vgw_ledger_take(vgw_usage, slot, gpu, bytes, &vgw_quota->gpus[gpu].memory_bytes);
    pthread_mutex_unlock(&gpu_locks[gpu]);
    return done;
}

void vgw_denied(unsigned gpu, enum vgw_denial why, uint64_t bytes)
{
    if (!vgw_region_ready())
        return;
    __atomic_fetch_add(&vgw_usage->gpus[gpu].denied[why], 1, __ATOMIC_RELAXED);
    __atomic_store_n(&vgw_usage->gpus[gpu].denied_bytes, bytes, __ATOMIC_RELAXED);
}

vgw_reclaimer *vgw_reclaim[VGW_RECLAIMERS];

static bool reclaim(unsigned gpu)
{
    bool any = false;
    for (unsigned at = 0; at < VGW_RECLAIMERS; at++)
        any |= vgw_reclaim[at] != NULL && vgw_reclaim[at](gpu);
    return any;
}

bool vgw_charge(unsigned gpu, uint64_t bytes)
{
    const int slot = vgw_region_ready() ? vgw_own_slot() : -1;
    if (slot >= 0 && (take((unsigned)slot, gpu, bytes) || (vgw_reap() && take((unsigned)slot, gpu, bytes)) ||
                      (reclaim(gpu) && take((unsigned)slot, gpu, bytes))))
        return true;
    vgw_denied(gpu, slot < 0 ? VGW_DENIED_SLOT : VGW_DENIED_QUOTA, bytes); /* closed: what nobody accounts for */
    return false;
}

void vgw_refund(unsigned gpu, uint64_t bytes)
{
    const int slot = bytes == 0 ? -1 : vgw_own_slot();
    if (slot < 0)
        return;
    pthread_mutex_lock(&gpu_locks[gpu]);
    vgw_ledger_give(vgw_usage, (unsigned)slot, gpu, bytes);
    pthread_mutex_unlock(&gpu_locks[gpu]);
}

static bool time_to_reap(void)
{
    static int64_t last_ns;
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now); /* good to 4 ms, at a fifth of the price */
    const int64_t now_ns = now.tv_sec * 1000000000ll + now.tv_nsec;
    if (now_ns - __atomic_load_n(&last_ns, __ATOMIC_RELAXED) < REAP_EVERY_NS)
        return false;
    __atomic_store_n(&last_ns, now_ns, __ATOMIC_RELAXED);
    return true;
}

uint64_t vgw_used_now(unsigned gpu)
{
    const unsigned *at = __atomic_load_n(&own, __ATOMIC_ACQUIRE);
    const unsigned slot = at == NULL ? 0 : __atomic_load_n(at, __ATOMIC_ACQUIRE);
    const uint64_t mine = slot == 0 ? 0 : vgw_ledger_held(vgw_usage, slot - 1, gpu);
    const uint64_t used = vgw_ledger_used(vgw_usage, gpu);
    return __builtin_expect(used == mine, true) || !time_to_reap() || !vgw_reap() ? used
                                                                                  : vgw_ledger_used(vgw_usage, gpu);
}

void vgw_owe(unsigned gpu, uint64_t bytes)
{
    static const uint64_t no_limit = VGW_BYTES_MAX;
    const int slot = bytes == 0 || !vgw_region_ready() ? -1 : vgw_own_slot();
    if (slot < 0)
        return;
    pthread_mutex_lock(&gpu_locks[gpu]);
    vgw_ledger_take(vgw_usage, (unsigned)slot, gpu, bytes, &no_limit);
    pthread_mutex_unlock(&gpu_locks[gpu]);
}

uint64_t vgw_held(unsigned gpu)
{
    const int slot = vgw_region_ready() ? vgw_own_slot() : -1;
    return slot < 0 ? 0 : vgw_ledger_held(vgw_usage, (unsigned)slot, gpu);
}

void vgw_slot_forked(void)
{
    pthread_mutex_init(&slot_lock, NULL);
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS; gpu++)
        pthread_mutex_init(&gpu_locks[gpu], NULL);
    if (own != NULL)
        *own = 0; /* kernels before 4.14 have not cleared the page */
}

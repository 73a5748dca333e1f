/* neighbours.c - reads the share files of the other containers on a GPU: include/vgw_share.h.
 *
 * Names are the host's and are believed; contents are the neighbours' and are not: whatever they hold, a neighbour lends at
 * most its own share, and what it says of its borrowing only makes us borrow less. They are read by pread, never mapped
 * (their owner can cut them), and opened each time: no descriptor of ours waits for a program that closes what it does not
 * know. The folder lists few files; all of it costs some ten microseconds, for who would otherwise sleep. */
#include "vgw_neighbours.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vgw_bucket.h"
#include "vgw_region.h"

#define LOOK_NS 1000000u /* not more often */
#define WINDOW_NS                                                                                                      \
    100000000u /* idle time that was left longer ago is gone, and who has not claimed any since, wants none */
#define MEAN_NS    10000000u  /* over which it is told how much is borrowed */
#define ALONE_NS   100000000u /* how often `vgw_alone` looks */
#define LIST_BYTES 4096u      /* of a folder, read at once */

struct around { /* all in nanoseconds of GPU time within the window, but cores: percent */
    uint64_t from_ns, now_ns;
    unsigned class, cores; /* ours */
    uint64_t reserved;     /* percent, ours included */
    uint64_t lent;
    uint64_t higher, equal; /* borrowed by others, by class */
    uint64_t weights;       /* cores of the equals that borrow */
    unsigned others;
};

static uint64_t later(uint64_t one, uint64_t other)
{
    return one > other ? one : other;
}

static void tell(uint64_t *at, uint64_t value)
{
    __atomic_store_n(at, value, __ATOMIC_RELAXED);
}

void vgw_tell_bucket(unsigned gpu, int64_t tokens_ns, uint64_t refilled_ns)
{
    if (vgw_share == NULL)
        return;
    tell((uint64_t *)&vgw_share->gpus[gpu].tokens_ns, (uint64_t)tokens_ns);
    tell(&vgw_share->gpus[gpu].refilled_ns, refilled_ns);
}

void vgw_tell_active(unsigned gpu, uint64_t until_ns)
{
    if (vgw_share == NULL)
        return;
    uint64_t *at = &vgw_share->gpus[gpu].active_until_ns, seen = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (seen < until_ns &&
           !__atomic_compare_exchange_n(at, &seen, until_ns, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

/* What it leaves of its share within the window: from when its bucket is full and its work done. */
static uint64_t lends(const struct around *around, const struct vgw_share_gpu *record, unsigned cores)
{
    if (record->refilled_ns > around->now_ns || record->active_until_ns > around->now_ns)
        return 0;
    uint64_t full_ns = record->refilled_ns;
    if (record->tokens_ns < VGW_BUCKET_NS) {
        const uint64_t missing =
            (uint64_t)VGW_BUCKET_NS - (uint64_t)record->tokens_ns; /* modulo 2^64: right also for debt */
        if (missing > UINT64_MAX / 200)
            return 0; /* no bucket is so deep in debt */
        full_ns += missing * 100 / cores;
    }
    const uint64_t from = later(later(around->from_ns, full_ns), record->active_until_ns);
    return from < around->now_ns ? (around->now_ns - from) * cores / 100 : 0;
}

static void count(struct around *around, const struct vgw_neighbour *entry, const struct vgw_share_gpu *record)
{
    around->others++;
    around->reserved += entry->cores;
    if (entry->cores >= 1 && entry->cores < 100) /* with 100 it is not limited, and its bucket says nothing */
        around->lent += lends(around, record, entry->cores);
    const uint64_t permille = record->borrow_permille < 1000 ? record->borrow_permille : 1000;
    const bool fresh = record->borrowed_ns <= around->now_ns && around->now_ns - record->borrowed_ns < WINDOW_NS;
    if (entry->class == 0 || entry->class < around->class || !fresh || permille == 0)
        return;
    const uint64_t borrowed = (around->now_ns - around->from_ns) * permille / 1000;
    if (entry->class > around->class) {
        around->higher += borrowed;
    } else {
        around->equal += borrowed;
        around->weights += entry->cores;
    }
}

static void look_at(void *what, const struct vgw_neighbour *entry, int fd)
{
    struct around *around = what;
    struct vgw_share_gpu record;
    if (pread(fd, &record, sizeof record, (off_t)(entry->number * sizeof record)) != (ssize_t)sizeof record)
        record = (struct vgw_share_gpu){.refilled_ns = UINT64_MAX}; /* cut: it lends nothing */
    count(around, entry, &record);
}

static void visit(int folder, const char *name, vgw_neighbour_look *look, void *what)
{
    struct vgw_neighbour entry;
    struct stat status;
    if (sscanf(name, "%3u.%2u.%2u.%1u.%20lu", &entry.cores, &entry.number, &entry.gpus, &entry.class, &entry.inode) !=
            5 ||
        entry.cores > 100 || entry.number >= VGW_MAX_GPUS || entry.inode == vgw_share_inode)
        return;
    const int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fstat(fd, &status) == 0 && status.st_nlink > entry.gpus)
        look(what, &entry, fd);
    close(fd);
}

bool vgw_each_neighbour(unsigned gpu, vgw_neighbour_look *look, void *what)
{
    char path[sizeof VGW_BOX + 16];
    union {
        char bytes[LIST_BYTES];
        uint64_t aligned;
    } list;
    snprintf(path, sizeof path, VGW_BOX "/gpu%u", gpu);
    const int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return false;
    long got;
    while ((got = syscall(SYS_getdents64, folder, list.bytes, sizeof list.bytes)) > 0)
        for (long at = 0; at < got;) {
            uint16_t length; /* struct linux_dirent64: inode 8, offset 8, length 2, type 1, name */
            memcpy(&length, &list.bytes[at + 16], sizeof length);
            if (list.bytes[at + 19] != '.')
                visit(folder, &list.bytes[at + 19], look, what);
            at += length;
        }
    close(folder);
    return got == 0;
}

/* Our part of what the neighbours leave and nobody is kept: after higher classes; among equals by share, and what they do
 * not take. Each claims each moment once, so that together they get no more than is idle. */
static uint64_t part_of(const struct around *around)
{
    const uint64_t window = around->now_ns - around->from_ns;
    /* where more is kept than there is (overcommit), what is lent goes first to those who are kept too much for */
    const uint64_t idle = around->lent + window, kept = window * around->reserved / 100 + around->higher;
    if (idle <= kept)
        return 0;
    const uint64_t ours = idle - kept;
    const uint64_t fair = ours * around->cores / (around->cores + around->weights);
    return ours > around->equal ? later(fair, ours - around->equal) : fair;
}

static void tell_borrowed(struct vgw_share_gpu *own, const struct around *around, uint64_t ns)
{
    const uint64_t window = around->now_ns - around->from_ns, weight = window < MEAN_NS ? window : MEAN_NS;
    const uint64_t before = __atomic_load_n(&own->borrow_permille, __ATOMIC_RELAXED);
    const uint64_t permille = ns * 1000 / window;
    const uint64_t mean = (before * (MEAN_NS - weight) + permille * weight) / MEAN_NS;
    tell(&own->borrow_permille, mean == 0 && ns > 0 ? 1 : mean);
    tell(&own->borrowed_ns, around->now_ns);
}

uint64_t vgw_idle_time(unsigned gpu, uint64_t now_ns)
{
    const struct vgw_quota_gpu *quota = &vgw_quota->gpus[gpu];
    if (vgw_share == NULL)
        return 0;
    struct vgw_share_gpu *own = &vgw_share->gpus[gpu];
    uint64_t since = __atomic_load_n(&own->claimed_ns, __ATOMIC_RELAXED);
    if (since <= now_ns && now_ns - since < LOOK_NS)
        return 0;
    if (!__atomic_compare_exchange_n(&own->claimed_ns, &since, now_ns, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        return 0; /* another process of the container has this stretch of time */
    const uint32_t priority = __atomic_load_n(&quota->priority, __ATOMIC_RELAXED);
    struct around around = {.now_ns = now_ns, .class = (priority < 2 ? priority : 2) + 1};
    around.from_ns = since > now_ns ? now_ns - LOOK_NS : later(since, now_ns - WINDOW_NS);
    around.cores = vgw_bucket_share(gpu);
    const int error = errno;
    around.reserved = around.cores;
    const bool seen = vgw_each_neighbour(gpu, look_at, &around);
    errno = error;
    if (!seen)
        return 0;
    const uint64_t ns = part_of(&around);
    tell_borrowed(own, &around, ns);
    return ns;
}

static bool one_process(void)
{
    unsigned count = 0;
    const uint32_t high = __atomic_load_n(&vgw_usage->slot_high, __ATOMIC_ACQUIRE);
    for (uint32_t slot = 0; slot < high && slot < VGW_MAX_SLOTS; slot++)
        count += __atomic_load_n(&vgw_usage->slots[slot].pid, __ATOMIC_RELAXED) != 0;
    return count <= 1;
}

bool vgw_alone(unsigned gpu, uint64_t now_ns)
{
    static struct {
        uint64_t looked_ns;
        bool alone;
    } last[VGW_MAX_GPUS]; /* of one caller at a time: measure.c's lock */
    if (now_ns - last[gpu].looked_ns < ALONE_NS)
        return last[gpu].alone;
    struct around around = {.now_ns = now_ns, .from_ns = now_ns, .class = 4};
    const int error = errno;
    last[gpu].alone =
        vgw_share != NULL && one_process() && vgw_each_neighbour(gpu, look_at, &around) && around.others == 0;
    last[gpu].looked_ns = now_ns;
    errno = error;
    return last[gpu].alone;
}

/* overhead.c - what only the driver knows, read from NVML's figure of this process before and after the call.
 *
 * The driver's own NVML is asked (the box has it as libvgpu-nvml.so), since ours answers from the ledger. Its list has
 * pids of this pid namespace or of the host's, by driver; if ours is not in it, the one pid that a first context adds
 * is ours; if that cannot be told, the GPU's whole figure has to do, in which neighbours' changes are.
 */
#include "vgw_overhead.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vgw_late.h"
#include "vgw_nvml.h"

#define LIST_MAX 512u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of one reading and the charge that follows from it */
static bool opened;
static unsigned own_pid; /* as NVML has it; 0: not found yet */
static struct {
    nvmlReturn_t (*init)(void);
    nvmlReturn_t (*by_uuid)(const char *, nvmlDevice_t *);
    nvmlReturn_t (*processes)(nvmlDevice_t, unsigned int *, nvmlProcessInfo_t *);
    nvmlReturn_t (*memory)(nvmlDevice_t, nvmlMemory_t *);
} nvml;

struct listing {
    unsigned count;
    nvmlProcessInfo_t infos[LIST_MAX];
};
static struct listing seen;             /* before the first context */
static unsigned seen_on;                /* GPU + 1; 0: nothing was seen yet */
static uint64_t beyond[VGW_MAX_GPUS];   /* charged for what this process holds and is not charged for otherwise */
static unsigned measured[VGW_MAX_GPUS]; /* calls that are under way: what they take is theirs */

static bool open_nvml(void)
{
    if (!opened) {
        opened = true; /* once: a library that is not there will not come */
        const int error = errno;
        /* ours first, which needs the driver's: both have one SONAME, and later the loader hands out whichever was first */
        void *ours = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_LOCAL);
        void *library = ours == NULL ? NULL : dlopen(VGW_BOX "/libvgpu-nvml.so", RTLD_LAZY | RTLD_LOCAL);
        nvml.init = (__typeof__(nvml.init))vgw_real_symbol(library, "nvmlInit_v2");
        nvml.by_uuid = (__typeof__(nvml.by_uuid))vgw_real_symbol(library, "nvmlDeviceGetHandleByUUID");
        nvml.memory = (__typeof__(nvml.memory))vgw_real_symbol(library, "nvmlDeviceGetMemoryInfo");
        void *list = vgw_real_symbol(library, "nvmlDeviceGetComputeRunningProcesses_v3");
        if (list == NULL)
            list = vgw_real_symbol(library, "nvmlDeviceGetComputeRunningProcesses_v2");
        nvml.processes = (__typeof__(nvml.processes))list;
        dlerror();
        if (nvml.init == NULL || nvml.by_uuid == NULL || nvml.init() != NVML_SUCCESS)
            nvml.by_uuid = NULL;
        errno = error;
    }
    return nvml.by_uuid != NULL;
}

static bool is_listed(const struct listing *list, unsigned pid)
{
    for (unsigned at = 0; at < list->count; at++)
        if (list->infos[at].pid == pid)
            return true;
    return false;
}

/* Whether processes share a context of another one, whose memory NVML shows as that one's. */
static bool is_shared(unsigned gpu)
{
    int shared = 0; /* a driver that does not know the question has another answer */
    return vgw_driver.cuDeviceGetAttribute != NULL &&
           vgw_driver.cuDeviceGetAttribute(&shared, CU_DEVICE_ATTRIBUTE_MPS_ENABLED, vgw_device_of(gpu)) ==
               CUDA_SUCCESS &&
           shared != 0;
}

/* Finds our pid in the list, or the only one that was not in the list before. */
static void find_own(const struct listing *now, unsigned gpu)
{
    unsigned fresh = 0, pid = 0;
    for (unsigned at = 0; at < now->count; at++)
        if (!is_listed(&seen, now->infos[at].pid)) {
            fresh++;
            pid = now->infos[at].pid;
        }
    if (is_listed(now, (unsigned)getpid()))
        own_pid = (unsigned)getpid();
    else if (fresh == 1 && seen_on == gpu + 1 && !is_shared(gpu))
        own_pid = pid;
}

static bool own_figure(unsigned gpu, nvmlDevice_t device, uint64_t *figure)
{
    static struct listing now;
    now.count = LIST_MAX;
    if (nvml.processes == NULL || nvml.processes(device, &now.count, now.infos) != NVML_SUCCESS)
        return false;
    if (own_pid == 0)
        find_own(&now, gpu);
    seen = now;
    seen_on = gpu + 1;
    *figure = 0;
    for (unsigned at = 0; at < now.count; at++)
        if (now.infos[at].pid == own_pid && own_pid != 0)
            *figure = now.infos[at].usedGpuMemory;
    return *figure != UINT64_MAX; /* a driver that does not say */
}

/* Under the lock. */
static bool read_figure(unsigned gpu, uint64_t *own, uint64_t *whole)
{
    nvmlDevice_t device;
    nvmlMemory_t memory = {0, 0, 0};
    if (!open_nvml() || nvml.by_uuid(vgw_quota->gpus[gpu].uuid, &device) != NVML_SUCCESS)
        return false;
    if (nvml.memory != NULL && nvml.memory(device, &memory) == NVML_SUCCESS)
        *whole = memory.used;
    return own_figure(gpu, device, own);
}

/* Under the lock. Makes what this process is charged at least what it holds, and no more than its other charges if those
 * are enough: true if that was a change. Where others of its threads have charged or given back meanwhile, nothing is
 * given back, and it has to be looked again: true as well. */
static bool level(unsigned gpu, uint64_t held_before, uint64_t figure, bool may_take)
{
    const uint64_t held = vgw_held(gpu);
    const bool moved = held != held_before;
    const uint64_t other = (held > held_before ? held : held_before) - beyond[gpu];
    const uint64_t had = beyond[gpu];
    uint64_t wanted = figure > other ? figure - other : 0;
    if ((wanted > had && !may_take) || (wanted < had && moved))
        wanted = had;
    if (wanted > had)
        vgw_owe(gpu, wanted - had);
    else
        vgw_refund(gpu, had - wanted);
    __atomic_store_n(&beyond[gpu], wanted, __ATOMIC_RELAXED);
    return moved || wanted != had;
}

static bool settle(unsigned gpu, bool may_take)
{
    uint64_t figure = 0, whole = 0;
    if (pthread_mutex_trylock(&lock) != 0)
        return true; /* it is being asked already */
    const uint64_t held = vgw_held(gpu);
    const bool known = measured[gpu] == 0 && read_figure(gpu, &figure, &whole) && own_pid != 0;
    const bool changed = measured[gpu] != 0 || (known && level(gpu, held, figure, may_take));
    pthread_mutex_unlock(&lock);
    return changed;
}

bool vgw_overhead_settle(unsigned gpu)
{
    return settle(gpu, true);
}

bool vgw_overhead_beyond(unsigned gpu)
{
    return __atomic_load_n(&beyond[gpu], __ATOMIC_RELAXED) != 0;
}

bool vgw_overhead_reclaim(unsigned gpu)
{
    return vgw_overhead_beyond(gpu) && settle(gpu, false);
}

struct vgw_before vgw_overhead_before(unsigned gpu)
{
    struct vgw_before before = {.gpu = gpu};
    pthread_mutex_lock(&lock);
    const uint64_t held = vgw_held(gpu);
    before.known = read_figure(gpu, &before.figure, &before.whole);
    /* before it has a context, what is listed for it is a former program's, whose descriptors a child may have */
    const bool has_any = __atomic_load_n(&vgw_contexts, __ATOMIC_RELAXED) != 0;
    if (before.known && own_pid != 0 && measured[gpu] == 0 && has_any)
        level(gpu, held, before.figure, true);
    before.held = vgw_held(gpu);
    measured[gpu]++;
    pthread_mutex_unlock(&lock);
    return before;
}

/* Under the lock. A process that was not in the list held nothing. What is charged meanwhile by others of our threads is
 * not counted again. */
static uint64_t growth(const struct vgw_before *before)
{
    uint64_t figure = 0, whole = 0;
    const bool known = read_figure(before->gpu, &figure, &whole) && before->known && own_pid != 0;
    const int64_t taken = (int64_t)(known ? figure - before->figure : whole - before->whole);
    const int64_t charged = (int64_t)(vgw_held(before->gpu) - before->held);
    return taken > charged ? (uint64_t)(taken - charged) : 0;
}

/* Adds to what the key has already. */
static bool write_down(enum vgw_kind kind, uint64_t key, uint64_t bytes, uint64_t link, unsigned gpu)
{
    struct vgw_entry entry = {.bytes = 0};
    vgw_table_take(kind, key, &entry);
    return vgw_keep(kind, key, entry.bytes + bytes, link, gpu);
}

bool vgw_overhead_after(const struct vgw_before *before, enum vgw_kind kind, const void *key, const void *link)
{
    pthread_mutex_lock(&lock);
    const uint64_t bytes = growth(before);
    bool done = bytes == 0 || vgw_charge(before->gpu, bytes);
    measured[before->gpu]--;
    pthread_mutex_unlock(&lock);
    if (bytes != 0 && done && !write_down(kind, vgw_key(key), bytes, vgw_key(link), before->gpu)) {
        vgw_refund(before->gpu, bytes);
        done = false;
    }
    return done;
}

void vgw_overhead_failed(const struct vgw_before *before)
{
    pthread_mutex_lock(&lock);
    measured[before->gpu]--;
    pthread_mutex_unlock(&lock);
}

void vgw_overhead_forked(void)
{
    pthread_mutex_init(&lock, NULL);
    own_pid = 0;
    seen_on = 0;
    memset(beyond, 0, sizeof beyond);
    memset(measured, 0, sizeof measured);
}

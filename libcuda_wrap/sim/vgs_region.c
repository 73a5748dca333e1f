/* vgs_region.c - opens the shared state file, finds the GPUs that this process may see, and takes a slot. */
#define _GNU_SOURCE
#include "vgs_region.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vgs_lock.h"

#ifndef F_OFD_GETLK /* headers of glibc 2.17 do not have them; the kernel has since 3.15 */
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

struct vgs_state *vgs_state;
uint32_t vgs_slot = VGS_MAX_SLOTS;

static int ctl_fd = -1;
static pthread_mutex_t slot_lock = PTHREAD_MUTEX_INITIALIZER;

static const char *sim_dir(void)
{
    const char *dir = getenv("VGPU_SIM_DIR");
    return dir && *dir ? dir : "/dev/vgpu-sim";
}

static int open_in_dir(const char *name, int flags)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", sim_dir(), name);
    return length < 0 || (size_t)length >= sizeof path ? -1 : open(path, flags | O_CLOEXEC);
}

static bool header_is_ours(const struct vgs_state *state)
{
    return state->magic == VGS_MAGIC && state->version == VGS_VERSION && state->bytes == sizeof *state &&
           state->gpu_count >= 1 && state->gpu_count <= VGS_MAX_GPUS && state->slot_count == VGS_MAX_SLOTS;
}

enum vgs_open_result vgs_open(void)
{
    enum vgs_open_result result = VGS_OPEN_FAULTY;
    pthread_mutex_lock(&slot_lock);
    if (ctl_fd < 0) {
        int fd = open_in_dir("ctl", O_RDWR);
        struct stat info;
        if (fd < 0) {
            result = VGS_OPEN_MISSING;
        } else if (fstat(fd, &info) == 0 && info.st_size == (off_t)sizeof *vgs_state) {
            struct vgs_state *state = vgs_state;
            if (!state) {
                void *map = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
                state = map == MAP_FAILED ? NULL : map;
            }
            if (state && header_is_ours(state)) {
                vgs_state = state;
                ctl_fd = fd;
            } else if (state) {
                munmap(state, sizeof *state);
            }
        }
        if (fd >= 0 && ctl_fd != fd)
            close(fd);
    }
    if (ctl_fd >= 0)
        result = VGS_OPEN_OK;
    pthread_mutex_unlock(&slot_lock);
    return result;
}

static bool gpu_is_open_to_us(uint32_t minor)
{
    char name[16];
    snprintf(name, sizeof name, "gpu%u", minor);
    int fd = open_in_dir(name, O_RDONLY);
    if (fd < 0)
        return false;
    close(fd);
    return true;
}

/* The GPU that `text` (an index, or the beginning of a UUID) names in CUDA_VISIBLE_DEVICES; VGS_MAX_GPUS: none. */
static uint32_t named_gpu(const struct vgs_visible *all, const char *text, size_t length)
{
    char name[64] = "";
    if (length == 0 || length >= sizeof name)
        return VGS_MAX_GPUS;
    memcpy(name, text, length);
    if (strncmp(name, "GPU-", 4) == 0) {
        for (uint32_t i = 0; i < all->count; i++)
            if (strncmp(vgs_state->gpus[all->index[i]].uuid, name, length) == 0)
                return all->index[i];
        return VGS_MAX_GPUS;
    }
    char *end;
    long ordinal = strtol(name, &end, 10);
    return *end || ordinal < 0 || ordinal >= (long)all->count ? VGS_MAX_GPUS : all->index[ordinal];
}

/* The driver's rule: the list ends at the first name that is no GPU; a GPU named twice makes the whole list void. */
static void choose_gpus(struct vgs_visible *visible, const char *list)
{
    struct vgs_visible all = *visible;
    visible->count = 0;
    while (visible->count < VGS_MAX_GPUS) {
        list += strspn(list, " ");
        size_t length = strcspn(list, ", ");
        uint32_t gpu = named_gpu(&all, list, length);
        if (gpu == VGS_MAX_GPUS)
            return;
        for (uint32_t i = 0; i < visible->count; i++)
            if (visible->index[i] == gpu) {
                visible->count = 0;
                return;
            }
        visible->index[visible->count++] = gpu;
        list += length;
        list += strspn(list, " ");
        if (*list++ != ',')
            return;
    }
}

void vgs_find_gpus(struct vgs_visible *visible, bool cuda_order)
{
    visible->count = 0;
    for (uint32_t gpu = 0; gpu < vgs_state->gpu_count; gpu++)
        if (gpu_is_open_to_us(vgs_state->gpus[gpu].minor))
            visible->index[visible->count++] = gpu;
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    if (cuda_order && list)
        choose_gpus(visible, list);
}

static int slot_fcntl(int command, uint32_t slot, short type, struct flock *out)
{
    struct flock range = {
        .l_type = type,
        .l_whence = SEEK_SET,
        .l_start = (off_t)(offsetof(struct vgs_state, slots) + slot * sizeof(struct vgs_slot)),
        .l_len = 1,
    };
    int result = fcntl(ctl_fd, command, &range);
    if (out)
        *out = range;
    return result;
}

bool vgs_slot_lives(uint32_t slot)
{
    struct flock range;
    /* our own lock does not conflict with itself, so it has to be known otherwise */
    return slot == vgs_slot || slot_fcntl(F_OFD_GETLK, slot, F_WRLCK, &range) != 0 || range.l_type != F_UNLCK;
}

/* The slot's last owner is dead, and we hold the slot's lock: what it held goes back. `as`: the slot that takes the GPUs' locks. */
static void clear_slot(uint32_t slot, uint32_t as)
{
    struct vgs_slot *dead = &vgs_state->slots[slot];
    for (uint32_t gpu = 0; gpu < VGS_MAX_GPUS; gpu++) {
        vgs_lock_inherit(gpu, slot);
        if (__atomic_load_n(&dead->gpus[gpu].bytes, __ATOMIC_RELAXED) != 0) {
            vgs_lock(gpu, as);
            vgs_state->gpus[gpu].used_bytes -= dead->gpus[gpu].bytes;
            dead->gpus[gpu].bytes = 0;
            vgs_unlock(gpu);
        }
        vgs_clock_drop(gpu, slot);
        dead->gpus[gpu].busy_ns = 0;
        dead->gpus[gpu].contexts = 0;
    }
    __atomic_store_n(&dead->pid, 0, __ATOMIC_RELEASE);
}

static uint64_t own_pid_namespace(void)
{
    struct stat info;
    return stat("/proc/self/ns/pid", &info) == 0 ? (uint64_t)info.st_ino : 0;
}

bool vgs_take_slot(void)
{
    pthread_mutex_lock(&slot_lock);
    for (uint32_t slot = 0; ctl_fd >= 0 && vgs_slot == VGS_MAX_SLOTS && slot < VGS_MAX_SLOTS; slot++) {
        if (slot_fcntl(F_OFD_SETLK, slot, F_WRLCK, NULL) != 0)
            continue;
        clear_slot(slot, slot);
        struct vgs_slot *mine = &vgs_state->slots[slot];
        mine->pid_ns = own_pid_namespace();
        mine->start_ns = vgs_now_ns();
        uint32_t high = __atomic_load_n(&vgs_state->slot_high, __ATOMIC_RELAXED);
        while (high <= slot && !__atomic_compare_exchange_n(&vgs_state->slot_high, &high, slot + 1, false,
                                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            ;
        __atomic_store_n(&mine->pid, (uint64_t)getpid(), __ATOMIC_RELEASE);
        vgs_slot = slot;
    }
    bool taken = vgs_slot < VGS_MAX_SLOTS;
    pthread_mutex_unlock(&slot_lock);
    return taken;
}

void vgs_forget_slot(void)
{
    pthread_mutex_init(&slot_lock, NULL); /* another thread of the parent may have held it */
    if (ctl_fd >= 0)
        close(ctl_fd);
    ctl_fd = -1;
    vgs_slot = VGS_MAX_SLOTS;
    vgs_clock_forked();
}

void vgs_reap(void)
{
    pthread_mutex_lock(&slot_lock); /* two threads share one OFD lock: the file lock does not keep them apart */
    uint32_t high = __atomic_load_n(&vgs_state->slot_high, __ATOMIC_RELAXED);
    for (uint32_t slot = 0; slot < high && slot < VGS_MAX_SLOTS; slot++) {
        if (slot == vgs_slot || __atomic_load_n(&vgs_state->slots[slot].pid, __ATOMIC_RELAXED) == 0)
            continue;
        if (vgs_slot_lives(slot) || slot_fcntl(F_OFD_SETLK, slot, F_WRLCK, NULL) != 0)
            continue;
        clear_slot(slot, vgs_slot);
        slot_fcntl(F_OFD_SETLK, slot, F_UNLCK, NULL);
    }
    pthread_mutex_unlock(&slot_lock);
}

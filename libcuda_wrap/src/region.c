/* region.c - maps the quota and usage files of include/vgw_quota.h and vgw_usage.h. */
#include "vgw_region.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "vgw_real.h"

const struct vgw_quota *vgw_quota;
struct vgw_usage *vgw_usage;
struct vgw_share *vgw_share;
unsigned long vgw_share_inode;

static pthread_mutex_t mapping = PTHREAD_MUTEX_INITIALIZER;
static bool ready;

static void *map(const char *path, size_t bytes, int flags, int protection)
{
    const int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK); /* a FIFO would wait for its writer */
    if (fd < 0)
        return NULL;
    struct stat status;
    void *at = MAP_FAILED;
    if (fstat(fd, &status) == 0 && (size_t)status.st_size == bytes) /* shorter: touching it would be SIGBUS */
        at = mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);
    close(fd);
    return at == MAP_FAILED ? NULL : at;
}

/* Without it this container lends nothing and borrows nothing; its own share holds all the same. */
static void map_share(void)
{
    struct stat status;
    if (vgw_share == NULL && stat(VGW_BOX "/share", &status) == 0) {
        vgw_share_inode = status.st_ino;
        vgw_share = map(VGW_BOX "/share", sizeof *vgw_share, O_RDWR, PROT_READ | PROT_WRITE);
    }
}

static bool quota_is_sound(const struct vgw_quota *quota)
{
    if (quota->magic != VGW_QUOTA_MAGIC || quota->version != VGW_QUOTA_VERSION || quota->bytes != sizeof *quota ||
        quota->gpu_count < 1 || quota->gpu_count > VGW_MAX_GPUS)
        return false;
    for (unsigned gpu = 0; gpu < quota->gpu_count; gpu++)
        if (memchr(quota->gpus[gpu].uuid, 0, sizeof quota->gpus[gpu].uuid) == NULL)
            return false;
    return true;
}

static bool usage_is_sound(const struct vgw_usage *usage)
{
    return usage->magic == VGW_USAGE_MAGIC && usage->version == VGW_USAGE_VERSION && usage->bytes == sizeof *usage &&
           usage->slot_count == VGW_MAX_SLOTS;
}

static void forked(void)
{
    pthread_mutex_init(&mapping, NULL);
    vgw_slot_forked();
}

static bool map_both(void)
{
    static bool watching_forks; /* children inherit the handler */
    const struct vgw_quota *quota = map(VGW_BOX "/quota", sizeof *quota, O_RDONLY, PROT_READ);
    struct vgw_usage *usage = map(VGW_BOX "/usage", sizeof *usage, O_RDWR, PROT_READ | PROT_WRITE);
    if (quota != NULL && usage != NULL && quota_is_sound(quota) && usage_is_sound(usage) &&
        (watching_forks || __register_atfork(NULL, NULL, forked, NULL) == 0)) {
        watching_forks = true;
        vgw_quota = quota;
        vgw_usage = usage;
        map_share();
        return true;
    }
    if (quota != NULL)
        munmap((void *)(uintptr_t)quota, sizeof *quota);
    if (usage != NULL)
        munmap(usage, sizeof *usage);
    return false;
}

bool vgw_region_ready(void)
{
    if (__builtin_expect(__atomic_load_n(&ready, __ATOMIC_ACQUIRE), true))
        return true;
    const int error = errno;
    pthread_mutex_lock(&mapping);
    const bool done = ready || map_both();
    __atomic_store_n(&ready, done, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&mapping);
    errno = error;
    return done;
}

void vgw_region_arm(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_BOOTTIME, &now);
    uint64_t never = 0;
    const uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    if (__atomic_compare_exchange_n(&vgw_usage->armed_ns, &never, now_ns, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
        __atomic_store_n(&vgw_usage->wrapper_version, VGW_VERSION, __ATOMIC_RELAXED);
}

int vgw_gpu_by_uuid(const char *uuid)
{
    for (unsigned gpu = 0; gpu < vgw_quota->gpu_count; gpu++)
        if (strcmp(vgw_quota->gpus[gpu].uuid, uuid) == 0)
            return (int)gpu;
    return -1;
}

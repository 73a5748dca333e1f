/* fuzz.h - what the fuzz targets share: a box of their own in the working folder, the bytes that they are given, and the
 * wrapper's own region.c and slot.c, whose state is forgotten after each run. A target includes it once; ledger.c,
 * bucket.c, neighbours.c and past.c are linked. tests/libcuda_wrap/fuzzing.py builds and runs them; VGW_BOX is ".".
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <fcntl.h>
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "vgw_ledger.h"
#include "vgw_past.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAPPINGS 8u
#define REACHED  32768u /* of the usage file a run touches no more, but for the last slot: the first are free */

static struct {
    void *at;
    size_t bytes;
} mappings[MAPPINGS];

/* As mmap; what lies behind a file on its last page is out of bounds, and at the end of a run all of it goes. */
static inline void *noted_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    void *got = mmap(at, bytes, protection, flags, fd, offset);
    for (unsigned number = 0; got != MAP_FAILED && fd >= 0 && number < MAPPINGS; number++)
        if (mappings[number].at == NULL) {
            mappings[number].at = got;
            mappings[number].bytes = bytes;
            if (bytes % 4096 != 0)
                __asan_poison_memory_region((char *)got + bytes, 4096 - bytes % 4096);
            break;
        }
    return got;
}

#define mmap noted_mmap
#include "region.c"
#include "slot.c"
#undef mmap

static inline void must(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "does not hold: %s\n", what);
    abort();
}

/* As if the process had ended: its slot is free, nothing is mapped. */
static inline void forget(void)
{
    for (unsigned number = 0; number < MAPPINGS; number++) {
        if (mappings[number].at == NULL)
            continue;
        const size_t bytes = mappings[number].bytes, rest = (4096 - bytes % 4096) % 4096;
        __asan_unpoison_memory_region((char *)mappings[number].at + bytes, rest);
        munmap(mappings[number].at, bytes);
        mappings[number].at = NULL;
    }
    ready = false;
    vgw_quota = NULL;
    vgw_usage = NULL;
    vgw_share = NULL;
    vgw_past_forked();
    if (own != NULL)
        *own = 0;
}

static inline void write_file(const char *name, const void *data, size_t size)
{
    const int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && write(fd, data, size) == (ssize_t)size, "the box can be written");
    close(fd);
}

/* A share file in which nothing was told; it has 2 MB, of which few are ever touched. Returns its descriptor. */
static inline int blank_share(const char *name)
{
    const int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, sizeof(struct vgw_share)) == 0, "the box can be written");
    return fd;
}

/* The bytes of this run, taken from the front; zeros once they are used up. */
struct input {
    const uint8_t *at;
    size_t left;
};

static inline uint64_t next(struct input *input, unsigned bytes)
{
    uint64_t value = 0;
    const size_t count = input->left < bytes ? input->left : bytes;
    memcpy(&value, input->at, count);
    input->at += count;
    input->left -= count;
    return value;
}

/* A number as programs have them, or one at the edge of what a word can hold. */
static inline uint64_t any_number(struct input *input)
{
    const uint64_t shape = next(input, 1);
    switch (shape % 4) {
    case 0:
        return next(input, 2);
    case 1:
        return next(input, 8);
    case 2:
        return 1ull << (shape >> 2);
    default:
        return (1ull << (shape >> 2)) - 1 - next(input, 1);
    }
}

static inline void sound_quota(struct vgw_quota *quota, uint64_t memory_bytes)
{
    memset(quota, 0, sizeof *quota);
    quota->magic = VGW_QUOTA_MAGIC;
    quota->version = VGW_QUOTA_VERSION;
    quota->bytes = sizeof *quota;
    quota->gpu_count = 2;
    for (unsigned gpu = 0; gpu < quota->gpu_count; gpu++) {
        snprintf(quota->gpus[gpu].uuid, sizeof quota->gpus[gpu].uuid, "GPU-%u", gpu);
        quota->gpus[gpu].memory_bytes = memory_bytes;
        quota->gpus[gpu].cores_percent = 30;
        quota->gpus[gpu].flags = VGW_FLAG_SOFT;
        quota->gpus[gpu].priority = 1;
    }
}

/* The usage file, as it is before anybody has used it; made once, as the host does. Returns its bytes, to be damaged. */
static inline struct vgw_usage *sound_usage(void)
{
    static struct vgw_usage *usage;
    if (usage == NULL) {
        const int fd = open("usage", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        must(fd >= 0 && ftruncate(fd, sizeof *usage) == 0, "the box can be written");
        usage = mmap(NULL, sizeof *usage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        must(usage != MAP_FAILED, "the usage file can be mapped");
        close(fd);
    }
    memset(usage, 0, REACHED);
    memset(&usage->slots[VGW_MAX_SLOTS - 1], 0, sizeof usage->slots[0]);
    usage->magic = VGW_USAGE_MAGIC;
    usage->version = VGW_USAGE_VERSION;
    usage->bytes = sizeof *usage;
    usage->slot_count = VGW_MAX_SLOTS;
    return usage;
}

#endif

/* neighbours_fuzz.c - share files of neighbours with any content, of any length, under any name: whatever they hold, a
 * container gets no more than what is kept for nobody and what its neighbours may lend: their own shares. */
#include "fuzz.h"

#include "vgw_bucket.h"
#include "vgw_neighbours.h"

#define NEIGHBOURS 3u
#define NOW_NS     1000000000000u
#define WINDOW_NS  100000000u /* the longest that is shared out at once: neighbours.c */

/* A time of the record: near now, where it matters, or anything. */
static uint64_t a_time(struct input *input)
{
    const uint64_t any = any_number(input);
    return next(input, 1) % 2 == 0 ? any : NOW_NS + 1000 - any % (2 * WINDOW_NS);
}

/* Of its past: cells as they would be near NOW_NS, or of any number. */
static void write_cells(int fd, unsigned which, struct input *input)
{
    for (uint64_t count = next(input, 1) % 8; count > 0; count--) {
        const uint64_t cell = (NOW_NS >> VGW_CELL_SHIFT) - next(input, 2) % VGW_CELLS, any = any_number(input);
        const uint64_t value = next(input, 1) % 4 == 0 ? any : cell << 32 | (uint32_t)any;
        const size_t at = offsetof(struct vgw_share, past) + which * sizeof(struct vgw_share_past);
        must(pwrite(fd, &value, sizeof value, (off_t)(at + cell % VGW_CELLS * sizeof value)) == sizeof value,
             "written");
    }
}

static void write_record(const char *file, struct input *input)
{
    struct vgw_share_gpu record = {0};
    const int fd = blank_share(file);
    const uint64_t how = next(input, 1);
    const unsigned which = how % VGW_MAX_GPUS;
    record.tokens_ns = (int64_t)any_number(input);
    record.refilled_ns = a_time(input);
    record.active_until_ns = a_time(input);
    record.borrow_permille = any_number(input);
    record.borrowed_ns = a_time(input);
    record.claimed_ns = a_time(input);
    must(pwrite(fd, &record, sizeof record, (off_t)(which * sizeof record)) == sizeof record, "written");
    write_cells(fd, which, input);
    if (how >= 0xe0)
        must(ftruncate(fd, (off_t)(next(input, 3) % sizeof(struct vgw_share))) == 0, "cut");
    close(fd);
}

/* What it could lend at most, less what is kept for it, in percent: 0, or all that is kept for it and not lent. */
static unsigned kept_at_least(unsigned cores)
{
    return cores >= 1 && cores < 100 ? 0 : cores;
}

static void write_any_name(char *name, size_t room, struct input *input)
{
    for (size_t at = 0; at + 1 < room; at++)
        name[at] = "0123456789.-+ x\xff"[next(input, 1) % 16];
    name[0] = '7'; /* not a hidden file, and not one of the others */
    name[room - 1] = 0;
}

/* Its own link, with its share: the host has made it. */
static void enter(const struct vgw_quota *quota, char *name, size_t room)
{
    struct stat status;
    must(stat("share", &status) == 0, "there is a share file");
    snprintf(name, room, "gpu0/%u.0.1.%u.%lu", quota->gpus[0].cores_percent, quota->gpus[0].priority + 1,
             (unsigned long)status.st_ino);
    must(link("share", name) == 0, "it has a link in the folder");
}

static unsigned add_neighbour(unsigned at, char *name, size_t room, struct input *input)
{
    char file[] = "other0";
    const uint64_t shape = next(input, 4);
    const unsigned cores = (unsigned)shape % 101, which = (unsigned)(shape >> 8) % VGW_MAX_GPUS;
    file[5] = (char)('0' + at);
    write_record(file, input);
    const int length =
        snprintf(name, room, "gpu0/%u.%u.1.%u.%u", cores, which, (unsigned)(shape >> 16) % 10, 4000000000u + at);
    if (shape >> 31)
        write_any_name(name + 5, (size_t)length - 5, input);
    must(link(file, name) == 0 || shape >> 31, "a neighbour has a link in the folder"); /* two may have one odd name */
    return shape >> 31 ? 0 : kept_at_least(cores);
}

/* kept: percent, for whom it is certain that they lend nothing of it. */
static void ask(struct input *input, unsigned kept)
{
    const uint64_t most = kept >= 100 ? 0 : (uint64_t)WINDOW_NS * (100 - kept) / 100;
    for (uint64_t count = 0; count < 3; count++) {
        const uint64_t got = vgw_idle_time(0, NOW_NS + count * WINDOW_NS / 3);
        must(got <= most + NEIGHBOURS + 1, "no more than nobody needs, or is lent"); /* + 1: rounded, each */
    }
    const uint64_t ns = any_number(input) % (40 * (uint64_t)WINDOW_NS) + 1;
    const struct vgw_own had = vgw_past_own(0, NOW_NS - ns, NOW_NS);
    must(had.ns <= ns && had.ns + 1 >= ns / 33, "no more than there was, and no lie makes work cost nothing");
    vgw_alone(0, NOW_NS);
    vgw_tell_active(0, any_number(input));
    vgw_tell_bucket(0, (int64_t)any_number(input), any_number(input));
    vgw_bucket_borrow(0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    static struct vgw_quota quota;
    char names[NEIGHBOURS + 1][48];
    const unsigned ours = (unsigned)next(&input, 1) % 99 + 1;
    unsigned kept = ours;
    sound_quota(&quota, 1u << 30);
    quota.gpus[0].cores_percent = ours;
    quota.gpus[0].priority = (uint32_t)next(&input, 1) % 4;
    write_file("quota", &quota, sizeof quota);
    sound_usage();
    mkdir("gpu0", 0700);
    write_record("share", &input); /* its other processes write it too */
    enter(&quota, names[NEIGHBOURS], sizeof names[0]);
    for (unsigned at = 0; at < NEIGHBOURS; at++)
        kept += add_neighbour(at, names[at], sizeof names[at], &input);
    if (vgw_region_ready())
        ask(&input, kept);
    for (unsigned at = 0; at <= NEIGHBOURS; at++)
        unlink(names[at]);
    forget();
    return 0;
}

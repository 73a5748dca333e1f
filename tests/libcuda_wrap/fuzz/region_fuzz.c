/* region_fuzz.c - a usage file into which anything was written, by another process of the container, before it is mapped
 * and while it is in use: the wrapper does not end, hang or reach beyond the file, and by no word of the ledger that it
 * finds does it give more than the quota. (A word that says less than is in use is believed: docs/accounting.md.) */
#include "fuzz.h"

#include "vgw_bucket.h"

#define QUOTA (1ull << 30)

static void write_any(struct vgw_usage *usage, struct input *input)
{
    static const unsigned slots[] = {0, 1, 2, VGW_MAX_SLOTS - 1};
    const uint64_t where = next(input, 2), value = any_number(input);
    struct vgw_usage_gpu *gpu = &usage->gpus[where >> 4 & 1];
    struct vgw_usage_slot *slot = &usage->slots[slots[where >> 4 & 3]];
    struct vgw_usage_slot_gpu *share = &slot->gpus[where >> 6 & 1];
    uint64_t *words[] = {&gpu->word,
                         &gpu->stamp,
                         &gpu->peak_bytes,
                         (uint64_t *)&gpu->limiter.tokens_ns,
                         &gpu->limiter.refilled_ns,
                         &gpu->throttled_ns,
                         &slot->pid,
                         &slot->owed[where >> 8 & 1].tokens,
                         &slot->owed[where >> 8 & 1].since_ns,
                         &share->pending,
                         &share->acked,
                         &share->held};
    if ((where & 15) < sizeof words / sizeof words[0])
        *words[where & 15] = value;
    else if ((where & 15) == 12)
        usage->slot_high = (uint32_t)value;
    else /* any word at all */
        memcpy((char *)usage + (where >> 4) * sizeof value % REACHED, &value, sizeof value);
}

static void charge(unsigned gpu, uint64_t bytes)
{
    if (vgw_charge(gpu, bytes))
        must(bytes <= QUOTA && vgw_ledger_used(vgw_usage, gpu) <= QUOTA, "no more than the quota is in use");
}

static void act(struct input *input)
{
    const uint64_t what = next(input, 1), value = what % 16 < 8 ? any_number(input) : 0;
    const unsigned gpu = what > 127;
    switch (what % 16) {
    case 0:
        return charge(gpu, value);
    case 1:
        return vgw_refund(gpu, value);
    case 2:
        return vgw_owe(gpu, value);
    case 3:
        return vgw_bucket_correct(gpu, (int64_t)(value % (1ull << 50)) - (1ll << 49));
    case 4:
        return vgw_bucket_owe(gpu, value % (1ull << 50), value);
    case 5:
        return vgw_bucket_waited(gpu, value);
    case 6:
        return vgw_bucket_used(gpu, value % (1ull << 50), 1);
    case 7:
        vgw_bucket_take(gpu, value % (1ull << 50), vgw_bucket_share(gpu));
        return;
    case 8:
        vgw_reap();
        return;
    case 9:
        vgw_used_now(gpu);
        return;
    case 10:
        vgw_bucket_borrow(gpu);
        return;
    case 11:
        vgw_denied(gpu, VGW_DENIED_DRIVER, 1);
        return;
    default:
        return write_any(vgw_usage, input);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    static struct vgw_quota quota;
    sound_quota(&quota, QUOTA);
    struct vgw_usage *usage = sound_usage();
    for (uint64_t count = next(&input, 1) % 16; count > 0; count--)
        write_any(usage, &input); /* before anybody maps it */
    write_file("quota", &quota, sizeof quota);
    close(blank_share("share"));
    if (vgw_region_ready()) {
        vgw_region_arm();
        while (input.left > 0)
            act(&input);
    }
    forget();
    return 0;
}

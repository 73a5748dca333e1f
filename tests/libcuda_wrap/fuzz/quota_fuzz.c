/* quota_fuzz.c - a quota file of any bytes and any length: refused as a whole, or understood, and then no more than it
 * says is given, whatever else stands in it. */
#include "fuzz.h"

#include "vgw_bucket.h"
#include "vgw_neighbours.h"

static const uint64_t sizes[] = {0, 1, 4096, 1ull << 30, VGW_BYTES_MAX, VGW_BYTES_MAX + 1, UINT64_MAX};

static void use(unsigned gpu)
{
    const uint64_t quota = vgw_quota->gpus[gpu].memory_bytes;
    for (unsigned at = 0; at < sizeof sizes / sizeof sizes[0]; at++) {
        const uint64_t before = vgw_held(gpu);
        const bool done = vgw_charge(gpu, sizes[at]);
        must(!done || (sizes[at] <= quota && before <= quota - sizes[at]), "no more is charged than the quota allows");
        must(vgw_held(gpu) == before + (done ? sizes[at] : 0), "what is charged is written down");
        if (at % 2 == 1 && done)
            vgw_refund(gpu, sizes[at]);
    }
    must(vgw_used_now(gpu) == vgw_held(gpu), "the total is what its only process holds");
    vgw_refund(gpu, UINT64_MAX);
    must(vgw_used_now(gpu) == 0, "everything can be given back");
    const uint32_t share = vgw_bucket_share(gpu);
    must(share >= 1 && share <= 100, "a share is a percentage");
    must(vgw_bucket_tokens(gpu, 1000) >= 250 && vgw_bucket_tokens(gpu, 1000) <= 2000,
         "what the host corrects is bounded");
    vgw_bucket_take(gpu, 1000, share);
    vgw_bucket_borrow(gpu);
    vgw_idle_time(gpu, vgw_now_ns() + 1000000000u);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sound_usage();
    write_file("quota", data, size);
    close(blank_share("share"));
    mkdir("gpu0", 0700);
    if (vgw_region_ready()) {
        must(size == sizeof(struct vgw_quota), "a file of another length is refused");
        must(vgw_quota->gpu_count >= 1 && vgw_quota->gpu_count <= VGW_MAX_GPUS,
             "a number of GPUs that is none is refused");
        for (unsigned gpu = 0; gpu < vgw_quota->gpu_count; gpu++) {
            const int same = vgw_gpu_by_uuid(vgw_quota->gpus[gpu].uuid);
            must(same >= 0 && same <= (int)gpu, "a GPU is found by its name");
            use(gpu);
        }
        vgw_gpu_by_uuid("");
    } else {
        must(!vgw_charge(0, 1) && vgw_held(0) == 0, "closed: without a quota nothing is given");
    }
    forget();
    return 0;
}

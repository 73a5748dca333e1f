/* races.c - threads that charge, refund and write down at once, and take, borrow and give back tokens, on ledger, slot,
 * table, bucket and neighbours themselves, for the thread sanitizer. Built together with them; the files of the box are there. Answers "ok", or what does not add up. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>

#include "vgw_bucket.h"
#include "vgw_ledger.h"
#include "vgw_region.h"
#include "vgw_table.h"

enum { THREADS = 4, ROUNDS = 2000, BYTES = 4096 };

static void *work(void *number)
{
    struct vgw_entry entry = {.bytes = BYTES, .kind = VGW_POINTER, .count = 1}, old;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        if (vgw_bucket_take(0, BYTES, vgw_bucket_share(0)) == 0 || vgw_bucket_borrow(0))
            vgw_bucket_correct(0, -BYTES);
        vgw_bucket_owe(0, round, vgw_now_ns());
        vgw_bucket_used(0, 1, 1);
        vgw_bucket_waited(0, round);
        if (!vgw_charge(0, BYTES))
            continue; /* the others have it all */
        entry.key = (uint64_t)(uintptr_t)number << 32 | (round << 12);
        if (!vgw_table_put(&entry, &old) || !vgw_table_get(VGW_POINTER, entry.key, &old) ||
            !vgw_table_take(VGW_POINTER, entry.key, &old))
            return number;
        vgw_refund(0, BYTES);
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    if (!vgw_region_ready())
        return 1;
    void *failed = NULL, *result;
    for (uintptr_t at = 0; at < THREADS; at++)
        pthread_create(&threads[at], NULL, work, (void *)(at + 1));
    for (unsigned at = 0; at < THREADS; at++) {
        pthread_join(threads[at], &result);
        failed = result != NULL ? result : failed;
    }
    const uint64_t used = vgw_ledger_used(vgw_usage, 0), launches = vgw_usage->gpus[0].launches;
    puts(failed == NULL && used == 0 && launches == THREADS * ROUNDS ? "ok" : "does not add up");
    return 0;
}

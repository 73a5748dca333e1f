/* turns.c NEIGHBOUR - past.c and measure.c on share files that are written here, and on a driver that has nothing but a clock.
 * Built with a sanitizer. The neighbour's share file is its own to write; its share is 40. Answers "ok", or what is wrong. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vgw_bucket.h"
#include "vgw_driver.h"
#include "vgw_measure.h"
#include "vgw_past.h"
#include "vgw_region.h"

enum { THREADS = 4, ROUNDS = 500, KERNEL_NS = 20000 };
#define MS UINT64_C(1000000)

struct vgw_driver vgw_driver;

static struct vgw_share *map_neighbour(const char *path)
{
    const int fd = open(path, O_RDWR);
    struct vgw_share *share = mmap(NULL, sizeof *share, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return share == MAP_FAILED ? NULL : share;
}

/* Cells of the stretch say: so many nanoseconds each. */
static void claim(struct vgw_share *share, uint64_t from, uint64_t to, uint64_t ns)
{
    for (uint64_t number = from >> VGW_CELL_SHIFT; number <= to >> VGW_CELL_SHIFT; number++)
        __atomic_store_n(&share->past[0].cells[number % VGW_CELLS], number << 32 | ns, __ATOMIC_RELAXED);
}

static void expect(const char *what, uint64_t got, uint64_t wanted)
{
    const uint64_t off = got > wanted ? got - wanted : wanted - got;
    if (off <= MS / 10)
        return;
    printf("%s: %llu, %llu expected\n", what, (unsigned long long)got, (unsigned long long)wanted);
    exit(1);
}

static void whose(struct vgw_share *neighbour)
{
    const uint64_t cell = UINT64_C(1) << VGW_CELL_SHIFT, now = vgw_now_ns() + 4000 * MS; /* whatever the uptime */
    expect("nobody there", vgw_past_own(0, now - 100 * MS, now).ns, 100 * MS);
    claim(neighbour, now - 100 * MS, now, cell);
    expect("one beside us", vgw_past_own(0, now - 100 * MS, now).ns, 50 * MS);
    claim(neighbour, now - 100 * MS, now, 3 * cell);
    expect("three beside us", vgw_past_own(0, now - 100 * MS, now).ns, 25 * MS);
    claim(neighbour, now - 100 * MS, now, cell / 2);
    expect("one, half of the time", vgw_past_own(0, now - 100 * MS, now).ns, 75 * MS);
    claim(neighbour, now - 100 * MS, now - 50 * MS, 0);
    expect("only at the end", vgw_past_own(0, now - 100 * MS, now - 51 * MS).ns, 49 * MS);
    claim(neighbour, now - 2000 * MS, now, UINT32_MAX);
    uint64_t own = 0;
    for (int turn = 0; turn < 10; turn++)
        own += vgw_past_own(0, now - 2000 * MS, now).ns;
    /* a second less what it has had above, and 40 % of the moment that this takes, and no more */
    if (own < 18900 * MS || own > 19400 * MS)
        expect("who lies", own, 19100 * MS);
    if (!vgw_past_own(0, now - MS, now).all_seen)
        expect("all seen", 0, MS);
    claim(neighbour, now - 2000 * MS, now, 0);
}

static void told(void)
{
    const uint64_t now = vgw_now_ns();
    uint64_t sum = 0;
    vgw_past_work(0, now, now + 80 * MS);
    vgw_past_done(0, now, now + 30 * MS);
    vgw_past_work(0, now + 40 * MS, now + 50 * MS);
    for (unsigned at = 0; at < VGW_CELLS; at++)
        sum += (uint32_t)vgw_share->past[0].cells[at];
    expect("told", sum, 40 * MS);
    expect("ours does not count", vgw_past_own(0, now, now + 50 * MS).ns, 50 * MS);
    vgw_past_done(0, now, now + 50 * MS);
    vgw_share->past[0].until_ns[9] = now + 1000000 * MS; /* a dead one's word */
    vgw_past_recover(9);
    vgw_past_recover(9);
}

/* An event is a moment: of one GPU that works for one kernel after another. */
static uint64_t end_ns;

static CUresult create(CUevent *event, unsigned int flags)
{
    (void)flags;
    *event = calloc(1, sizeof end_ns);
    return CUDA_SUCCESS;
}

static CUresult destroy(CUevent event)
{
    free(event);
    return CUDA_SUCCESS;
}

static CUresult record(CUevent event, CUstream stream)
{
    (void)stream;
    const uint64_t end = __atomic_load_n(&end_ns, __ATOMIC_RELAXED), now = vgw_now_ns();
    __atomic_store_n((uint64_t *)(void *)event, end > now ? end : now, __ATOMIC_RELAXED);
    return CUDA_SUCCESS;
}

static CUresult query(CUevent event)
{
    return __atomic_load_n((uint64_t *)(void *)event, __ATOMIC_RELAXED) > vgw_now_ns() ? CUDA_ERROR_NOT_READY
                                                                                       : CUDA_SUCCESS;
}

static CUresult elapsed(float *ms, CUevent from, CUevent to)
{
    const int64_t begin = (int64_t) * (uint64_t *)(void *)from, end = (int64_t) * (uint64_t *)(void *)to;
    *ms = (float)(end - begin) / 1e6f;
    return CUDA_SUCCESS;
}

static CUresult is_dry(CUstream stream)
{
    (void)stream;
    return __atomic_load_n(&end_ns, __ATOMIC_RELAXED) > vgw_now_ns() ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

static void *work(void *number)
{
    for (int round = 0; round < ROUNDS; round++) {
        struct vgw_launch launch = {.context = (CUcontext)8, .stream = number, .key = 5, .limited = true};
        while (!vgw_measure_room(0))
            sched_yield();
        launch.tokens = vgw_bucket_tokens(0, vgw_measure_estimate(launch.key));
        launch.limited = vgw_measure_begin(&launch);
        const uint64_t now = vgw_now_ns();
        uint64_t end = __atomic_load_n(&end_ns, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n(&end_ns, &end, (end > now ? end : now) + KERNEL_NS, false, __ATOMIC_RELAXED,
                                            __ATOMIC_RELAXED))
            continue;
        if (launch.limited)
            vgw_measure_end(&launch, CUDA_SUCCESS);
    }
    return NULL;
}

static void batches(void)
{
    pthread_t threads[THREADS];
    vgw_driver = (struct vgw_driver){.cuEventCreate = create,
                                     .cuEventDestroy_v2 = destroy,
                                     .cuEventRecord = record,
                                     .cuEventQuery = query,
                                     .cuEventElapsedTime = elapsed,
                                     .cuStreamQuery = is_dry};
    for (uintptr_t at = 0; at < THREADS; at++)
        pthread_create(&threads[at], NULL, work, (void *)(at + 1));
    for (unsigned at = 0; at < THREADS; at++)
        pthread_join(threads[at], NULL);
    for (uintptr_t at = 0; at < THREADS; at++)
        vgw_measure_stream_ends((CUstream)(void *)(at + 1)); /* closes the batch that was left open */
    while (vgw_measure_under_way(0)) {
        vgw_measure_room(0);
        usleep(1000);
    }
    if (vgw_usage->gpus[0].launches != THREADS * ROUNDS)
        expect("launches", vgw_usage->gpus[0].launches * MS, THREADS * ROUNDS * MS);
}

int main(int count, char **words)
{
    struct vgw_share *neighbour = count == 2 ? map_neighbour(words[1]) : NULL;
    if (neighbour == NULL || !vgw_region_ready())
        return 1;
    whose(neighbour);
    told();
    batches();
    puts("ok");
    return 0;
}

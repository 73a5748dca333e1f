/* vgs_clock.c - who gets the GPU when: processes that have kernels queued share it in equal, infinitely short time slices.
 *
 * Each GPU has a virtual clock that runs at 1/n of real time while n processes have work, and stands still while none has. A
 * process's kernel that begins at virtual time v ends at v + its duration, whatever the others do meanwhile: that is known when it
 * is launched. When this is in real time depends on who else comes, and is worked out by running the clock forward.
 *
 * The clock is one pair of words that is swapped whole, so that a process that is stopped or killed anywhere in here leaves it in
 * order. What has passed is kept as points (real, virtual) between which the clock ran evenly. */
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>

#include "vgs_region.h"
#include "vgw_swap16.h"

#define COARSE_SHIFT 20       /* of nanoseconds: one point a millisecond */
#define CHECK_NS     5000000u /* how often the others' lives are looked at, and a sleeper's guess made anew */
#define SPIN_NS      60000u   /* what the kernel may oversleep */
#define NO_POINT     UINT64_MAX
#define WRITERS      8u /* that may be interrupted at once while they write a point */

static pthread_mutex_t launching = PTHREAD_MUTEX_INITIALIZER; /* this process's threads queue one at a time */

uint64_t vgs_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void vgs_sleep_until(uint64_t ns)
{
    struct timespec until = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    while (vgs_now_ns() < ns)
        if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0)
            continue; /* a signal: the wait goes on */
}

static uint64_t load(const uint64_t *at)
{
    return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

/* Both words as they were together: virtual_ns never changes without real_ns. */
static struct vgs_instant read_pair(const struct vgs_instant *at)
{
    struct vgs_instant seen;
    do {
        seen.real_ns = load(&at->real_ns);
        seen.virtual_ns = load(&at->virtual_ns);
    } while (load(&at->real_ns) != seen.real_ns);
    return seen;
}

static void write_point(struct vgs_instant *at, struct vgs_instant point)
{
    __atomic_store_n(&at->virtual_ns, NO_POINT, __ATOMIC_RELEASE); /* half written is no point */
    __atomic_store_n(&at->real_ns, point.real_ns, __ATOMIC_RELEASE);
    __atomic_store_n(&at->virtual_ns, point.virtual_ns, __ATOMIC_RELEASE);
}

static void remember(uint32_t gpu, struct vgs_instant point)
{
    struct vgs_past *past = &vgs_state->past[gpu];
    const uint64_t number = __atomic_fetch_add(&vgs_state->gpus[gpu].past_count, 1, __ATOMIC_RELAXED);
    write_point(&past->recent[number % VGS_PAST], point);
    struct vgs_instant *coarse = &past->coarse[(point.real_ns >> COARSE_SHIFT) % VGS_PAST_COARSE];
    if (load(&coarse->real_ns) >> COARSE_SHIFT != point.real_ns >> COARSE_SHIFT)
        write_point(coarse, point);
}

/* How many processes have work beyond virtual time `now`, and in *next when the first of them has none left. */
static uint64_t active(uint32_t gpu, uint64_t now, uint64_t *next)
{
    uint64_t count = 0;
    const uint32_t high = __atomic_load_n(&vgs_state->slot_high, __ATOMIC_ACQUIRE);
    *next = UINT64_MAX;
    for (uint32_t slot = 0; slot < high && slot < VGS_MAX_SLOTS; slot++) {
        const uint64_t end = load(&vgs_state->slots[slot].gpus[gpu].end_virtual_ns);
        count += end > now;
        if (end > now && end < *next)
            *next = end;
    }
    return count;
}

/* Runs the clock until real time `until_ns`, or until virtual time `goal_ns` if that comes first. */
static struct vgs_instant run(uint32_t gpu, struct vgs_instant clock, uint64_t until_ns, uint64_t goal_ns, bool note)
{
    while (clock.real_ns < until_ns && clock.virtual_ns < goal_ns) {
        uint64_t next;
        const uint64_t count = active(gpu, clock.virtual_ns, &next);
        if (count == 0) {
            clock.real_ns = until_ns;
            break;
        }
        if (next > goal_ns)
            next = goal_ns;
        const uint64_t step = next - clock.virtual_ns, room = (until_ns - clock.real_ns) / count;
        const uint64_t moved = step < room ? step : room;
        clock.virtual_ns += moved; /* what is left of `room` stays in real time, so that nothing is lost by rounding */
        clock.real_ns += moved * count;
        if (moved < step)
            break;
        if (note)
            remember(gpu, clock);
    }
    return clock;
}

static struct vgs_instant clock_now(uint32_t gpu)
{
    return run(gpu, read_pair(&vgs_state->gpus[gpu].clock), vgs_now_ns(), UINT64_MAX, false);
}

/* Kernels of the dead do not run on. Asks the kernel about one neighbour after another, and so not often. */
static void look_for_dead(uint32_t gpu, uint64_t now)
{
    static uint64_t looked_ns;
    if (now - __atomic_load_n(&looked_ns, __ATOMIC_RELAXED) < CHECK_NS)
        return;
    __atomic_store_n(&looked_ns, now, __ATOMIC_RELAXED);
    const uint64_t clock = load(&vgs_state->gpus[gpu].clock.virtual_ns);
    const uint32_t high = __atomic_load_n(&vgs_state->slot_high, __ATOMIC_ACQUIRE);
    for (uint32_t slot = 0; slot < high && slot < VGS_MAX_SLOTS; slot++)
        if (load(&vgs_state->slots[slot].gpus[gpu].end_virtual_ns) > clock && !vgs_slot_lives(slot))
            vgs_clock_drop(gpu, slot);
}

/* Moves the shared clock to now. */
static struct vgs_instant advance(uint32_t gpu, uint64_t now)
{
    struct vgs_instant *shared = &vgs_state->gpus[gpu].clock, old, moved;
    look_for_dead(gpu, now);
    do {
        old = read_pair(shared);
        moved = run(gpu, old, now, UINT64_MAX, true);
    } while (moved.real_ns > old.real_ns && !vgw_swap16(&shared->real_ns, (uint64_t[2]){old.real_ns, old.virtual_ns},
                                                        (uint64_t[2]){moved.real_ns, moved.virtual_ns}));
    return moved;
}

uint64_t vgs_occupy(uint32_t gpu, uint64_t duration_ns)
{
    struct vgs_slot_gpu *own = &vgs_state->slots[vgs_slot].gpus[gpu];
    pthread_mutex_lock(&launching);
    const struct vgs_instant clock = advance(gpu, vgs_now_ns());
    uint64_t end = load(&own->end_virtual_ns);
    if (end <= clock.virtual_ns) { /* one more has work from now on: the clock's speed changes */
        remember(gpu, clock);
        end = clock.virtual_ns;
    }
    end += duration_ns;
    __atomic_fetch_add(&vgs_state->gpus[gpu].busy_ns, duration_ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&own->busy_ns, duration_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&own->end_virtual_ns, end, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&launching);
    return end;
}

void vgs_clock_drop(uint32_t gpu, uint32_t slot)
{
    uint64_t *end = &vgs_state->slots[slot].gpus[gpu].end_virtual_ns, seen = load(end);
    const uint64_t clock = clock_now(gpu).virtual_ns;
    /* the swap decides who of several takes the rest off */
    if (seen > clock && __atomic_compare_exchange_n(end, &seen, clock, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        __atomic_fetch_sub(&vgs_state->gpus[gpu].busy_ns, seen - clock, __ATOMIC_RELAXED);
}

void vgs_clock_forked(void)
{
    pthread_mutex_init(&launching, NULL); /* another thread of the parent may have held it */
}

bool vgs_done(uint32_t gpu, uint64_t virtual_ns)
{
    return virtual_ns <= load(&vgs_state->gpus[gpu].clock.virtual_ns) || virtual_ns <= clock_now(gpu).virtual_ns;
}

struct span { /* the wanted moment lies after `before` and not after `at` */
    struct vgs_instant before, at;
};

/* Whether a place of the ring still has the point of a round before: who has taken its number was interrupted before it wrote.
 * Then some that are older by number are newer. */
static bool left_over(const struct vgs_instant *points, uint64_t number, uint64_t count, uint64_t real_ns)
{
    for (uint64_t back = 1; back <= WRITERS && back <= number; back++) {
        const struct vgs_instant older = read_pair(&points[(number - back) % count]);
        if (older.virtual_ns != NO_POINT && older.real_ns > real_ns)
            return true;
    }
    return false;
}

/* Narrows the span by points of the past, newest first, until one lies before it. */
static bool narrow(struct span *span, const struct vgs_instant *points, uint64_t newest, uint64_t count,
                   uint64_t virtual_ns)
{
    for (uint64_t back = 0; back < count && back <= newest; back++) {
        const struct vgs_instant point = read_pair(&points[(newest - back) % count]);
        if (point.virtual_ns == NO_POINT || point.real_ns == 0)
            continue;
        if (point.virtual_ns >= virtual_ns) {
            if (point.real_ns < span->at.real_ns)
                span->at = point;
        } else if (point.real_ns < span->at.real_ns && !left_over(points, newest - back, count, point.real_ns)) {
            span->before = point;
            return true;
        }
    }
    return false;
}

uint64_t vgs_when(uint32_t gpu, uint64_t virtual_ns)
{
    const struct vgs_past *past = &vgs_state->past[gpu];
    const struct vgs_instant now = advance(gpu, vgs_now_ns());
    struct span span = {.at = now, .before = {0}};
    const uint64_t count = load(&vgs_state->gpus[gpu].past_count);
    if (!narrow(&span, past->recent, count - (count != 0), VGS_PAST, virtual_ns) &&
        !narrow(&span, past->coarse, now.real_ns >> COARSE_SHIFT, VGS_PAST_COARSE, virtual_ns))
        return span.at.real_ns; /* longer ago than is remembered */
    const double share =
        (double)(virtual_ns - span.before.virtual_ns) / (double)(span.at.virtual_ns - span.before.virtual_ns);
    return span.before.real_ns + (uint64_t)(share * (double)(span.at.real_ns - span.before.real_ns));
}

void vgs_wait(uint32_t gpu, uint64_t virtual_ns)
{
    for (;;) {
        const uint64_t now = vgs_now_ns();
        const struct vgs_instant clock = advance(gpu, now);
        if (clock.virtual_ns >= virtual_ns)
            return;
        uint64_t guess = run(gpu, clock, UINT64_MAX, virtual_ns, false).real_ns; /* if nobody else comes */
        if (guess > now + CHECK_NS)
            guess = now + CHECK_NS;
        if (guess > now + 2 * SPIN_NS) /* else it turns round here: a yield could cost a busy machine's whole round */
            vgs_sleep_until(guess - SPIN_NS);
    }
}

uint64_t vgs_busy(uint32_t gpu, uint32_t slot)
{
    const uint64_t clock = clock_now(gpu).virtual_ns;
    const uint32_t high = __atomic_load_n(&vgs_state->slot_high, __ATOMIC_ACQUIRE);
    const bool all = slot == VGS_MAX_SLOTS;
    uint64_t launched = load(all ? &vgs_state->gpus[gpu].busy_ns : &vgs_state->slots[slot].gpus[gpu].busy_ns);
    for (uint32_t each = all ? 0 : slot; all ? each < high && each < VGS_MAX_SLOTS : each == slot; each++) {
        const uint64_t end = load(&vgs_state->slots[each].gpus[gpu].end_virtual_ns);
        const uint64_t ahead = end > clock ? end - clock : 0;
        launched -= ahead < launched ? ahead : launched;
    }
    return launched;
}

/* ledger_model.c - the ledger's own code, with processes that are switched, or end, at every touch of shared memory.
 *
 * Each "process" is a coroutine on a slot of its own. A schedule drawn from a seed says who takes the next step and who
 * dies; the dead are recovered by a reaper that may die too. After every step no more than the limit may be in use, and
 * at the end exactly what the living think they hold.   ledger_model SEED SCHEDULES
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static void step(void);
#define VGW_STEP() step()
#include "ledger.c"

#define PROCESSES   4
#define LIMIT       1000u
#define STACK_BYTES 65536
#ifndef OPERATIONS
#define OPERATIONS 12
#endif

struct process {
    ucontext_t context;
    uint64_t held; /* what its program knows */
    unsigned slot;
    bool running, dead, reaper;
    char stack[STACK_BYTES];
};

static struct vgw_usage usage;
static struct process processes[PROCESSES];
static ucontext_t scheduler;
static struct process *current;
static uint64_t limit = LIMIT, random_state;

static unsigned draw(unsigned below)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(random_state >> 33) % below;
}

static void step(void)
{
    if (current != NULL)
        swapcontext(&current->context, &scheduler);
}

static void fail(const char *what, uint64_t seed)
{
    printf("FAIL %s: seed %llu, used %llu\n", what, (unsigned long long)seed,
           (unsigned long long)(usage.gpus[0].word >> 20));
    exit(1);
}

static void work(void)
{
    struct process *self = current;
    for (unsigned done = 0; done < OPERATIONS; done++) {
        const uint64_t bytes = draw(500);
        if (self->held != 0 && draw(2) == 0) {
            const uint64_t back = draw(4) == 0 ? self->held : draw((unsigned)self->held) + 1u;
            vgw_ledger_give(&usage, self->slot, 0, back);
            self->held -= back;
        } else if (vgw_ledger_take(&usage, self->slot, 0, bytes, &limit)) {
            self->held += bytes;
        }
    }
    self->running = false;
}

static void reap(void)
{
    struct process *self = current;
    vgw_ledger_recover(&usage, self->slot, 0);
    self->running = false;
}

static void start(struct process *process, void (*body)(void))
{
    getcontext(&process->context);
    process->context.uc_stack.ss_sp = process->stack;
    process->context.uc_stack.ss_size = STACK_BYTES;
    process->context.uc_link = &scheduler;
    process->running = true;
    makecontext(&process->context, body, 0);
}

/* Slots as they are after many operations, near where the short sequence numbers begin anew. */
static void prepare(void)
{
    static const uint64_t starts[] = {0, 1, 1022, 1023, 1024, (1u << 19) - 2, (1u << 20) - 2, (1ull << 40) + 1023};
    memset(&usage, 0, sizeof usage);
    for (unsigned slot = 0; slot < PROCESSES; slot++) {
        struct vgw_usage_slot_gpu *own = &usage.slots[slot].gpus[0];
        own->acked = starts[draw(sizeof starts / sizeof starts[0])];
        own->pending = own->acked & VGW_SEQ_PENDING;
        own->held = own->acked & VGW_SEQ_HELD;
        processes[slot].held = 0;
        processes[slot].slot = slot;
        processes[slot].dead = processes[slot].reaper = false;
        if (slot == 0)
            usage.gpus[0].word =
                own->acked & VGW_SEQ_WORD; /* the last operation was this slot's, and is acknowledged */
    }
}

/* One process takes a step, or dies instead; the dead one's slot gets a reaper. False: all have ended. */
static bool move(unsigned deaths_in_1000)
{
    unsigned alive[PROCESSES], count = 0;
    for (unsigned slot = 0; slot < PROCESSES; slot++)
        if (processes[slot].running)
            alive[count++] = slot;
    if (count == 0)
        return false;
    struct process *next = &processes[alive[draw(count)]];
    if (draw(1000) < deaths_in_1000) {
        next->dead = true;
        next->held = 0;
        start(next, reap); /* from the beginning, whatever the one before was doing */
        return true;
    }
    current = next;
    swapcontext(&scheduler, &next->context);
    current = NULL;
    return true;
}

static void schedule(uint64_t seed)
{
    random_state = seed * 0x9E3779B97F4A7C15ull + 1;
    prepare();
    for (unsigned slot = 0; slot < PROCESSES; slot++)
        start(&processes[slot], work);
    const unsigned deaths = draw(3) == 0 ? 0 : draw(30);
    unsigned moves = 0;
    while (move(moves++ < 3000 ? deaths : 0))
        if (usage.gpus[0].word >> 20 > LIMIT)
            fail("more in use than the limit", seed);
    uint64_t held = 0;
    for (unsigned slot = 0; slot < PROCESSES; slot++) {
        held += processes[slot].held;
        if (vgw_ledger_held(&usage, slot, 0) != processes[slot].held)
            fail("a slot holds something else than its process", seed);
    }
    if (usage.gpus[0].word >> 20 != held)
        fail("in use is not what the living hold", seed);
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    const uint64_t first = strtoull(arguments[1], NULL, 10), schedules = strtoull(arguments[2], NULL, 10);
    for (uint64_t seed = first; seed < first + schedules; seed++)
        schedule(seed);
    printf("ok %llu\n", (unsigned long long)schedules);
    return 0;
}

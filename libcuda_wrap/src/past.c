/* past.c - who had work on a GPU when: the cells of include/vgw_share.h, written for the neighbours and read from them.
 *
 * A GPU gives processes that have work equal slices of its time, so of a moment at which n have some, this one has an n-th.
 * What neighbours tell is not believed beyond their share: docs/compute-share.md, "Who had the GPU". */
#include "vgw_past.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "vgw_bucket.h"
#include "vgw_neighbours.h"
#include "vgw_region.h"

#define CELL_NS (UINT64_C(1) << VGW_CELL_SHIFT)
#define AHEAD   4096u /* cells that may be told of the future; the others are the past */
#define COLUMNS 256u  /* into which a stretch is divided */
#define SEEN    32u   /* neighbours at once; of more, the others are as if they told nothing */
#define KNOWN   64u
#define MOST                                                                                                           \
    31.0 /* processes beside us at once: else a lie would make a launch cost nothing, and no queue would be too long */
#define SAVED_NS 1000000000.0 /* of its share that a neighbour may have used less before, and more now */
#define SMALL_NS (CELL_NS / 8)

static struct {
    uint64_t cells[VGW_CELLS]; /* of this process alone */
    uint64_t until_ns;         /* told */
} ours[VGW_MAX_GPUS];

static struct allowance { /* how much of our time may be a neighbour's */
    unsigned long inode;
    unsigned gpu;
    uint64_t since_ns;
    double ns;
} known[KNOWN];

static struct stretch {
    uint64_t first, count; /* cells */
    unsigned shift;        /* cells in a column: a power of two */
    bool all_seen;
    unsigned own_number; /* of the GPU, in the share file that is read */
    unsigned others;
    struct {
        unsigned long inode; /* 0: the other processes of our own container */
        unsigned percent;
        uint64_t ns[COLUMNS];
    } other[SEEN];
    uint64_t cells[VGW_CELLS]; /* as read */
} stretch;

static pthread_mutex_t lock =
    PTHREAD_MUTEX_INITIALIZER; /* known, stretch; nothing is called under it but reads of files */

/* Returns what was added, or with a negative number taken away: there may have been less. */
static int64_t add(uint64_t *cell, uint64_t number, int64_t ns)
{
    uint64_t seen = __atomic_load_n(cell, __ATOMIC_RELAXED);
    int64_t had, then;
    do {
        const uint32_t ahead = (uint32_t)(seen >> 32) - (uint32_t)number;
        if (ahead != 0 && ahead < 2 * VGW_CELLS)
            return 0; /* so long ago that its place has another */
        had = ahead == 0 ? (int64_t)(uint32_t)seen : 0;
        then = had + ns < 0 ? 0 : had + ns > UINT32_MAX ? UINT32_MAX : had + ns;
    } while (!__atomic_compare_exchange_n(cell, &seen, number << 32 | (uint64_t)then, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return then - had;
}

/* own: cells of this process; NULL: it is for another, who is dead. */
static void tell_cells(unsigned gpu, uint64_t from, uint64_t to, int sign, uint64_t *own)
{
    if (from + (VGW_CELLS - AHEAD) * CELL_NS < to)
        from = to - (VGW_CELLS - AHEAD) * CELL_NS;
    while (from < to) {
        const uint64_t number = from >> VGW_CELL_SHIFT, end = (number + 1) << VGW_CELL_SHIFT;
        const int64_t ns = (int64_t)((to < end ? to : end) - from);
        const int64_t done = own == NULL ? sign * ns : add(&own[number % VGW_CELLS], number, sign * ns);
        add(&vgw_share->past[gpu].cells[number % VGW_CELLS], number, done);
        from = end;
    }
}

static void tell(unsigned gpu, uint64_t from, uint64_t to, int sign)
{
    tell_cells(gpu, from, to, sign, ours[gpu].cells);
}

static void remember(unsigned gpu, uint64_t until_ns)
{
    const int slot = vgw_own_slot();
    ours[gpu].until_ns = until_ns;
    if (slot >= 0)
        __atomic_store_n(&vgw_share->past[gpu].until_ns[slot], until_ns, __ATOMIC_RELAXED);
}

void vgw_past_work(unsigned gpu, uint64_t from_ns, uint64_t until_ns)
{
    uint64_t *told = &ours[gpu].until_ns;
    const uint64_t last = vgw_now_ns() + (AHEAD - 1) * CELL_NS;
    if (until_ns > last)
        until_ns = last;
    if (from_ns < *told)
        from_ns = *told;
    if (vgw_share == NULL || until_ns < from_ns + SMALL_NS)
        return;
    tell(gpu, from_ns, until_ns, 1);
    remember(gpu, until_ns);
}

void vgw_past_done(unsigned gpu, uint64_t from_ns, uint64_t end_ns)
{
    uint64_t *told = &ours[gpu].until_ns;
    if (vgw_share == NULL)
        return;
    if (end_ns < *told)
        tell(gpu, end_ns, *told, -1);
    else
        tell(gpu, from_ns > *told ? from_ns : *told, end_ns, 1);
    remember(gpu, end_ns);
}

void vgw_past_recover(unsigned slot)
{
    const uint64_t now = vgw_now_ns();
    for (unsigned gpu = 0; gpu < vgw_quota->gpu_count && vgw_share != NULL; gpu++) {
        const uint64_t until = __atomic_exchange_n(&vgw_share->past[gpu].until_ns[slot], 0, __ATOMIC_RELAXED);
        const uint64_t most = now + AHEAD * CELL_NS;
        tell_cells(gpu, now, until < most ? until : most, -1, NULL);
    }
}

/* The cells as columns of the last in `stretch`; minus: cells to take off, or NULL. */
static void add_columns(const uint64_t *cells, const uint64_t *minus, uint64_t *columns)
{
    memset(columns, 0, COLUMNS * sizeof *columns);
    for (uint64_t at = 0; at < stretch.count; at++) {
        const uint64_t number = stretch.first + at;
        const uint64_t cell = __atomic_load_n(&cells[number % VGW_CELLS], __ATOMIC_RELAXED);
        const uint64_t less = minus == NULL ? 0 : __atomic_load_n(&minus[number % VGW_CELLS], __ATOMIC_RELAXED);
        const uint64_t ns = (uint32_t)(cell >> 32) == (uint32_t)number ? (uint32_t)cell : 0;
        const uint64_t off = (uint32_t)(less >> 32) == (uint32_t)number ? (uint32_t)less : 0;
        columns[at >> stretch.shift] += ns > off ? ns - off : 0;
    }
}

/* Those of the stretch, to their places in `stretch`. */
static bool read_cells(int fd, unsigned number)
{
    const uint64_t at = stretch.first % VGW_CELLS;
    const uint64_t here = stretch.count < VGW_CELLS - at ? stretch.count : VGW_CELLS - at, more = stretch.count - here;
    const off_t base = (off_t)(sizeof vgw_share->gpus + number * sizeof *vgw_share->past);
    const size_t size = sizeof *stretch.cells;
    return pread(fd, &stretch.cells[at], here * size, base + (off_t)(at * size)) == (ssize_t)(here * size) &&
           pread(fd, stretch.cells, more * size, base) == (ssize_t)(more * size);
}

static void visit(void *own_percent, const struct vgw_neighbour *neighbour, int fd)
{
    if (neighbour->cores < 1 || neighbour->cores >= 100 || stretch.others == SEEN ||
        !read_cells(fd, neighbour->number)) {
        stretch.all_seen = false; /* without a limit it tells nothing */
        return;
    }
    const unsigned rest = 100 - *(const unsigned *)own_percent;
    stretch.other[stretch.others].inode = neighbour->inode;
    stretch.other[stretch.others].percent = neighbour->class > 0 && neighbour->cores < rest ? rest : neighbour->cores;
    add_columns(stretch.cells, NULL, stretch.other[stretch.others++].ns);
}

static bool look(unsigned gpu, uint64_t from_ns, uint64_t to_ns)
{
    unsigned own_percent = vgw_bucket_share(gpu);
    stretch.first = from_ns >> VGW_CELL_SHIFT;
    stretch.count = (to_ns >> VGW_CELL_SHIFT) - stretch.first + 1;
    for (stretch.shift = 0; stretch.count > COLUMNS << stretch.shift;)
        stretch.shift++;
    stretch.all_seen = true;
    stretch.others = 1;
    stretch.other[0].inode = 0;
    add_columns(vgw_share->past[gpu].cells, ours[gpu].cells, stretch.other[0].ns);
    return vgw_each_neighbour(gpu, visit, &own_percent) && stretch.all_seen;
}

static struct allowance *allowance_of(unsigned gpu, unsigned long inode, unsigned percent, uint64_t now)
{
    struct allowance *oldest = &known[0];
    for (unsigned at = 0; at < KNOWN; at++) {
        struct allowance *each = &known[at];
        if (each->inode == inode && each->gpu == gpu) {
            each->ns += (double)(now - each->since_ns) * percent / 100;
            each->ns = each->ns < SAVED_NS ? each->ns : SAVED_NS;
            each->since_ns = now;
            return each;
        }
        if (each->since_ns < oldest->since_ns)
            oldest = each;
    }
    *oldest = (struct allowance){inode, gpu, now, SAVED_NS};
    return oldest;
}

/* Of a moment at which on average `others` processes had work beside us: our part. */
static double part_beside(double others)
{
    const double believed = others < MOST ? others : MOST;
    const double whole = (double)(uint64_t)believed, more = believed - whole; /* `more` of the time one more */
    return (1 - more) / (1 + whole) + more / (2 + whole);
}

/* What the stretch's others had of it goes off, as far as each may have had so much. */
static double own_part(unsigned gpu, uint64_t from_ns, uint64_t to_ns)
{
    double had[SEEN] = {0}, own = 0;
    const uint64_t width = CELL_NS << stretch.shift;
    for (uint64_t column = 0, begin = stretch.first << VGW_CELL_SHIFT; begin < to_ns; column++, begin += width) {
        const uint64_t end = begin + width, from = begin > from_ns ? begin : from_ns, to = end < to_ns ? end : to_ns;
        double others = 0;
        for (unsigned at = 0; at < stretch.others; at++)
            others += (double)stretch.other[at].ns[column] / (double)width;
        const double part = part_beside(others), lost = (double)(to - from) * (1 - part);
        own += (double)(to - from) * part;
        for (unsigned at = 0; at < stretch.others && others > 0; at++)
            had[at] += lost * (double)stretch.other[at].ns[column] / (double)width / others;
    }
    for (unsigned at = 1; at < stretch.others; at++) {
        struct allowance *may = allowance_of(gpu, stretch.other[at].inode, stretch.other[at].percent, vgw_now_ns());
        const double its = had[at] < may->ns ? had[at] : may->ns;
        own += had[at] - its;
        may->ns -= its;
    }
    return own;
}

struct vgw_own vgw_past_own(unsigned gpu, uint64_t from_ns, uint64_t to_ns)
{
    struct vgw_own own = {to_ns - from_ns, false};
    const uint64_t longest = (VGW_CELLS - AHEAD - 1) * CELL_NS;
    const uint64_t told_ns = to_ns - from_ns > longest ? to_ns - longest : from_ns;
    if (vgw_share == NULL || from_ns >= to_ns)
        return own;
    const int error = errno;
    pthread_mutex_lock(&lock);
    own.all_seen = look(gpu, told_ns, to_ns);
    if (own.all_seen)
        own.ns = told_ns - from_ns + (uint64_t)own_part(gpu, told_ns, to_ns);
    pthread_mutex_unlock(&lock);
    errno = error;
    return own;
}

void vgw_past_forked(void)
{
    pthread_mutex_init(&lock, NULL);
    memset(ours, 0, sizeof ours);
}

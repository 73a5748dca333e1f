/* table.c - the striped hash of vgw_table.h: open addressing, linear probing, deletion by moving the followers up. */
#include "vgw_table.h"

#include <pthread.h>
#include <stdlib.h>

#define STRIPES     64u
#define FIRST_SLOTS 64u

struct stripe {
    pthread_mutex_t lock;
    uint64_t slots; /* a power of two, or 0 */
    uint64_t used;
    struct vgw_entry *entries;
} __attribute__((aligned(64)));

static struct stripe stripes[STRIPES] = {[0 ... STRIPES - 1] = {.lock = PTHREAD_MUTEX_INITIALIZER}};

static uint64_t hash_of(enum vgw_kind kind, uint64_t key)
{
    uint64_t hash = (key ^ (uint64_t)kind << 56) * 0x9E3779B97F4A7C15ull;
    return hash ^ hash >> 29;
}

static struct stripe *lock(uint64_t hash)
{
    struct stripe *stripe = &stripes[hash >> 58];
    pthread_mutex_lock(&stripe->lock);
    return stripe;
}

static void unlock(struct stripe *stripe)
{
    pthread_mutex_unlock(&stripe->lock);
}

/* Where the entry is, or the free slot where it belongs. The stripe is never full. */
static struct vgw_entry *find(const struct stripe *stripe, enum vgw_kind kind, uint64_t key)
{
    if (stripe->slots == 0)
        return NULL;
    uint64_t at = hash_of(kind, key) & (stripe->slots - 1);
    while (stripe->entries[at].kind != VGW_NOTHING &&
           (stripe->entries[at].kind != kind || stripe->entries[at].key != key))
        at = (at + 1) & (stripe->slots - 1);
    return &stripe->entries[at];
}

static bool grow(struct stripe *stripe)
{
    struct stripe larger = {.slots = stripe->slots == 0 ? FIRST_SLOTS : 2 * stripe->slots};
    larger.entries = calloc(larger.slots, sizeof *larger.entries);
    if (larger.entries == NULL)
        return false;
    for (uint64_t at = 0; at < stripe->slots; at++)
        if (stripe->entries[at].kind != VGW_NOTHING)
            *find(&larger, stripe->entries[at].kind, stripe->entries[at].key) = stripe->entries[at];
    free(stripe->entries);
    stripe->entries = larger.entries;
    stripe->slots = larger.slots;
    return true;
}

static void erase(struct stripe *stripe, struct vgw_entry *entry)
{
    const uint64_t mask = stripe->slots - 1;
    uint64_t hole = (uint64_t)(entry - stripe->entries);
    for (uint64_t at = (hole + 1) & mask; stripe->entries[at].kind != VGW_NOTHING; at = (at + 1) & mask) {
        const uint64_t home = hash_of(stripe->entries[at].kind, stripe->entries[at].key) & mask;
        if (((at - home) & mask) >= ((at - hole) & mask)) { /* the hole is on its way from home to here */
            stripe->entries[hole] = stripe->entries[at];
            hole = at;
        }
    }
    stripe->entries[hole] = (struct vgw_entry){0};
    stripe->used--;
}

bool vgw_table_put(const struct vgw_entry *entry, struct vgw_entry *old)
{
    struct stripe *stripe = lock(hash_of(entry->kind, entry->key));
    const bool room = 4 * (stripe->used + 1) <= 3 * stripe->slots || grow(stripe);
    if (room) {
        struct vgw_entry *at = find(stripe, entry->kind, entry->key);
        *old = *at;
        stripe->used += at->kind == VGW_NOTHING;
        *at = *entry;
    }
    unlock(stripe);
    return room;
}

bool vgw_table_get(enum vgw_kind kind, uint64_t key, struct vgw_entry *found)
{
    struct stripe *stripe = lock(hash_of(kind, key));
    const struct vgw_entry *at = find(stripe, kind, key);
    const bool is = at != NULL && at->kind != VGW_NOTHING;
    if (is)
        *found = *at;
    unlock(stripe);
    return is;
}

bool vgw_table_take(enum vgw_kind kind, uint64_t key, struct vgw_entry *found)
{
    struct stripe *stripe = lock(hash_of(kind, key));
    struct vgw_entry *at = find(stripe, kind, key);
    const bool is = at != NULL && at->kind != VGW_NOTHING;
    if (is) {
        *found = *at;
        erase(stripe, at);
    }
    unlock(stripe);
    return is;
}

bool vgw_table_count(enum vgw_kind kind, uint64_t key, int by, struct vgw_entry *found)
{
    struct stripe *stripe = lock(hash_of(kind, key));
    struct vgw_entry *at = find(stripe, kind, key);
    const bool is = at != NULL && at->kind != VGW_NOTHING;
    if (is) {
        at->count += (uint32_t)by;
        *found = *at;
        if (at->count == 0)
            erase(stripe, at);
    }
    unlock(stripe);
    return is;
}

static bool belongs(const struct vgw_entry *entry, uint64_t link)
{
    const bool of_a_context = entry->kind == VGW_POINTER || entry->kind == VGW_ARRAY || entry->kind >= VGW_GREEN;
    return of_a_context && entry->link == link;
}

void vgw_table_relink(uint64_t from, uint64_t to)
{
    for (struct stripe *stripe = stripes; stripe < stripes + STRIPES; stripe++) {
        pthread_mutex_lock(&stripe->lock);
        for (uint64_t at = 0; at < stripe->slots; at++)
            if (belongs(&stripe->entries[at], from))
                stripe->entries[at].link = to;
        unlock(stripe);
    }
}

void vgw_table_drop(uint64_t link, uint64_t *bytes)
{
    for (struct stripe *stripe = stripes; stripe < stripes + STRIPES; stripe++) {
        pthread_mutex_lock(&stripe->lock);
        for (uint64_t at = 0; at < stripe->slots;) {
            struct vgw_entry *entry = &stripe->entries[at];
            if (!belongs(entry, link)) {
                at++;
                continue;
            }
            bytes[entry->gpu] += entry->bytes;
            erase(stripe, entry); /* another may be here now */
        }
        unlock(stripe);
    }
}

/* Another thread of the parent may have been inside: the entries are left alone, not freed. */
void vgw_table_forked(void)
{
    for (struct stripe *stripe = stripes; stripe < stripes + STRIPES; stripe++) {
        pthread_mutex_init(&stripe->lock, NULL);
        stripe->entries = NULL;
        stripe->slots = stripe->used = 0;
    }
}

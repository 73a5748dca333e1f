/* vgs_arena.c - addresses for device memory. One huge mapping is reserved; a page of it exists once it is touched, so 80 GiB cost nothing.
 *
 * The arena is cut into chunks. A chunk either holds equal blocks of one size class, or belongs to a run of chunks that is one large
 * block. Classes are a quarter of a power of two apart. Freed blocks and runs wait in their class's list: taking and giving is O(1), and
 * the block of any address inside it is found by two divisions. What is wasted is addresses, of which there are enough.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "vgs_driver.h"

#ifndef VGS_ARENA_BYTES
#define VGS_ARENA_BYTES (1ull << 44) /* less where a mapping that is never touched costs something: emulators */
#endif
#define ARENA_BYTES (VGS_ARENA_BYTES)
#define CHUNK_BYTES (1ull << 26)
#define CHUNKS      (ARENA_BYTES / CHUNK_BYTES)
#define SMALLEST    512u
#define CLASSES     160u /* 512 bytes to 16 TiB, four a doubling */
#define NONE        UINT32_MAX

struct chunk {
    struct vgs_block *blocks; /* of a small class: CHUNK_BYTES / block_bytes; of a run's first chunk: one */
    uint64_t block_bytes;     /* class size; of a run's first chunk: all of it; 0: inside a run */
    uint32_t back;            /* inside a run: chunks to its first */
    uint32_t used;            /* blocks handed out so far, those given back included */
    uint32_t class;
};

static char *arena;
static struct chunk *chunks; /* CHUNKS, in a mapping of its own: most are never touched */
static uint64_t next_chunk;
static struct {
    uint32_t chunk;                  /* small classes: being filled */
    uint32_t free_chunk, free_block; /* first of the list */
} classes[CLASSES];
static pthread_mutex_t arena_lock = PTHREAD_MUTEX_INITIALIZER;

static void *reserve(size_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return map == MAP_FAILED ? NULL : map;
}

bool vgs_arena_open(void)
{
    if (arena)
        return true;
    char *map = reserve(ARENA_BYTES + CHUNK_BYTES);
    chunks = map ? reserve(CHUNKS * sizeof *chunks) : NULL;
    if (!chunks)
        return false;
    madvise(map, ARENA_BYTES + CHUNK_BYTES, MADV_DONTDUMP);
    arena = (char *)(((uintptr_t)map + CHUNK_BYTES - 1) & ~(uintptr_t)(CHUNK_BYTES - 1));
    for (uint32_t i = 0; i < CLASSES; i++)
        classes[i].chunk = classes[i].free_chunk = classes[i].free_block = NONE;
    return true;
}

static uint64_t class_bytes(uint32_t class)
{
    return ((uint64_t)SMALLEST << (class / 4)) / 4 * (4 + class % 4);
}

static uint32_t class_of(uint64_t size)
{
    if (size <= SMALLEST)
        return 0;
    uint32_t doubling = 63 - (uint32_t)__builtin_clzll((size - 1) / SMALLEST | 1);
    uint32_t class = doubling * 4;
    while (class_bytes(class) < size)
        class ++;
    return class;
}

static struct vgs_block *block_at(uint32_t chunk, uint32_t index, CUdeviceptr *base)
{
    *base = (CUdeviceptr)(uintptr_t)(arena + chunk * CHUNK_BYTES + index * chunks[chunk].block_bytes);
    return &chunks[chunk].blocks[index];
}

static bool grow(uint32_t class, uint32_t *chunk, uint64_t bytes)
{
    uint64_t run = bytes <= CHUNK_BYTES ? 1 : (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
    uint64_t blocks = bytes <= CHUNK_BYTES ? CHUNK_BYTES / bytes : 1;
    if (next_chunk + run > CHUNKS)
        return false;
    struct vgs_block *records = reserve(blocks * sizeof *records);
    if (!records)
        return false;
    *chunk = (uint32_t)next_chunk;
    for (uint32_t i = 1; i < run; i++)
        chunks[*chunk + i] = (struct chunk){.back = i};
    chunks[*chunk] =
        (struct chunk){.blocks = records, .block_bytes = blocks == 1 ? run * CHUNK_BYTES : bytes, .class = class};
    next_chunk += run;
    return true;
}

static CUdeviceptr take(uint32_t class, const struct vgs_block *like)
{
    uint32_t chunk = classes[class].free_chunk, index = classes[class].free_block;
    CUdeviceptr base;
    struct vgs_block *block;
    if (chunk != NONE) {
        block = block_at(chunk, index, &base);
        /* the list's next is a chunk and a block: the one in the block, the other in what is its id while in use */
        classes[class].free_chunk = (uint32_t)block->id;
        classes[class].free_block = block->next_free;
    } else {
        chunk = classes[class].chunk;
        uint64_t bytes = class_bytes(class);
        if (chunk == NONE || chunks[chunk].used == (bytes <= CHUNK_BYTES ? CHUNK_BYTES / bytes : 1)) {
            if (!grow(class, &chunk, bytes))
                return 0;
            classes[class].chunk = chunk;
        }
        block = block_at(chunk, chunks[chunk].used++, &base);
    }
    *block = *like;
    block->touched = 0;
    block->id = vgs_next_id();
    return base;
}

CUdeviceptr vgs_arena_take(const struct vgs_block *like)
{
    if (like->size > ARENA_BYTES / 2)
        return 0;
    pthread_mutex_lock(&arena_lock);
    CUdeviceptr base = take(class_of(like->size), like);
    pthread_mutex_unlock(&arena_lock);
    return base;
}

bool vgs_in_arena(CUdeviceptr address)
{
    uint64_t begin = (uint64_t)(uintptr_t)arena;
    return arena && address >= begin && address - begin < ARENA_BYTES;
}

static struct vgs_block *find(CUdeviceptr address, CUdeviceptr *base, uint32_t *chunk, uint32_t *index)
{
    uint64_t offset = address - (uint64_t)(uintptr_t)arena;
    *chunk = (uint32_t)(offset / CHUNK_BYTES);
    *chunk -= chunks[*chunk].back;
    if (chunks[*chunk].block_bytes == 0)
        return NULL;
    *index = (uint32_t)((offset - *chunk * CHUNK_BYTES) / chunks[*chunk].block_bytes);
    if (*index >= chunks[*chunk].used)
        return NULL;
    struct vgs_block *block = block_at(*chunk, *index, base);
    return block->kind == VGS_FREE || address - *base >= (block->size ? block->size : 1) ? NULL : block;
}

struct vgs_block *vgs_arena_find(CUdeviceptr address, CUdeviceptr *base)
{
    uint32_t chunk, index;
    /* without the lock: records never move, and who asks for an address while another frees it has lost it anyway */
    return vgs_in_arena(address) ? find(address, base, &chunk, &index) : NULL;
}

void vgs_arena_give(CUdeviceptr address)
{
    uint32_t chunk, index;
    CUdeviceptr base;
    pthread_mutex_lock(&arena_lock);
    struct vgs_block *block = find(address, &base, &chunk, &index);
    if (block) {
        /* a neighbour's half page stays; what it costs is memory that was touched and is touched again */
        uint64_t begin = (base + 4095) & ~4095ull, end = (base + block->size) & ~4095ull;
        if (block->touched && end > begin)
            madvise((void *)(uintptr_t)begin, end - begin, MADV_DONTNEED);
        uint32_t class = chunks[chunk].class;
        *block = (struct vgs_block){.id = classes[class].free_chunk, .next_free = classes[class].free_block};
        classes[class].free_chunk = chunk;
        classes[class].free_block = index;
    }
    pthread_mutex_unlock(&arena_lock);
}

void vgs_arena_each(void (*visit)(CUdeviceptr base, struct vgs_block *block, void *argument), void *argument)
{
    for (uint32_t chunk = 0; chunk < __atomic_load_n(&next_chunk, __ATOMIC_ACQUIRE); chunk++)
        for (uint32_t index = 0; index < chunks[chunk].used; index++) {
            CUdeviceptr base;
            struct vgs_block *block = block_at(chunk, index, &base);
            if (block->kind != VGS_FREE)
                visit(base, block, argument);
        }
}

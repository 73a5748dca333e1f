/* vgw_swap16.h - compare-and-swap of two neighbouring 64-bit words, 16-byte aligned, without the compilers' library for
 * it, which old images lack. */
#ifndef VGW_SWAP16_H
#define VGW_SWAP16_H

#include <stdbool.h>
#include <stdint.h>

static inline bool vgw_swap16(uint64_t *at, const uint64_t from[2], const uint64_t to[2])
{
    bool done;
#if defined(__x86_64__)
    uint64_t low = from[0], high = from[1];
    __asm__ volatile("lock cmpxchg16b %1"
                     : "=@ccz"(done), "+m"(*(volatile char(*)[16])at), "+a"(low), "+d"(high)
                     : "b"(to[0]), "c"(to[1])
                     : "memory");
#elif defined(__aarch64__)
    uint64_t low, high;
    uint32_t failed;
    do {
        __asm__ volatile("ldaxp %0, %1, %2" : "=r"(low), "=r"(high) : "Q"(*(volatile char(*)[16])at));
        done = low == from[0] && high == from[1];
        uint64_t new_low = done ? to[0] : low, new_high = done ? to[1] : high;
        __asm__ volatile("stlxp %w0, %1, %2, %3"
                         : "=&r"(failed), "+r"(new_low), "+r"(new_high), "=Q"(*(volatile char(*)[16])at)
                         :
                         : "memory");
    } while (failed != 0);
#else
#error "no 16-byte compare-and-swap known for this machine"
#endif
    return done;
}

#endif

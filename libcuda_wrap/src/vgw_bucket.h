/* vgw_bucket.h - the container's GPU time on each GPU: tokens, a nanosecond each, that its share refills. */
#ifndef VGW_BUCKET_H
#define VGW_BUCKET_H

#include <stdbool.h>
#include <stdint.h>

uint64_t vgw_now_ns(void); /* CLOCK_MONOTONIC */

/* The share in force, percent: 1 to 100. */
uint32_t vgw_bucket_share(unsigned gpu);

/* Takes `tokens` if there are any, be it only one: what is missing is debt. 0: done. Else after how many nanoseconds
 * there will be one, if nobody else takes it. */
uint64_t vgw_bucket_take(unsigned gpu, uint64_t tokens, uint32_t share);

/* Whether idle time of neighbours may be used, live. */
bool vgw_bucket_soft(unsigned gpu);

/* Adds what neighbours leave idle, if it may be used. false: nothing. */
bool vgw_bucket_borrow(unsigned gpu);

/* Takes more, or with a negative number gives back, without asking. */
void vgw_bucket_correct(unsigned gpu, int64_t tokens);

/* GPU time as measured -> tokens: what the host has found out about the measuring is applied. */
uint64_t vgw_bucket_tokens(unsigned gpu, uint64_t gpu_ns);

/* Writes down for whoever finds this process dead what it has taken and not measured. since_ns: of the oldest launch. */
void vgw_bucket_owe(unsigned gpu, uint64_t tokens, uint64_t since_ns);

/* A dead slot's tokens go back, less what may have run. The caller has the slot's lock. */
void vgw_bucket_recover(unsigned slot);

/* Statistics of the usage file. */
void vgw_bucket_waited(unsigned gpu, uint64_t ns);
void vgw_bucket_used(unsigned gpu, uint64_t gpu_ns, uint64_t launches);

#endif

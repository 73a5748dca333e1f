/* cost.c - the estimate of a kernel's own time.
 *
 * What is measured is the time between two events, in which the GPU may have worked for others too: it is never too short,
 * only too long. So the estimate is the shortest measurement of the last two windows: between neighbours that leave no
 * pause one in many is undisturbed, and a kernel that has really become slower is known when two windows are over. One that
 * has become much slower is believed at once: else a single run that had nothing to do would make the next free. */
#include "vgw_cost.h"

#include <string.h>

#define COSTS  4096u /* a power of two */
#define PROBES 8u

#define WINDOW_NS      2000000000u /* at least, and so many samples, if they come before LONGEST_NS */
#define WINDOW_SAMPLES 1000u
#define LONGEST_NS     8000000000u
#define MUCH           16u /* times as long: more neighbours at once are not likely */

static struct vgw_cost costs[COSTS];

struct vgw_cost *vgw_cost_of(uint64_t key)
{
    const uint64_t home = (key * 0x9e3779b97f4a7c15u) >> 52;
    for (uint64_t probe = 0; probe < PROBES; probe++) {
        struct vgw_cost *cost = &costs[(home + probe) % COSTS];
        if (cost->key == key)
            return cost;
        if (cost->key == 0) {
            cost->key = key;
            return cost;
        }
    }
    struct vgw_cost *cost = &costs[home % COSTS]; /* more kernels than room: one of them is learned anew */
    *cost = (struct vgw_cost){.key = key};
    return cost;
}

void vgw_cost_learn(struct vgw_cost *cost, uint64_t ns, bool own, uint64_t now_ns)
{
    if (cost->samples++ == 0 || ns > MUCH * (cost->ns + 1)) {
        cost->ns = cost->samples == 1 ? ns : cost->ns + (ns - cost->ns) / 2;
        cost->lowest_ns = cost->ns;
        cost->window_ns = now_ns;
        cost->in_window = 0;
        return;
    }
    if (own)
        cost->ns = (7 * cost->ns + ns) / 8;
    if (ns < cost->lowest_ns)
        cost->lowest_ns = ns;
    if (!own && ns < cost->ns)
        cost->ns = ns;
    const uint64_t passed = now_ns - cost->window_ns;
    cost->in_window++;
    if (passed < WINDOW_NS || (cost->in_window < WINDOW_SAMPLES && passed < LONGEST_NS))
        return;
    if (!own)
        cost->ns = cost->lowest_ns;
    cost->lowest_ns = UINT64_MAX;
    cost->window_ns = now_ns;
    cost->in_window = 0;
}

void vgw_cost_forget_all(void)
{
    memset(costs, 0, sizeof costs);
}

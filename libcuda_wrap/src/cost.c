/* cost.c - the estimate of a kernel's own time.
 *
 * What is measured is the time between two events, in which the GPU may have worked for others too: it is never too short,
 * only too long. So the estimate follows shorter measurements fast and longer ones slowly, and settles near the shortest
 * that come again and again. A kernel that has really become much slower is believed at once. */
#include "vgw_cost.h"

#include <string.h>

#define COSTS  4096u /* a power of two */
#define PROBES 8u

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

void vgw_cost_learn(struct vgw_cost *cost, uint64_t ns)
{
    if (cost->samples++ == 0)
        cost->ns = ns;
    else if (ns < cost->ns)
        cost->ns -= (cost->ns - ns) / 2;
    else if (ns > 8 * cost->ns)
        cost->ns += (ns - cost->ns) / 2;
    else
        cost->ns += (ns - cost->ns) / 64;
}

void vgw_cost_forget_all(void)
{
    memset(costs, 0, sizeof costs);
}

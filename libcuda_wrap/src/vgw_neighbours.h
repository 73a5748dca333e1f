/* vgw_neighbours.h - the other containers on a GPU: what they leave idle, and whether there are any. */
#ifndef VGW_NEIGHBOURS_H
#define VGW_NEIGHBOURS_H

#include <stdbool.h>
#include <stdint.h>

#define VGW_BUCKET_NS 20000000 /* tokens that a container keeps which is idle, or gets no CPU: 2 points of a second */

/* What the neighbours may know: the bucket now, and for how long there is work under way. No share file: nothing. */
void vgw_tell_bucket(unsigned gpu, int64_t tokens_ns, uint64_t refilled_ns);
void vgw_tell_active(unsigned gpu, uint64_t until_ns);

/* A container beside this one, as the host has named its share file: include/vgw_share.h. */
struct vgw_neighbour {
    unsigned cores, number, gpus, class;
    unsigned long inode;
};

/* Calls `look` for each, with its share file. false: there is no folder, or it cannot be read. */
typedef void vgw_neighbour_look(void *what, const struct vgw_neighbour *neighbour, int fd);
bool vgw_each_neighbour(unsigned gpu, vgw_neighbour_look *look, void *what);

/* Nanoseconds of idle GPU time that this container may have since it last asked; 0 if that was a moment ago. Only for
 * one that borrows (VGW_FLAG_SOFT). */
uint64_t vgw_idle_time(unsigned gpu, uint64_t now_ns);

/* Whether this process is the only one with a slice of the GPU: then what it measures is its own. Looked at again every
 * 100 ms; false if it cannot be told. */
bool vgw_alone(unsigned gpu, uint64_t now_ns);

#endif

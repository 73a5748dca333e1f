/* vgs_lookup.h - the table of the driver's exports, generated from entry_points.yaml at build time. */
#ifndef VGS_LOOKUP_H
#define VGS_LOOKUP_H

#include <stddef.h>

struct vgs_export {
    const char *base; /* the name without _v2, _ptsz, … */
    int since;        /* CUDA version */
    int per_thread;   /* of the per-thread default stream */
    void *address;
};

extern const struct vgs_export vgs_exports[]; /* sorted by base, per_thread, since, version suffix */
extern const size_t vgs_export_count;

#endif

/* vgs_vmm.h - physical memory and its mappings, for the two files that know them: vgs_vmm.c, vgs_multicast.c. */
#ifndef VGS_VMM_H
#define VGS_VMM_H

#include <pthread.h>

#include "vgs_driver.h"

#define VGS_GRANULARITY (2ull << 20)
#define VGS_TEAM_BYTES  4096 /* at the beginning of a multicast object's file; its addresses' bytes follow */

struct vgs_team; /* the GPUs of a multicast object, in memory that all its processes share */
struct vgs_binding;

struct vgs_physical { /* what a CUmemGenericAllocationHandle points to */
    struct vgs_object head;
    CUdevice device;
    uint64_t size;
    uint32_t handles, mappings, bindings; /* the last of all gives the memory back */
    int fd;                               /* -1: neither mapped nor exported yet */
    bool imported;                        /* counted in the process that made it */
    bool shared;                          /* exported or imported: others may have it */
    CUmemAllocationProp prop;
    struct vgs_team *team; /* a multicast object: it has no memory of its own */
    struct vgs_binding *bound;
};

struct vgs_mapping {
    struct vgs_mapping *next;
    CUdeviceptr begin;
    size_t size;
    struct vgs_physical *physical;
    int access;
};

extern pthread_mutex_t vgs_vmm_lock;

/* The handle is a number of the program's: it is looked for, not looked at. NULL: there is none such. */
struct vgs_physical *vgs_physical_of(CUmemGenericAllocationHandle handle);
/* Under vgs_vmm_lock. drop: gives back what nobody has any more. */
struct vgs_mapping *vgs_mapping_at(CUdeviceptr address);
void vgs_physical_drop(struct vgs_physical *physical);
/* Under vgs_vmm_lock: the object's last handle and mapping are gone. */
void vgs_team_end(struct vgs_physical *object);

/* The team in a multicast object's file, or NULL if it is none; the object's size. */
struct vgs_team *vgs_team_of_file(int fd, uint64_t *size);
void vgs_team_unmap(struct vgs_team *team);
/* As the driver: returns when all GPUs have been added. NULL: at once. */
void vgs_team_wait(const struct vgs_team *team);

#endif

/* vgs_core.c - cuInit, faults on demand, forked children, and the registry of handles. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "vgs_driver.h"

int vgs_ready = VGS_NOT_READY;
struct vgs_visible vgs_gpus;

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t registry_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP; /* vgs_each's visitor deletes */
static struct vgs_object *live[VGS_KINDS], *retired[VGS_KINDS];

#define MAGIC 0x56475344u

/* The driver cannot be used in a child of a process that has used it: every call there fails, cuInit too. */
static void after_fork_in_child(void)
{
    if (vgs_ready == VGS_READY) {
        vgs_ready = VGS_FORKED;
        vgs_forget_slot();
    }
    pthread_mutex_init(&init_lock, NULL);
    registry_lock = (pthread_mutex_t)PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
}

static CUresult fault_of(const char *function)
{
    int fault = vgs_fault(function);
    return fault == VGS_FAULT_LOST ? CUDA_ERROR_UNKNOWN : (CUresult)fault;
}

CUresult vgs_enter_slow(const char *function)
{
    if (vgs_ready != VGS_READY)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (vgs_state->fault_count != vgs_faults_seen)
        vgs_read_faults();
    for (uint32_t i = 0; i < vgs_gpus.count; i++)
        if (vgs_state->gpus[vgs_gpus.index[i]].lost)
            return CUDA_ERROR_UNKNOWN;
    return fault_of(function);
}

static CUresult start(void)
{
    static bool fork_is_watched;
    switch (vgs_open()) {
    case VGS_OPEN_MISSING:
        return CUDA_ERROR_NO_DEVICE;
    case VGS_OPEN_FAULTY:
        return CUDA_ERROR_UNKNOWN;
    case VGS_OPEN_OK:
        break;
    }
    vgs_find_gpus(&vgs_gpus, true);
    VGS_CHECK(vgs_gpus.count > 0, CUDA_ERROR_NO_DEVICE);
    VGS_CHECK(vgs_arena_open(), CUDA_ERROR_OPERATING_SYSTEM);
    VGS_CHECK(vgs_take_slot(), CUDA_ERROR_OPERATING_SYSTEM);
    if (!fork_is_watched && pthread_atfork(NULL, NULL, after_fork_in_child) != 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    fork_is_watched = true;
    vgs_read_faults();
    return CUDA_SUCCESS;
}

VGS_API cuInit(unsigned int Flags)
{
    VGS_VALUE(Flags == 0);
    if (vgs_ready == VGS_READY)
        return vgs_enter(__func__);
    pthread_mutex_lock(&init_lock);
    CUresult result = vgs_ready == VGS_FORKED  ? CUDA_ERROR_NOT_INITIALIZED
                      : vgs_ready == VGS_READY ? CUDA_SUCCESS
                                               : start();
    if (result == CUDA_SUCCESS && vgs_any_fault)
        result = fault_of(__func__);
    if (result == CUDA_SUCCESS)
        __atomic_store_n(&vgs_ready, VGS_READY, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&init_lock);
    return result;
}

uint64_t vgs_next_id(void)
{
    static uint64_t last;
    return __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
}

void *vgs_new(enum vgs_kind kind, size_t size, CUcontext ctx)
{
    pthread_mutex_lock(&registry_lock);
    struct vgs_object *object = retired[kind];
    if (object)
        retired[kind] = object->next;
    else
        object = malloc(size);
    if (object) {
        memset(object, 0, size);
        *object = (struct vgs_object){.magic = MAGIC, .kind = kind, .ctx = ctx, .next = live[kind]};
        if (live[kind])
            live[kind]->previous = object;
        live[kind] = object;
    }
    pthread_mutex_unlock(&registry_lock);
    return object;
}

bool vgs_valid(const void *object, enum vgs_kind kind)
{
    const struct vgs_object *head = object;
    return head && head->magic == MAGIC && head->kind == kind;
}

void vgs_delete(void *object)
{
    struct vgs_object *head = object;
    pthread_mutex_lock(&registry_lock);
    if (head->previous)
        head->previous->next = head->next;
    else
        live[head->kind] = head->next;
    if (head->next)
        head->next->previous = head->previous;
    head->magic = 0;
    head->next = retired[head->kind];
    retired[head->kind] = head;
    pthread_mutex_unlock(&registry_lock);
}

void *vgs_each(enum vgs_kind kind, CUcontext ctx, bool (*visit)(void *object, void *argument), void *argument)
{
    struct vgs_object *object, *next;
    pthread_mutex_lock(&registry_lock);
    for (object = live[kind]; object; object = next) {
        next = object->next;
        if ((!ctx || object->ctx == ctx) && visit(object, argument))
            break;
    }
    pthread_mutex_unlock(&registry_lock);
    return object;
}

/* measure.c - what calls of the CUDA driver cost here and now, with whatever library answers to libcuda.so.1.
 *
 *   measure load               prints the nanoseconds of dlopen, of cuInit, and of the first context and allocation
 *   measure calls BATCHES      prints "ready", waits for a line, then per kind of call "name p50 p99", nanoseconds a call;
 *                              "launch,new" is in the first milliseconds after a kernel was first launched
 *
 * A batch is 32 calls between two readings of the clock: the clock's own cost is below a nanosecond a call then.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CALLS = 32, WARM_UP = 50, LIVE = 50000, BYTES = 4096, CUDA_VERSION = 12000 };

static int (*init)(unsigned int);
static int (*retain)(void **, int);
static int (*set_current)(void *);
static int (*synchronize)(void);
static int (*mem_alloc)(uint64_t *, size_t);
static int (*mem_free)(uint64_t);
static int (*mem_info)(size_t *, size_t *);
static int (*proc_address)(const char *, void **, int, uint64_t, int *);
static int (*load_data)(void **, const void *);
static int (*get_function)(void **, void *, const char *);
static int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                     void **);
static void (*set_kernel_time)(uint64_t); /* the simulated driver's own */

/* A kernel that does nothing; the simulated driver takes any image. */
static const char PTX[] = ".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry kernel()\n{\nret;\n}\n";

static void *function;
static int failures;

static void find(void *library, void *at, const char *name, bool needed)
{
    void *found = dlsym(library, name);
    memcpy(at, &found, sizeof found);
    if (found == NULL && needed) {
        fprintf(stderr, "measure: no %s\n", name);
        exit(1);
    }
}

static void open_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "measure: %s\n", dlerror());
        exit(1);
    }
    find(library, &init, "cuInit", true);
    find(library, &retain, "cuDevicePrimaryCtxRetain", true);
    find(library, &set_current, "cuCtxSetCurrent", true);
    find(library, &synchronize, "cuCtxSynchronize", true);
    find(library, &mem_alloc, "cuMemAlloc_v2", true);
    find(library, &mem_free, "cuMemFree_v2", true);
    find(library, &mem_info, "cuMemGetInfo_v2", true);
    find(library, &proc_address, "cuGetProcAddress_v2", true);
    find(library, &load_data, "cuModuleLoadData", true);
    find(library, &get_function, "cuModuleGetFunction", true);
    find(library, &launch, "cuLaunchKernel", true);
    find(library, &set_kernel_time, "vgsSetKernelTime", false);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void begin(void)
{
    void *context = NULL;
    uint64_t pointer = 0;
    failures += retain(&context, 0) != 0 || set_current(context) != 0;
    failures += mem_alloc(&pointer, BYTES) != 0 || mem_free(pointer) != 0;
}

static void call_launch(void)
{
    failures += launch(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL) != 0;
}

static void call_alloc_free(void)
{
    uint64_t pointer = 0;
    failures += mem_alloc(&pointer, BYTES) != 0;
    failures += mem_free(pointer) != 0;
}

static void call_info(void)
{
    size_t free_bytes, total;
    failures += mem_info(&free_bytes, &total) != 0;
}

static void call_proc_address(void)
{
    void *at = NULL;
    int status = 0;
    failures += proc_address("cuMemAlloc", &at, CUDA_VERSION, 0, &status) != 0;
}

static void none(void)
{
}

static void finish_kernels(void)
{
    failures += synchronize() != 0;
}

/* In the first tenths of a second after a new kernel our wrapper may look what its code has taken: a launch then reads a
 * clock as well. That is told apart, as launch,new. */
static void warm_up(void)
{
    const struct timespec pause = {.tv_sec = 0, .tv_nsec = 110000000};
    for (int look = 0; look < 5; look++) {
        nanosleep(&pause, NULL);
        finish_kernels();
    }
}

/* 50,000 allocations that stay; each batch then adds to them and takes away. */
static void fill(void)
{
    static bool filled;
    uint64_t pointer;
    for (int count = 0; count < LIVE && !filled; count++)
        failures += mem_alloc(&pointer, BYTES) != 0;
    filled = true;
}

static int by_size(const void *one, const void *other)
{
    const double left = *(const double *)one, right = *(const double *)other;
    return (left > right) - (left < right);
}

static void measure(const char *name, void (*call)(void), void (*before)(void), int batches)
{
    double *each = calloc((size_t)batches, sizeof *each);
    for (int batch = -WARM_UP; batch < batches; batch++) {
        before();
        const int64_t began = now_ns();
        for (int count = 0; count < CALLS; count++)
            call();
        if (batch >= 0)
            each[batch] = (double)(now_ns() - began) / (double)CALLS;
    }
    qsort(each, (size_t)batches, sizeof *each, by_size);
    printf("%s %.2f %.2f\n", name, each[batches / 2], each[batches - 1 - batches / 100]);
    free(each);
}

static int measure_load(void)
{
    const int64_t began = now_ns();
    open_driver();
    const int64_t opened = now_ns();
    failures += init(0) != 0;
    const int64_t initialised = now_ns();
    begin();
    printf("load %lld\ninit %lld\nfirst %lld\n", (long long)(opened - began), (long long)(initialised - opened),
           (long long)(now_ns() - initialised));
    return failures != 0;
}

static int measure_calls(int batches)
{
    char line[16];
    void *module = NULL;
    open_driver();
    failures += init(0) != 0;
    begin();
    failures += load_data(&module, PTX) != 0 || get_function(&function, module, "kernel") != 0;
    if (set_kernel_time != NULL)
        set_kernel_time(1);
    printf("ready\n");
    fflush(stdout);
    if (fgets(line, sizeof line, stdin) == NULL)
        return 1;
    measure("launch,new", call_launch, finish_kernels, batches < 200 ? batches : 200);
    warm_up();
    measure("launch", call_launch, finish_kernels, batches);
    measure("alloc+free", call_alloc_free, none, batches);
    measure("getinfo", call_info, none, batches);
    measure("getProcAddress", call_proc_address, none, batches);
    measure("alloc+free,50000", call_alloc_free, fill, batches);
    return failures != 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "load") == 0)
        return measure_load();
    if (argc == 3 && strcmp(argv[1], "calls") == 0 && atoi(argv[2]) > 0)
        return measure_calls(atoi(argv[2]));
    return 2;
}

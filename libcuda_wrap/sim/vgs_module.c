/* vgs_module.c - modules, libraries, kernels and functions. Any image loads, and has a function of any name: nothing is executed. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vgs_driver.h"

#define SHARED_OPTIN (227 * 1024)

#define SIZE_MARK     "// vgpu-sim device_bytes="
#define FUNCTION_MARK " function_bytes="

struct CUmod_st { /* a CUlibrary is one too, without a context */
    struct vgs_object head;
    uint64_t bytes;          /* of device memory, on `gpu`; the functions loaded so far included */
    uint64_t function_bytes; /* what each function takes when it is loaded */
    uint32_t gpu;
};

/* An image of ours says how much device memory it takes, and each of its functions later; any other takes none. */
static uint64_t bytes_of(const char *image, uint64_t *function_bytes)
{
    const size_t length = strlen(SIZE_MARK), more = strlen(FUNCTION_MARK);
    char *end;
    *function_bytes = 0;
    if (strncmp(image, SIZE_MARK, length) != 0)
        return 0;
    const uint64_t bytes = strtoull(image + length, &end, 10);
    if (strncmp(end, FUNCTION_MARK, more) == 0)
        *function_bytes = strtoull(end + more, NULL, 10);
    return bytes;
}

static CUresult load(CUmodule *module, const void *image, CUcontext ctx)
{
    VGS_VALUE(module && image);
    const CUcontext here = vgs_context();
    uint64_t function_bytes, bytes = bytes_of(image, &function_bytes);
    const uint32_t gpu = here ? here->gpu : 0;
    bytes = here ? bytes : 0;
    VGS_CHECK(bytes == 0 || vgs_charge(gpu, bytes), CUDA_ERROR_OUT_OF_MEMORY);
    CUmodule made = vgs_new(VGS_MODULE, sizeof *made, ctx);
    if (!made) {
        vgs_refund(gpu, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    made->bytes = bytes;
    made->function_bytes = function_bytes;
    made->gpu = gpu;
    *module = made;
    return CUDA_SUCCESS;
}

static CUresult load_file(CUmodule *module, const char *path, CUcontext ctx)
{
    char head[128] = "";
    VGS_VALUE(module && path);
    FILE *file = fopen(path, "re");
    VGS_CHECK(file, CUDA_ERROR_FILE_NOT_FOUND);
    head[fread(head, 1, sizeof head - 1, file)] = 0;
    fclose(file);
    return load(module, head, ctx);
}

void vgs_module_free(CUmodule module)
{
    if (module->bytes)
        vgs_refund(module->gpu, module->bytes);
    vgs_delete(module);
}

static bool of_module(void *object, void *module)
{
    CUfunction function = object;
    if (function->module == module)
        vgs_delete(function);
    return false;
}

static CUresult unload(CUmodule module)
{
    VGS_CHECK(vgs_valid(module, VGS_MODULE), CUDA_ERROR_INVALID_HANDLE);
    vgs_each(VGS_FUNCTION, NULL, of_module, module);
    vgs_module_free(module);
    return CUDA_SUCCESS;
}

struct wanted {
    CUmodule module;
    const char *name;
};

static bool is_wanted(void *object, void *argument)
{
    const struct wanted *wanted = argument;
    CUfunction function = object;
    return function->module == wanted->module && strcmp(function->name, wanted->name) == 0;
}

/* "…sleep_us_500…": a kernel of 500 µs. */
static uint64_t named_duration(const char *name)
{
    const char *found = strstr(name, "sleep_us_");
    return found ? strtoull(found + strlen("sleep_us_"), NULL, 10) * 1000 : 0;
}

static CUresult function_of(CUfunction *out, CUmodule module, const char *name)
{
    struct wanted wanted = {module, name};
    VGS_VALUE(out && name);
    VGS_CHECK(vgs_valid(module, VGS_MODULE), CUDA_ERROR_INVALID_HANDLE);
    VGS_CHECK(*name && strlen(name) < sizeof(*out)->name, CUDA_ERROR_NOT_FOUND);
    CUfunction function = vgs_each(VGS_FUNCTION, NULL, is_wanted, &wanted);
    if (!function) {
        function = vgs_new(VGS_FUNCTION, sizeof *function, module->head.ctx);
        VGS_CHECK(function, CUDA_ERROR_OUT_OF_MEMORY);
        function->module = module;
        function->duration_ns = named_duration(name);
        function->max_dynamic_shared = 48 * 1024;
        function->carveout = -1;
        strcpy(function->name, name);
    }
    *out = function;
    return CUDA_SUCCESS;
}

CUresult vgs_function_load_slow(CUfunction function)
{
    static char lock;
    CUmodule module = function->module;
    CUresult result = CUDA_SUCCESS;
    while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE))
        ;
    if (!function->loaded && module->function_bytes) {
        if (module->bytes == 0 && vgs_context())
            module->gpu = vgs_context()->gpu; /* a library that was loaded without a context */
        if (vgs_charge(module->gpu, module->function_bytes))
            module->bytes += module->function_bytes;
        else
            result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result == CUDA_SUCCESS)
        __atomic_store_n(&function->loaded, true, __ATOMIC_RELEASE);
    __atomic_clear(&lock, __ATOMIC_RELEASE);
    return result;
}

VGS_API cuModuleLoad(CUmodule *module, const char *fname)
{
    VGS_ENTER_CONTEXT();
    return load_file(module, fname, ctx);
}

VGS_API cuModuleLoadData(CUmodule *module, const void *image)
{
    VGS_ENTER_CONTEXT();
    return load(module, image, ctx);
}

VGS_API cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count, int *options, void **values)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(count == 0 || (options && values));
    return load(module, image, ctx);
}

VGS_API cuModuleLoadFatBinary(CUmodule *module, const void *image)
{
    VGS_ENTER_CONTEXT();
    return load(module, image, ctx);
}

VGS_API cuModuleUnload(CUmodule module)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    return unload(module);
}

VGS_API cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUresult result = function_of(function, module, name);
    return result == CUDA_SUCCESS ? vgs_function_load(*function) : result;
}

VGS_API cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule module, const char *name)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    VGS_VALUE(name && (dptr || bytes));
    VGS_CHECK(vgs_valid(module, VGS_MODULE), CUDA_ERROR_INVALID_HANDLE);
    return CUDA_ERROR_NOT_FOUND; /* an image is not looked into */
}

VGS_API cuModuleGetLoadingMode(int *mode)
{
    VGS_ENTER();
    VGS_VALUE(mode);
    *mode = 2; /* lazy */
    return CUDA_SUCCESS;
}

VGS_API cuLibraryLoadData(CUlibrary *library, const void *code, int *jit, void **jit_values, unsigned int jit_count,
                          int *options, void **values, unsigned int count)
{
    VGS_ENTER();
    VGS_VALUE((jit_count == 0 || (jit && jit_values)) && (count == 0 || options));
    (void)values;
    return load((CUmodule *)library, code, NULL);
}

VGS_API cuLibraryLoadFromFile(CUlibrary *library, const char *path, int *jit, void **jit_values, unsigned int jit_count,
                              int *options, void **values, unsigned int count)
{
    VGS_ENTER();
    VGS_VALUE((jit_count == 0 || (jit && jit_values)) && (count == 0 || options));
    (void)values;
    return load_file((CUmodule *)library, path, NULL);
}

VGS_API cuLibraryUnload(CUlibrary library)
{
    VGS_ENTER();
    return unload((CUmodule)library);
}

VGS_API cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    VGS_ENTER();
    return function_of(kernel, (CUmodule)library, name);
}

VGS_API cuLibraryGetModule(CUmodule *module, CUlibrary library)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    VGS_VALUE(module);
    VGS_CHECK(vgs_valid(library, VGS_MODULE), CUDA_ERROR_INVALID_HANDLE);
    *module = (CUmodule)library;
    return CUDA_SUCCESS;
}

VGS_API cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    VGS_VALUE(function);
    VGS_CHECK(vgs_valid(kernel, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    *function = kernel;
    return vgs_function_load(kernel);
}

static CUresult name_of(const char **name, CUfunction function)
{
    VGS_VALUE(name);
    VGS_CHECK(vgs_valid(function, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    *name = function->name;
    return CUDA_SUCCESS;
}

VGS_API cuKernelGetName(const char **name, CUkernel kernel)
{
    VGS_ENTER();
    return name_of(name, kernel);
}

VGS_API cuFuncGetName(const char **name, CUfunction function)
{
    VGS_ENTER();
    return name_of(name, function);
}

VGS_API cuFuncGetModule(CUmodule *module, CUfunction function)
{
    VGS_ENTER();
    VGS_VALUE(module);
    VGS_CHECK(vgs_valid(function, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    *module = function->module;
    return CUDA_SUCCESS;
}

/* CUfunction_attribute 0 to 9; the others are 0. */
static CUresult get_attribute(int *value, int attribute, CUfunction function)
{
    VGS_VALUE(value && attribute >= 0 && attribute <= 15);
    VGS_CHECK(vgs_valid(function, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    const int values[16] = {1024, 0, 0, 0, 32, 90, 90, 0, function->max_dynamic_shared, function->carveout};
    *value = values[attribute];
    return CUDA_SUCCESS;
}

static CUresult set_attribute(CUfunction function, int attribute, int value)
{
    VGS_CHECK(vgs_valid(function, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    if (attribute == 8) {
        VGS_VALUE(value >= 0 && value <= SHARED_OPTIN);
        function->max_dynamic_shared = value;
    } else if (attribute == 9) {
        VGS_VALUE(value >= -1 && value <= 100);
        function->carveout = value;
    } else {
        VGS_VALUE(attribute >= 11 && attribute <= 15); /* cluster shape: accepted, without effect */
    }
    return CUDA_SUCCESS;
}

VGS_API cuFuncGetAttribute(int *value, int attribute, CUfunction function)
{
    VGS_ENTER();
    return get_attribute(value, attribute, function);
}

VGS_API cuFuncSetAttribute(CUfunction function, int attribute, int value)
{
    VGS_ENTER();
    return set_attribute(function, attribute, value);
}

VGS_API cuKernelGetAttribute(int *value, int attribute, CUkernel kernel, CUdevice dev)
{
    VGS_ENTER();
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    return get_attribute(value, attribute, kernel);
}

VGS_API cuKernelSetAttribute(int attribute, int value, CUkernel kernel, CUdevice dev)
{
    VGS_ENTER();
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    return set_attribute(kernel, attribute, value);
}

VGS_API cuFuncSetCacheConfig(CUfunction function, int config)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(function, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(config >= 0 && config <= 3);
    return CUDA_SUCCESS;
}

VGS_API cuFuncIsLoaded(int *state, CUfunction function)
{
    VGS_ENTER();
    VGS_VALUE(state);
    VGS_CHECK(vgs_valid(function, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    *state = function->loaded;
    return CUDA_SUCCESS;
}

VGS_API cuFuncLoad(CUfunction function)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(function, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    return vgs_function_load(function);
}

/* module.c - modules and libraries: code, and the variables of a program that live on the GPU.
 *
 * What loading takes is measured; if it does not fit, the module is unloaded before the program sees it. Functions are
 * loaded later: late.c.
 */
#include "cuda_handlers.h"
#include "vgw_late.h"
#include "vgw_overhead.h"

static CUresult loaded(CUresult result, CUmodule *module, CUmodule old, const struct vgw_place *place,
                       const struct vgw_before *before)
{
    if (result != CUDA_SUCCESS) {
        vgw_overhead_failed(before);
        return result;
    }
    if (vgw_overhead_after(before, VGW_MODULE, *module, place->context)) {
        vgw_late_on(before->gpu);
        return CUDA_SUCCESS;
    }
    if (vgw_driver.cuModuleUnload != NULL)
        vgw_driver.cuModuleUnload(*module);
    *module = old;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* `call` is the driver's function with its arguments. */
#define LOAD_MODULE(call)                                                                                              \
    struct vgw_place place;                                                                                            \
    CUresult result = vgw_place_here(&place);                                                                          \
    if (result != CUDA_SUCCESS || module == NULL)                                                                      \
        return result != CUDA_SUCCESS ? result : call;                                                                 \
    CUmodule old = *module;                                                                                            \
    const struct vgw_before before = vgw_overhead_before(place.gpu);                                                   \
    return loaded(call, module, old, &place, &before)

CUresult vgw_module_load(vgw_fn_module_load *real, CUmodule *module, const char *fname)
{
    LOAD_MODULE(real(module, fname));
}

CUresult vgw_module_load_data(vgw_fn_module_load_data *real, CUmodule *module, const void *image)
{
    LOAD_MODULE(real(module, image));
}

CUresult vgw_module_load_data_ex(vgw_fn_module_load_data_ex *real, CUmodule *module, const void *image,
                                 unsigned int numOptions, CUjit_option *options, void **optionValues)
{
    LOAD_MODULE(real(module, image, numOptions, options, optionValues));
}

static CUresult unloaded(CUresult result)
{
    if (result != CUDA_SUCCESS)
        return result;
    vgw_late_unloaded();
    vgw_late_here(); /* its functions have gone as well */
    return result;
}

CUresult vgw_module_unload(vgw_fn_module_unload *real, CUmodule hmod)
{
    const struct vgw_freeing freeing = vgw_forget(VGW_MODULE, vgw_key(hmod));
    return unloaded(vgw_freed(&freeing, real(hmod)));
}

static CUresult library_loaded(CUresult result, CUlibrary *library, CUlibrary old, const struct vgw_before *before)
{
    if (result != CUDA_SUCCESS) {
        vgw_overhead_failed(before);
        return result;
    }
    if (vgw_overhead_after(before, VGW_MODULE, *library, NULL)) {
        vgw_late_on(before->gpu);
        return CUDA_SUCCESS;
    }
    if (vgw_driver.cuLibraryUnload != NULL)
        vgw_driver.cuLibraryUnload(*library);
    *library = old;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* A library belongs to no context: it is charged until it is unloaded. Without a context it takes nothing yet. */
#define LOAD_LIBRARY(call)                                                                                             \
    struct vgw_place place;                                                                                            \
    if (library == NULL || vgw_place_here(&place) != CUDA_SUCCESS)                                                     \
        return call;                                                                                                   \
    CUlibrary old = *library;                                                                                          \
    const struct vgw_before before = vgw_overhead_before(place.gpu);                                                   \
    return library_loaded(call, library, old, &before)

CUresult vgw_library_load_data(vgw_fn_library_load_data *real, CUlibrary *library, const void *code,
                               CUjit_option *jitOptions, void **jitOptionsValues, unsigned int numJitOptions,
                               CUlibraryOption *libraryOptions, void **libraryOptionValues,
                               unsigned int numLibraryOptions)
{
    LOAD_LIBRARY(real(library, code, jitOptions, jitOptionsValues, numJitOptions, libraryOptions, libraryOptionValues,
                      numLibraryOptions));
}

CUresult vgw_library_load_file(vgw_fn_library_load_file *real, CUlibrary *library, const char *fileName,
                               CUjit_option *jitOptions, void **jitOptionsValues, unsigned int numJitOptions,
                               CUlibraryOption *libraryOptions, void **libraryOptionValues,
                               unsigned int numLibraryOptions)
{
    LOAD_LIBRARY(real(library, fileName, jitOptions, jitOptionsValues, numJitOptions, libraryOptions,
                      libraryOptionValues, numLibraryOptions));
}

CUresult vgw_library_unload(vgw_fn_library_unload *real, CUlibrary library)
{
    const struct vgw_freeing freeing = vgw_forget(VGW_MODULE, vgw_key(library));
    return unloaded(vgw_freed(&freeing, real(library)));
}

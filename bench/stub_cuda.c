/* The part of libcuda that Triton calls, without a GPU behind it: every call succeeds and a launch is only noted.
 *
 * Kernels that were compiled for a GPU go the whole way that they go on one, Triton's binder and its launcher in C
 * included, and end here. What is noted is what a GPU would have been given: `stub_note` says how many bytes each
 * parameter has, `stub_noted` where the last launch lies. */
#include <cuda.h>
#include <stdint.h>
#include <string.h>

#define MOST 128
typedef struct {
  unsigned grid[3], block[3], shared;
  uint64_t stream, function;
  unsigned char parameters[MOST * 128];
} Launch;

static Launch last;
static long launches;
static unsigned sizes[MOST], parameters;

void stub_note(unsigned count, const unsigned *bytes) {
  parameters = count < MOST ? count : MOST;
  memcpy(sizes, bytes, parameters * sizeof(unsigned));
}
const Launch *stub_noted(void) { return &last; }
long stub_launches(void) { return launches; }

CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
  launches++;
  if (parameters == 0)
    return CUDA_SUCCESS;
  memset(&last, 0, sizeof(last));
  unsigned grid[] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  unsigned block[] = {config->blockDimX, config->blockDimY, config->blockDimZ};
  memcpy(last.grid, grid, sizeof(grid));
  memcpy(last.block, block, sizeof(block));
  last.shared = config->sharedMemBytes;
  last.stream = (uint64_t)config->hStream;
  last.function = (uint64_t)function;
  for (unsigned i = 0, at = 0; i < parameters; at += sizes[i++])
    memcpy(last.parameters + at, arguments[i], sizes[i]);
  return CUDA_SUCCESS;
}

/* A map that tells where and how it points, in place of the hardware's own words. */
CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                        const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box,
                                        const cuuint32_t *steps, CUtensorMapInterleave interleave,
                                        CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                        CUtensorMapFloatOOBfill fill) {
  uint64_t *word = (uint64_t *)map;
  memset(map, 0, sizeof(*map));
  word[0] = (uint64_t)address;
  word[1] = type | rank << 8 | swizzle << 16 | fill << 24;
  for (cuuint32_t i = 0; i < rank; i++) {
    word[2 + i] = sizes[i];
    word[7 + i] = (uint64_t)box[i] << 32 | steps[i];
    if (i + 1 < rank)
      word[12 + i] = strides[i];
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN ? 232448 : 132;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuModuleLoadData(CUmodule *module, const void *image) {
  static uint64_t loaded;
  *module = (CUmodule)++loaded;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)module;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGetErrorString(CUresult error, const char **text) {
  *text = "an error of the stub";
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxGetDevice(CUdevice *device) {
  *device = 0;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuDriverGetVersion(int *version) {
  *version = 13000;
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
#define SUCCEEDS(name, ...) CUresult CUDAAPI name(__VA_ARGS__) { return CUDA_SUCCESS; }
SUCCEEDS(cuInit, unsigned flags)
SUCCEEDS(cuCtxSetCurrent, CUcontext context)
SUCCEEDS(cuCtxSetLimit, CUlimit limit, size_t value)
SUCCEEDS(cuDevicePrimaryCtxRetain, CUcontext *context, CUdevice device)
SUCCEEDS(cuFuncSetAttribute, CUfunction function, CUfunction_attribute attribute, int value)
SUCCEEDS(cuFuncSetCacheConfig, CUfunction function, CUfunc_cache config)
SUCCEEDS(cuModuleUnload, CUmodule module)

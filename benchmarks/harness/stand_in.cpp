// CUDA's runtime, driver and cuBLAS as far as PyTorch, Triton and bitsandbytes call them, without a GPU: kernels compute
// nothing. Memory is the host's and taken when it is written to; launches and waits are counted; a capture refuses
// what a GPU's refuses. To be preloaded, and found as libcuda.so.1; `stand_in.py` says how.
//
// STAND_IN_GIB (80)          a card's memory
// STAND_IN_GPUS (1)          cards, each process has all of their memory
// STAND_IN_CAPABILITY (90)   their compute capability
// STAND_IN_COPIES (1)        0: copies of more than 4 MiB are left out, so that weights take no memory of the host
// STAND_IN_COUNTS            a file that gets, at the end, how often each kernel was launched and what was waited for

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#define API extern "C" __attribute__((visibility("default")))

namespace {

const size_t MOST = 4 << 20;  // bytes of a copy that is always done

int setting(const char* name, int otherwise) {
  const char* given = getenv(name);
  return given ? atoi(given) : otherwise;
}

// made at the first call, which comes before this library's own constructors, and never destroyed
struct State {
  std::recursive_mutex lock;
  std::unordered_map<const void*, std::string> names;  // of kernels
  std::map<std::string, long> counts;
  std::map<char*, size_t> blocks, pinned;  // of the card's memory, of the host's
  size_t used = 0, total = size_t(setting("STAND_IN_GIB", 80)) << 30;
  int capability = setting("STAND_IN_CAPABILITY", 90);
  bool copies = setting("STAND_IN_COPIES", 1);
  // one capture at a time
  bool capturing = false, spoiled = false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  cudaStream_t stream = nullptr;
  unsigned long long captures = 0;
  size_t captured = 0;  // kernels
};

void write_counts();

State& state() {
  static State* made = [] {
    if (getenv("STAND_IN_COUNTS")) atexit(write_counts);
    return new State;
  }();
  return *made;
}

using Guard = std::lock_guard<std::recursive_mutex>;
thread_local cudaStreamCaptureMode own_mode = cudaStreamCaptureModeGlobal;
thread_local int current = 0;

void write_counts() {
  Guard guard(state().lock);
  if (FILE* file = fopen(getenv("STAND_IN_COUNTS"), "w")) {
    for (auto& each : state().counts) fprintf(file, "%ld\t%s\n", each.second, each.first.c_str());
    fclose(file);
  }
}

void count(const std::string& what) {
  Guard guard(state().lock);
  state().counts[what]++;
}

// what a GPU is to do, now or in a graph
void work(const std::string& what) {
  Guard guard(state().lock);
  count(state().capturing ? "captured " + what : what);
  state().captured += state().capturing;
}

void launched(const void* kernel) {
  Guard guard(state().lock);
  auto found = state().names.find(kernel);
  work("kernel " + (found == state().names.end() ? "?" : found->second));
}

// whether a call spoils the capture under way
bool forbidden(const char* call) {
  State& s = state();
  const auto relaxed = cudaStreamCaptureModeRelaxed;
  if (!s.capturing || own_mode == relaxed || s.mode == relaxed) return false;
  s.spoiled = true;
  fprintf(stderr, "stand-in: %s while a graph is captured\n", call);
  return true;
}

void* room(size_t bytes) {
  const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* found = mmap(nullptr, bytes + 4096, PROT_READ | PROT_WRITE, how, -1, 0);
  return found == MAP_FAILED ? nullptr : found;
}

bool inside(const std::map<char*, size_t>& blocks, const void* place) {
  Guard guard(state().lock);
  auto next = blocks.upper_bound((char*)place);
  if (next == blocks.begin()) return false;
  --next;
  return (char*)place < next->first + next->second;
}

bool on_card(const void* place) { return inside(state().blocks, place); }

void copy(void* to, const void* from, size_t bytes) {
  if (bytes <= MOST || state().copies) memmove(to, from, bytes);
}

double milliseconds() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

}  // namespace

#define CAPTURABLE(call) if (forbidden(call)) return cudaErrorStreamCaptureUnsupported
#define OK(name, ...) API cudaError_t name(__VA_ARGS__) { return cudaSuccess; }
#define FINE(name, ...) API CUresult name(__VA_ARGS__) { return CUDA_SUCCESS; }

// ---- kernels

API void** __cudaRegisterFatBinary(void*) { static void* handle[1]; return handle; }
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  Guard guard(state().lock);
  state().names[host] = name;
}
API unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, CUstream_st*) { return 0; }
OK(__cudaPopCallConfiguration, dim3*, dim3*, size_t*, void*)
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  launched((const void*)kernel);
  return cudaSuccess;
}
API cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t) {
  launched(function);
  return cudaSuccess;
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* function, void**) {
  launched(function);
  return cudaSuccess;
}
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 64;
  found->binaryVersion = found->ptxVersion = state().capability;
  return cudaSuccess;
}
OK(cudaFuncSetAttribute, const void*, cudaFuncAttribute, int)
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* found, const void*, int, size_t, unsigned) {
  *found = 2;
  return cudaSuccess;
}

// ---- the card

API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  const int capability = state().capability;
  memset(p, 0, sizeof *p);
  strcpy(p->name, "stand-in for a GPU");
  p->totalGlobalMem = state().total;
  p->major = capability / 10;
  p->minor = capability % 10;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = capability == 90 ? 232448 : capability == 75 ? 65536 : 101376;
  p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->l2CacheSize = 50 << 20;
  p->memoryBusWidth = 5120;
  p->unifiedAddressing = p->concurrentKernels = 1;
  p->textureAlignment = 512;
  p->maxBlocksPerMultiProcessor = 32;
  return cudaSuccess;
}

static int attribute(int which) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, 0);
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: return p.major;
    case cudaDevAttrComputeCapabilityMinor: return p.minor;
    case cudaDevAttrMultiProcessorCount: return p.multiProcessorCount;
    case cudaDevAttrMaxSharedMemoryPerBlock: return p.sharedMemPerBlock;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return p.sharedMemPerBlockOptin;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return p.sharedMemPerMultiprocessor;
    case cudaDevAttrMaxRegistersPerBlock: return p.regsPerBlock;
    case cudaDevAttrMaxRegistersPerMultiprocessor: return p.regsPerMultiprocessor;
    case cudaDevAttrMaxThreadsPerBlock: return p.maxThreadsPerBlock;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return p.maxThreadsPerMultiProcessor;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return p.maxBlocksPerMultiProcessor;
    case cudaDevAttrMaxBlockDimX: return p.maxThreadsDim[0];
    case cudaDevAttrMaxGridDimX: return p.maxGridSize[0];
    case cudaDevAttrMaxGridDimY: return p.maxGridSize[1];
    case cudaDevAttrWarpSize: return p.warpSize;
    case cudaDevAttrClockRate: return 1980000;
    case cudaDevAttrMemoryClockRate: return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth: return p.memoryBusWidth;
    default: return 0;
  }
}

API cudaError_t cudaGetDeviceCount(int* found) {
  const char* visible = getenv("CUDA_VISIBLE_DEVICES");
  *found = visible && (!*visible || *visible == '-') ? 0 : setting("STAND_IN_GPUS", 1);
  return *found ? cudaSuccess : cudaErrorNoDevice;
}
API cudaError_t cudaGetDevice(int* found) { *found = current; return cudaSuccess; }
API cudaError_t cudaSetDevice(int device) { current = device; return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* found) { *found = CUDART_VERSION; return cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* found) { *found = CUDART_VERSION; return cudaSuccess; }
API cudaError_t cudaDeviceGetAttribute(int* found, cudaDeviceAttr which, int) { *found = attribute(which); return cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char* found, int length, int) { snprintf(found, length, "0000:01:00.0"); return cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { *least = 0; *greatest = -5; return cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int* found, int, int) { *found = 0; return cudaSuccess; }
OK(cudaDeviceEnablePeerAccess, int, unsigned)
API cudaError_t cudaDeviceSynchronize() {
  CAPTURABLE("cudaDeviceSynchronize");
  count("wait for the card");
  return cudaSuccess;
}
API const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
API const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  return error == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing" : "error";
}
OK(cudaGetLastError)
OK(cudaPeekAtLastError)
OK(cudaProfilerStart)
OK(cudaProfilerStop)

// ---- memory

static bool take(size_t bytes) {
  Guard guard(state().lock);
  if (state().used + bytes > state().total) return false;
  state().used += bytes;
  return true;
}
API cudaError_t cudaMalloc(void** found, size_t bytes) {
  CAPTURABLE("cudaMalloc");
  Guard guard(state().lock);
  *found = take(bytes) ? room(bytes) : nullptr;
  if (!*found) return cudaErrorMemoryAllocation;
  state().blocks[(char*)*found] = bytes;
  return cudaSuccess;
}
API cudaError_t cudaFree(void* place) {
  if (!place) return cudaSuccess;
  CAPTURABLE("cudaFree");
  Guard guard(state().lock);
  auto block = state().blocks.find((char*)place);
  if (block != state().blocks.end()) {
    state().used -= block->second;
    munmap(place, block->second + 4096);
    state().blocks.erase(block);
  }
  return cudaSuccess;
}
API cudaError_t cudaMallocManaged(void** found, size_t bytes, unsigned) { return cudaMalloc(found, bytes); }
API cudaError_t cudaHostAlloc(void** found, size_t bytes, unsigned) {
  *found = room(bytes);
  Guard guard(state().lock);
  if (*found) state().pinned[(char*)*found] = bytes;
  return *found ? cudaSuccess : cudaErrorMemoryAllocation;
}
OK(cudaFreeHost, void*)  // PyTorch keeps what it pinned
OK(cudaHostRegister, void*, size_t, unsigned)
OK(cudaHostUnregister, void*)
API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = state().total;
  *free = *total - state().used;
  return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  CAPTURABLE("cudaMemcpy");
  count("wait for a copy");
  copy(to, from, bytes);
  return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  work(kind == cudaMemcpyHostToDevice ? "copy to the card" : kind == cudaMemcpyDeviceToHost ? "copy to the host" : "copy");
  copy(to, from, bytes);
  return cudaSuccess;
}
API cudaError_t cudaMemset(void* place, int value, size_t bytes) {
  if (bytes <= MOST) memset(place, value, bytes);
  return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* place, int value, size_t bytes, cudaStream_t) {
  work("memset");
  return cudaMemset(place, value, bytes);
}
API cudaError_t cudaGetSymbolAddress(void** found, const void*) { *found = room(4096); return cudaSuccess; }
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* place) {
  memset(found, 0, sizeof *found);
  const bool pinned = inside(state().pinned, place);
  found->type = on_card(place) ? cudaMemoryTypeDevice : pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  if (pinned) found->hostPointer = (void*)place;
  if (found->type == cudaMemoryTypeDevice) found->devicePointer = (void*)place;
  return cudaSuccess;
}

// ---- streams and events: all is done when it is asked for

template <class T> static cudaError_t make(T* found) {
  *found = (T)calloc(1, 16);
  return cudaSuccess;
}
API cudaError_t cudaStreamCreate(cudaStream_t* found) { return make(found); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* found, unsigned, int) { return make(found); }
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* found) { *found = 0; return cudaSuccess; }
OK(cudaStreamDestroy, cudaStream_t)
OK(cudaStreamQuery, cudaStream_t)
// an event: its time, and the number of the capture that it was recorded in
struct Event { double time; unsigned long long capture; };
static bool captured_on(cudaStream_t stream) { return state().capturing && stream == state().stream; }
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  State& s = state();
  const bool within = s.capturing && ((Event*)event)->capture == s.captures, legacy = !stream || stream == cudaStreamLegacy;
  if (within == captured_on(stream) || (within && !legacy)) return cudaSuccess;
  s.spoiled = true;  // work inside a capture and work outside wait for one another
  return within ? cudaErrorStreamCaptureImplicit : cudaErrorStreamCaptureIsolation;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t) {
  CAPTURABLE("cudaStreamSynchronize");
  count("wait for a stream");
  return cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t run, void* given) { run(given); return cudaSuccess; }
API cudaError_t cudaEventCreate(cudaEvent_t* found) { return make(found); }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* found, unsigned) { return make(found); }
OK(cudaEventDestroy, cudaEvent_t)
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *(Event*)event = {milliseconds(), captured_on(stream) ? state().captures : 0};
  return cudaSuccess;
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) { return cudaEventRecord(event, stream); }
API cudaError_t cudaEventQuery(cudaEvent_t) { CAPTURABLE("cudaEventQuery"); return cudaSuccess; }
API cudaError_t cudaEventSynchronize(cudaEvent_t) {
  CAPTURABLE("cudaEventSynchronize");
  count("wait for an event");
  return cudaSuccess;
}
API cudaError_t cudaEventElapsedTime(float* found, cudaEvent_t from, cudaEvent_t to) {
  *found = float(((Event*)to)->time - ((Event*)from)->time);
  return cudaSuccess;
}

// ---- graphs

API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* found) {
  *found = captured_on(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* found, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                         size_t* number) {
  cudaStreamIsCapturing(stream, found);
  if (*found != cudaStreamCaptureStatusActive) return cudaSuccess;
  if (id) *id = state().captures;
  if (graph) *graph = (cudaGraph_t)1;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (number) *number = 0;
  return cudaSuccess;
}
API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  State& s = state();
  s.capturing = true, s.spoiled = false, s.mode = mode, s.stream = stream, s.captured = 0;
  s.captures++;
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* found) {
  state().capturing = false;
  count("graph of " + std::to_string(state().captured) + " captured");
  make(found);
  return state().spoiled ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) { std::swap(own_mode, *mode); return cudaSuccess; }
API cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* found) { *found = state().captured; return cudaSuccess; }
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* found, cudaGraph_t, unsigned long long) { return make(found); }
API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { count("graph replayed"); return cudaSuccess; }
OK(cudaGraphDestroy, cudaGraph_t)
OK(cudaGraphExecDestroy, cudaGraphExec_t)

// ---- the driver, which PyTorch asks for some names and Triton for others

static CUresult unsupported(...) { return CUDA_ERROR_NOT_SUPPORTED; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* how) {
  *found = dlsym(RTLD_DEFAULT, name);
  if (!*found) *found = (void*)unsupported;
  if (how) *how = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
FINE(cuInit, unsigned)
API CUresult cuDriverGetVersion(int* found) { *found = CUDA_VERSION; return CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice* found, int number) { *found = number; return CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int* found) { cudaGetDeviceCount(found); return CUDA_SUCCESS; }
API CUresult cuDeviceGetAttribute(int* found, CUdevice_attribute which, CUdevice) { *found = attribute(which); return CUDA_SUCCESS; }
API CUresult cuDeviceGetUuid(CUuuid* found, CUdevice) { memset(found, 1, sizeof *found); return CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) { *flags = 0; *active = 1; return CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxRetain(CUcontext* found, CUdevice) { *found = (CUcontext)1; return CUDA_SUCCESS; }
API CUresult cuCtxGetCurrent(CUcontext* found) { *found = (CUcontext)1; return CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice* found) { *found = current; return CUDA_SUCCESS; }
API CUresult cuCtxGetLimit(size_t* found, CUlimit) { *found = 1 << 20; return CUDA_SUCCESS; }
FINE(cuCtxSetCurrent, CUcontext)
FINE(cuCtxSetLimit, CUlimit, size_t)
API CUresult cuGetErrorString(CUresult, const char** found) { *found = "error"; return CUDA_SUCCESS; }
API CUresult cuGetErrorName(CUresult, const char** found) { *found = "CUDA_ERROR"; return CUDA_SUCCESS; }
API CUresult cuPointerGetAttribute(void* found, CUpointer_attribute, CUdeviceptr place) {
  if (!on_card((void*)place)) return CUDA_ERROR_INVALID_VALUE;
  *(CUdeviceptr*)found = place;
  return CUDA_SUCCESS;
}
API CUresult cuModuleLoadData(CUmodule* found, const void*) { make(found); return CUDA_SUCCESS; }
FINE(cuModuleUnload, CUmodule)
API CUresult cuModuleGetFunction(CUfunction* found, CUmodule, const char* name) {
  Guard guard(state().lock);
  make(found);
  state().names[*found] = name;
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* found, CUfunction_attribute which, CUfunction) {
  *found = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
FINE(cuFuncSetAttribute, CUfunction, CUfunction_attribute, int)
FINE(cuFuncSetCacheConfig, CUfunction, CUfunc_cache)
API CUresult cuLaunchKernelEx(const CUlaunchConfig*, CUfunction function, void**, void**) {
  launched(function);
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveClusters(int* found, CUfunction, const CUlaunchConfig*) { *found = 1; return CUDA_SUCCESS; }

// expandable segments
API CUresult cuMemGetAllocationGranularity(size_t* found, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  *found = 2 << 20;
  return CUDA_SUCCESS;
}
API CUresult cuMemAddressReserve(CUdeviceptr* found, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  void* place = room(bytes);
  if (!place) return CUDA_ERROR_OUT_OF_MEMORY;
  Guard guard(state().lock);
  state().blocks[(char*)place] = bytes;
  *found = (CUdeviceptr)place;
  return CUDA_SUCCESS;
}
API CUresult cuMemAddressFree(CUdeviceptr place, size_t bytes) {
  Guard guard(state().lock);
  state().blocks.erase((char*)place);
  munmap((void*)place, bytes);
  return CUDA_SUCCESS;
}
API CUresult cuMemCreate(CUmemGenericAllocationHandle* found, size_t bytes, const CUmemAllocationProp*, unsigned long long) {
  if (forbidden("cuMemCreate")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  *found = bytes;
  return take(bytes) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
API CUresult cuMemRelease(CUmemGenericAllocationHandle bytes) {
  Guard guard(state().lock);
  state().used -= bytes;
  return CUDA_SUCCESS;
}
FINE(cuMemMap, CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long)
FINE(cuMemUnmap, CUdeviceptr, size_t)
FINE(cuMemSetAccess, CUdeviceptr, size_t, const CUmemAccessDesc*, size_t)

// ---- cuBLAS, whose workspaces PyTorch takes by itself

#define PRODUCT(name) API int name(...) { work("product " #name); return 0; }
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasDotEx)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasLtMatmul)
#define QUIET(name) API int name(...) { return 0; }
QUIET(cublasSetStream_v2)
QUIET(cublasSetWorkspace_v2)
QUIET(cublasSetMathMode)
QUIET(cublasSetPointerMode_v2)
QUIET(cublasDestroy_v2)
QUIET(cublasLtMatmulDescDestroy)
QUIET(cublasLtMatmulDescSetAttribute)
QUIET(cublasLtMatmulPreferenceDestroy)
QUIET(cublasLtMatmulPreferenceSetAttribute)
QUIET(cublasLtMatrixLayoutDestroy)
QUIET(cublasLtMatrixLayoutSetAttribute)
API int cublasCreate_v2(void** found) { make(found); return 0; }
API int cublasGetMathMode(void*, int* found) { *found = 0; return 0; }
API int cublasGetPointerMode_v2(void*, int* found) { *found = 0; return 0; }
static int described(void** found) { *found = calloc(1, 64); return 0; }
API int cublasLtMatmulDescCreate(void** found, ...) { return described(found); }
API int cublasLtMatrixLayoutCreate(void** found, ...) { return described(found); }
API int cublasLtMatmulPreferenceCreate(void** found) { return described(found); }
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* found, int* number) {
  memset(found, 0, 96);  // cublasLtMatmulHeuristicResult_t: without a workspace
  *number = 1;
  return 0;
}

/* libcudart.so.13: memory, copies, streams and graphs. The device's memory is this machine's, of STAND_IN_MEMORY bytes;
   kernels are counted and do nothing. */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include "calls.h"

#define SM 90

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* --- memory: each allocation has a page before it that holds its size --- */

enum { PAGE = 4096, MOST = 1 << 16 };

static struct { char *start; size_t size; } allocations[MOST];
static int count;
static size_t used;

static size_t memory(void) { return (size_t)number_of("STAND_IN_MEMORY", 140LL << 30); }

/* Untouched pages cost nothing, so the device may be larger than this machine. */
static void *pages(size_t size) {
    char *start = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    *(size_t *)start = size;
    return start + PAGE;
}

static size_t size_of(void *start) { return *(size_t *)((char *)start - PAGE); }

static void unmap(void *start) { munmap((char *)start - PAGE, size_of(start) + PAGE); }

static bool on_device(const void *address) {
    pthread_mutex_lock(&lock);
    bool found = false;
    for (int i = 0; i < count && !found; i++)
        found = allocations[i].start <= (char *)address && (char *)address < allocations[i].start + allocations[i].size;
    pthread_mutex_unlock(&lock);
    return found;
}

static cudaError_t allocate(void **address, size_t size) {
    pthread_mutex_lock(&lock);
    void *start = used + size <= memory() && count < MOST ? pages(size) : NULL;
    if (start) {
        used += size;
        allocations[count].start = start;
        allocations[count++].size = size;
    }
    pthread_mutex_unlock(&lock);
    *address = start;
    return start ? cudaSuccess : cudaErrorMemoryAllocation;
}

static void release(void *address) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < count; i++)
        if (allocations[i].start == address) {
            used -= allocations[i].size;
            allocations[i] = allocations[--count];
            unmap(address);
            break;
        }
    pthread_mutex_unlock(&lock);
}

/* --- captures: what CUDA forbids to every thread during a global capture breaks it --- */

static bool capturing, broken;

static cudaError_t unsafe_in_capture(const char *name) {
    if (!capturing)
        return cudaSuccess;
    broken = true;
    log_call("%s breaks the capture", name);
    return cudaErrorStreamCaptureUnsupported;
}

#define UNSAFE(name)                                                                                                   \
    do {                                                                                                               \
        cudaError_t error = unsafe_in_capture(name);                                                                   \
        if (error)                                                                                                     \
            return error;                                                                                              \
    } while (0)

cudaError_t cudaMalloc(void **address, size_t size) {
    log_call("cudaMalloc %zu", size);
    UNSAFE("cudaMalloc");
    return allocate(address, size);
}

cudaError_t cudaMallocFromPoolAsync(void **address, size_t size, cudaMemPool_t pool, cudaStream_t stream) {
    log_call("cudaMallocFromPoolAsync %zu", size);
    return allocate(address, size);
}

cudaError_t cudaFree(void *address) {
    if (!address)
        return cudaSuccess;
    log_call("cudaFree %zu", size_of(address));
    UNSAFE("cudaFree");
    release(address);
    return cudaSuccess;
}

cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) {
    log_call("cudaFreeAsync %zu", size_of(address));
    release(address);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **address, size_t size) {
    log_call("cudaMallocHost %zu", size);
    *address = pages(size);
    return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) { return cudaMallocHost(address, size); }

cudaError_t cudaFreeHost(void *address) {
    if (address)
        unmap(address);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *total = memory();
    *free = used < *total ? *total - used : 0;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = on_device(address) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    return cudaSuccess;
}

/* --- copies --- */

static const char *KINDS[] = {"host-to-host", "host-to-device", "device-to-host", "device-to-device", "default"};

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    log_call("cudaMemcpy %zu %s", size, KINDS[kind]);
    UNSAFE("cudaMemcpy");
    if (number_of("STAND_IN_NO_COPIES", 0))
        return cudaErrorLaunchFailure;
    memmove(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    log_call("cudaMemcpyAsync %zu %s", size, KINDS[kind]);
    memmove(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *address, int value, size_t size) {
    memset(address, value, size);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *address, int value, size_t size, cudaStream_t stream) {
    memset(address, value, size);
    return cudaSuccess;
}

/* --- streams, events and graphs: a stream holds nothing, since every call is done when it returns --- */

static cudaError_t handle(void **made) {
    *made = malloc(64);
    return *made ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return handle((void **)stream); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return handle((void **)stream); }

cudaError_t cudaEventCreate(cudaEvent_t *event) { return handle((void **)event); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return handle((void **)event); }

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) {
    return handle((void **)pool);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 1;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    log_call("cudaStreamSynchronize");
    UNSAFE("cudaStreamSynchronize");
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    log_call("cudaDeviceSynchronize");
    UNSAFE("cudaDeviceSynchronize");
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    log_call("cudaStreamBeginCapture");
    broken = false;
    capturing = true;
    usleep(number_of("STAND_IN_CAPTURE_MS", 0) * 1000); /* time for other threads to come in between */
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    log_call("cudaStreamEndCapture");
    capturing = false;
    if (broken) {
        *graph = NULL;
        return cudaErrorStreamCaptureInvalidated;
    }
    return handle((void **)graph);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
    log_call("cudaGraphInstantiate");
    return handle((void **)executable);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    log_call("cudaGraphLaunch");
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    log_call("cudaGraphExecDestroy");
    free(executable);
    return cudaSuccess;
}

/* --- the device --- */

cudaError_t cudaGetDeviceCount(int *devices) {
    *devices = (int)number_of("STAND_IN_DEVICES", 1);
    return cudaSuccess;
}

static _Thread_local int current;

cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    current = device;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    *found = (struct cudaDeviceProp){
        .name = "stand-in",
        .major = SM / 10,
        .minor = SM % 10,
        .totalGlobalMem = memory(),
        .multiProcessorCount = 132,
        .warpSize = 32,
        .maxThreadsPerBlock = 1024,
        .maxThreadsPerMultiProcessor = 2048,
        .maxThreadsDim = {1024, 1024, 64},
        .maxGridSize = {2147483647, 65535, 65535},
        .sharedMemPerBlock = 49152,
        .sharedMemPerBlockOptin = 232448,
        .sharedMemPerMultiprocessor = 233472,
        .regsPerBlock = 65536,
        .l2CacheSize = 60 << 20,
    };
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = SM / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = SM % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    default: *value = 1;
    }
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "stand-in error";
}

const char *cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorStandIn";
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    *function = NULL;
    return cudaErrorInvalidValue;
}

/* --- kernels: registered by the library that holds them, and never run --- */

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t stream) {
    log_call("cudaLaunchKernel");
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = *block = (dim3){1, 1, 1};
    *shared = 0;
    *(void **)stream = NULL;
    return cudaSuccess;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) { return 0; }

void **__cudaRegisterFatBinary(void *binary) { return malloc(64); }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int size,
                                                                   size_t shared, unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}

/* libcuda.so.1: the driver sees STAND_IN_DEVICES GPUs, one by default, of compute capability 9.0. */
#include <string.h>

#include "calls.h"

int cuInit(unsigned flags) { return 0; }

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}

int cuDeviceGetCount(int *count) {
    *count = (int)number_of("STAND_IN_DEVICES", 1);
    return 0;
}

int cuDeviceGet(int *device, int index) {
    *device = index;
    return 0;
}

int cuDeviceGetName(char *name, int size, int device) {
    strncpy(name, "stand-in", size);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR */ ? 9 : 0;
    return 0;
}

int cuGetErrorName(int error, const char **name) {
    *name = "CUDA_ERROR_STAND_IN";
    return 0;
}

int cuTensorMapEncodeTiled(void) { return 0; }

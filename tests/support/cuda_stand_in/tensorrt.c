/* libnvinfer.so.10 and libnvonnxparser.so.10: ONNX Runtime's TensorRT provider loads and reads its options; the program
   ends with status 42 when it asks for a builder, so nothing is built. */
#include "calls.h"

#define VERSION_10_16 101600

int getInferLibVersion(void) { return VERSION_10_16; }

/* An object of C++, all of whose methods return 0; the second field is where TensorRT's interfaces keep the object that
   does their work. */
static long long zero(void) { return 0; }

#define TEN zero, zero, zero, zero, zero, zero, zero, zero, zero, zero

static long long (*const METHODS[])(void) = {TEN, TEN, TEN, TEN, TEN, TEN};

static struct object { const void *methods; struct object *worker; } empty = {METHODS, &empty};

void *getPluginRegistry(void) { return &empty; }

void *createInferRuntime_INTERNAL(void *logger, int version) {
    log_call("createInferRuntime %d", version);
    return &empty;
}

void *createInferBuilder_INTERNAL(void *logger, int version) {
    log_call("createInferBuilder %d", version);
    _exit(42);
}

void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return NULL; }

void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return NULL; }

void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return NULL; }

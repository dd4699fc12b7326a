/* libcudnn.so.9: descriptors are boxes that remember their kind, every heuristic knows an engine with tensor cores and
   one without, which is marked as plain, and every plan needs STAND_IN_WORKSPACE bytes. A plan remembers the shape of its
   answer, the last tensor that its thread described. */
#include <cudnn_graph.h>
#include <string.h>

#include "calls.h"

enum { AXES = 4 };

struct box { cudnnBackendDescriptorType_t kind; int plain; int64_t answer[AXES]; };

static _Thread_local int64_t described[AXES];

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t kind, cudnnBackendDescriptor_t *made) {
    struct box *box = calloc(1, sizeof *box);
    box->kind = kind;
    *made = (cudnnBackendDescriptor_t)box;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
    if (descriptor && ((struct box *)descriptor)->kind == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)
        log_call("cudnn destroys a plan");
    free(descriptor);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    if (name == CUDNN_ATTR_ENGINEHEUR_MODE) {
        cudnnBackendHeurMode_t mode = *(const cudnnBackendHeurMode_t *)values;
        log_call("cudnn heuristics %s", mode == CUDNN_HEUR_MODE_A   ? "A"
                                        : mode == CUDNN_HEUR_MODE_B ? "B"
                                                                    : "fallback");
    } else if (name == CUDNN_ATTR_TENSOR_DIMENSIONS && count == AXES)
        memcpy(described, values, sizeof described);
    else if (name == CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)
        ((struct box *)descriptor)->plain = (*(struct box *const *)values)->plain;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
    struct box *box = (struct box *)descriptor;
    if (box->kind == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
        log_call(box->plain ? "cudnn plan without tensor cores" : "cudnn plan");
        memcpy(box->answer, described, sizeof described);
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t asked, int64_t *count, void *values) {
    struct box *box = (struct box *)descriptor, **boxes = values;
    int64_t found = 1;
    if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS)
        for (found = 0; found < 2; found++) {
            if (boxes && found < asked)
                boxes[found]->plain = found;
        }
    else if (name == CUDNN_ATTR_ENGINECFG_ENGINE && boxes)
        boxes[0]->plain = box->plain;
    else if (type == CUDNN_TYPE_NUMERICAL_NOTE) {
        found = !box->plain;
        if (values)
            *(cudnnBackendNumericalNote_t *)values = CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
    } else if (type == CUDNN_TYPE_BEHAVIOR_NOTE)
        found = 0;
    else if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && values)
        *(int64_t *)values = number_of("STAND_IN_WORKSPACE", 1024);
    else if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
        found = asked == 1; /* the caller's own descriptor is filled; an engine has no knobs */
    else if (type == CUDNN_TYPE_INT64 && values)
        *(int64_t *)values = 0;
    else if (type != CUDNN_TYPE_BACKEND_DESCRIPTOR && values)
        *(int *)values = 0;
    if (count)
        *count = found;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t library, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
    const int64_t *answer = ((struct box *)plan)->answer;
    log_call("cudnn execute");
    log_call("cudnn answer %ld %ld %ld %ld", answer[0], answer[1], answer[2], answer[3]);
    return CUDNN_STATUS_SUCCESS;
}

int cudnnConvolutionForward(void) { return log_call("cudnn convolution without a plan"), 0; }

int cudnnConvolutionBiasActivationForward(void) { return log_call("cudnn convolution without a plan"), 0; }

int cudnnFindConvolutionForwardAlgorithmEx(void) { return log_call("cudnn search"), 0; }

int cudnnGetConvolutionForwardAlgorithm_v7(void) { return log_call("cudnn search"), 0; }

int cudnnAddTensor(void) { return log_call("cudnn add"), 0; }

int cudnnPoolingForward(void) { return log_call("cudnn pooling"), 0; }

size_t cudnnGetVersion(void) { return 91400; }

const char *cudnnGetErrorString(cudnnStatus_t status) { return "CUDNN_STATUS_STAND_IN"; }

void cudnnGetLastErrorString(char *text, size_t size) { strncpy(text, "stand-in", size); }

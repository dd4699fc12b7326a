/* libnvinfer.so.10 and libnvonnxparser.so.10: the parser takes every node, and an engine is the text that the environment
   gives in STAND_IN_ENGINE; another text is refused. With STAND_IN_NO_CONTEXT no engine can be used, as on a full GPU.
   Sessions open, and running them fails. The numbers are the places of methods in the tables of TensorRT 10's classes
   (NvInferImpl.h, NvOnnxParser.h); those not named here return 0. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "calls.h"

#define VERSION_10_16 101600
#define ALL 0 ... 99

typedef int64_t method(void);

/* An object of C++: its methods, and the object that does its work, which is itself here. */
typedef struct object { method *const *methods; struct object *worker; } object;

#define OBJECT(name, ...)                                                  \
    static method *const name##_methods[] = {[ALL] = zero, __VA_ARGS__};   \
    static object name = {name##_methods, &name};
#define IS(function) (method *)(function)

static int64_t zero(void) { return 0; }

static int64_t one(void) { return 1; }

/* --- sizes of tensors and profiles --- */

typedef struct { int32_t count; int64_t sides[8]; } dimensions;

static const char *image_name(object *self) { return "image"; }

static dimensions *image_dimensions(dimensions *answer, object *self) {
    *answer = (dimensions){4, {-1, -1, -1, 3}};
    return answer;
}

OBJECT(image, [3] = IS(image_name), [5] = IS(image_dimensions))

static const char *probability_name(object *self) { return "probability"; }

OBJECT(probability, [3] = IS(probability_name))

static bool set_dimensions(object *self, const char *name, int32_t which, const dimensions *profile) {
    log_call("tensorrt profile %s %s %lldx%lldx%lldx%lld", name, (const char *[]){"min", "opt", "max"}[which],
             (long long)profile->sides[0], (long long)profile->sides[1], (long long)profile->sides[2],
             (long long)profile->sides[3]);
    return true;
}

OBJECT(profile, [2] = IS(set_dimensions))

/* --- the parser takes every node of the graph --- */

static uint64_t number(const uint8_t **at) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return value;
    }
}

/* Count a field of a protobuf message whose fields are all numbers, strings or messages; `inner` gets the last one. */
static int64_t fields(const uint8_t *at, const uint8_t *end, unsigned field, const uint8_t *inner[2]) {
    int64_t count = 0;
    while (at < end) {
        uint64_t key = number(&at);
        uint64_t length = number(&at);
        if ((key & 7) != 2)
            continue;
        if (key >> 3 == field) {
            count++;
            inner[0] = at, inner[1] = at + length;
        }
        at += length;
    }
    return count;
}

static int64_t nodes;

static bool supports_model(object *self, const uint8_t *model, size_t size, const char *path) {
    const uint8_t *graph[2], *node[2];
    fields(model, model + size, 7, graph);
    nodes = fields(graph[0], graph[1], 1, node);
    return true;
}

static int64_t *subgraph_nodes(object *self, int64_t index, int64_t *length) {
    static int64_t numbers[1 << 16];
    for (int64_t i = 0; i < nodes; i++)
        numbers[i] = i;
    *length = nodes;
    return numbers;
}

OBJECT(parser, [0] = one, [17] = IS(supports_model), [18] = one, [19] = one, [20] = IS(subgraph_nodes))

/* --- the network, the builder and its options --- */

static object *network_input(object *self, int32_t index) { return &image; }

static object *network_output(object *self, int32_t index) { return &probability; }

OBJECT(network, [14] = one, [15] = IS(network_input), [16] = one, [17] = IS(network_output))

static const char *file_data(object *self) {
    const char *text = getenv("STAND_IN_ENGINE");
    return text ? text : "stand-in";
}

static size_t file_size(object *self) { return strlen(file_data(self)); }

OBJECT(file, [2] = IS(file_data), [3] = IS(file_size))

static object *serialize(object *self) { return &file; }

OBJECT(timings, [2] = IS(serialize))

static void set_flag(object *self, int32_t flag) { log_call("tensorrt flag %d", flag); }

static object *timing_cache(object *self, const void *data, size_t size) {
    log_call("tensorrt timings %zu", size);
    return &timings;
}

static object *used_timings(object *self) { return &timings; }

static void set_memory(object *self, int32_t pool, size_t size) { log_call("tensorrt memory %d %zu", pool, size); }

static void set_level(object *self, int32_t level) { log_call("tensorrt level %d", level); }

OBJECT(config, [11] = IS(set_flag), [40] = IS(timing_cache), [41] = one, [42] = IS(used_timings),
       [43] = IS(set_memory), [47] = IS(set_level))

static object *make_config(object *self) { return &config; }

static object *make_network(object *self, uint32_t flags) {
    log_call("tensorrt network %u", flags);
    return &network;
}

static object *make_profile(object *self) { return &profile; }

static object *build(object *self) {
    log_call("tensorrt build");
    return &file;
}

OBJECT(builder, [2] = one, [3] = one, [7] = IS(make_config), [8] = IS(make_network), [9] = IS(make_profile),
       [14] = IS(build))

/* --- engines --- */

OBJECT(context, [2] = zero)

static object *make_context(object *self) { return getenv("STAND_IN_NO_CONTEXT") ? NULL : &context; }

OBJECT(engine, [5] = IS(make_context))

static object *load_engine(object *self, const void *data, size_t size) {
    log_call("tensorrt engine");
    return size == file_size(NULL) && !memcmp(data, file_data(NULL), size) ? &engine : NULL;
}

OBJECT(runtime, [3] = IS(load_engine))

OBJECT(plugins, [2] = zero)

/* --- what the libraries export --- */

int getInferLibVersion(void) { return VERSION_10_16; }

void *getPluginRegistry(void) { return &plugins; }

void *createInferRuntime_INTERNAL(void *logger, int version) { return &runtime; }

void *createInferBuilder_INTERNAL(void *logger, int version) { return &builder; }

void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return NULL; }

void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return &parser; }

void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return NULL; }

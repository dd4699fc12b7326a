/* libnvinfer.so.10: engines that compute nothing are built, written, read and run by ONNX Runtime's TensorRT provider.
   An engine takes the shapes of its profile, and is read only from bytes that were written here. Builds wait while the
   environment has STAND_IN_BUILDS_WAIT=1. */
#include <cuda_runtime_api.h>

#include "tensorrt.h"

#define VERSION_10_16 101600
#define ANSWER 0x3f /* every byte of an engine's answer, 0.747 in fp32 */

enum { WEIGHTS = 1 << 20, ERROR = 1 };

int getInferLibVersion(void) { return VERSION_10_16; }

/* Tell ONNX Runtime's logger, whose first method this is, of an error. */
static void tell(struct object *logger, const char *text) {
    ((void (*)(struct object *, int, const char *))logger->methods[0])(logger, ERROR, text);
}

static const char *text_of(struct dims dims, char *text) {
    char *at = text;
    for (int i = 0; i < dims.count; i++)
        at += sprintf(at, i ? "x%lld" : "%lld", (long long)dims.sides[i]);
    return text;
}

#define TEXT(dims) text_of(dims, (char[SIDES * 21]){""})

static bool within(struct dims low, struct dims dims, struct dims high) {
    bool fits = low.count == dims.count;
    for (int i = 0; i < dims.count && fits; i++)
        fits = low.sides[i] <= dims.sides[i] && dims.sides[i] <= high.sides[i];
    return fits;
}

static size_t size_of(const struct tensor *tensor, struct dims dims) {
    static const int SIZES[] = {4, 2, 1, 4, 1, 1, 1, 2, 8};
    size_t size = SIZES[tensor->type];
    for (int i = 0; i < dims.count; i++)
        size *= dims.sides[i];
    return size;
}

/* --- networks and their tensors --- */

static const char *tensor_name(struct tensor *tensor) { return tensor->name; }
static struct dims tensor_dims(struct tensor *tensor) { return tensor->dims; }
static bool no(void *object) { return false; }
static bool yes(void *object) { return true; }
static int zero(void *object) { return 0; }
static void nothing(void *object) {}

static void *const TENSOR[NUMBERS] = {MISSING, [3] = tensor_name, [5] = tensor_dims, [21] = no};

static int inputs(struct network *network) { return network->inputs; }
static int outputs(struct network *network) { return network->count - network->inputs; }
static struct tensor *input(struct network *network, int number) { return &network->tensors[number]; }

static struct tensor *output(struct network *network, int number) { return &network->tensors[network->inputs + number]; }

static void *const NETWORK[NUMBERS] = {
    MISSING, [1] = release, [14] = inputs, [15] = input, [16] = outputs, [17] = output,
};

/* --- memory of the host: an engine or a timing cache, written --- */

struct host_memory { struct object object; size_t size; char bytes[]; };

static void *data(struct host_memory *memory) { return memory->bytes; }
static size_t size(struct host_memory *memory) { return memory->size; }

static void *const HOST_MEMORY[NUMBERS] = {MISSING, [1] = release, [2] = data, [3] = size};

static struct host_memory *host_memory(const void *bytes, size_t size) {
    struct host_memory *memory = made(sizeof *memory + size, HOST_MEMORY, "IHostMemory");
    memory->size = size;
    memcpy(memory->bytes, bytes, size);
    return memory;
}

/* --- the timing cache: a text that counts the builds it has been through --- */

struct timing { struct object object; int builds; };

static struct host_memory *write_timing(struct timing *timing) {
    char text[NAME];
    return host_memory(text, sprintf(text, "timing of %d builds", timing->builds));
}

static void *const TIMING[NUMBERS] = {MISSING, [1] = release, [2] = write_timing};

/* --- the builder --- */

struct profile { struct object object; char name[NAME]; struct dims ranges[3]; /* smallest, best, largest */ };

static bool set_dimensions(struct profile *profile, const char *name, int which, const struct dims *dims) {
    log_call("tensorrt profile %s %s %s", name, (const char *[]){"min", "opt", "max"}[which], TEXT(*dims));
    strncpy(profile->name, name, NAME - 1);
    profile->ranges[which] = *dims;
    return true;
}

static void *const PROFILE[NUMBERS] = {MISSING, [1] = release, [2] = set_dimensions};

struct config { struct object object; const struct profile *profile; struct timing *timing; };

static void set_flag(struct config *config, int flag) { log_call("tensorrt flag %d", flag); }
static void set_level(struct config *config, int level) { log_call("tensorrt level %d", level); }

static int add_profile(struct config *config, const struct profile *profile) {
    config->profile = profile;
    return 0;
}

static void set_pool(struct config *config, int pool, size_t size) { log_call("tensorrt memory %d %zu", pool, size); }

static struct timing *create_timing(struct config *config, const char *bytes, size_t size) {
    char text[NAME] = "";
    int builds = 0;
    log_call("tensorrt timings %zu", size);
    memcpy(text, bytes, size < NAME ? size : NAME - 1);
    if (size && sscanf(text, "timing of %d builds", &builds) != 1)
        return NULL;
    struct timing *timing = made(sizeof *timing, TIMING, "ITimingCache");
    timing->builds = builds;
    return timing;
}

static bool set_timing(struct config *config, struct timing *timing, bool other_device) {
    config->timing = timing;
    return true;
}

static struct timing *get_timing(struct config *config) { return config->timing; }

static void *const CONFIG[NUMBERS] = {
    MISSING, [1] = release, [11] = set_flag, [25] = add_profile, [38] = yes, [39] = zero, [40] = create_timing,
    [41] = set_timing, [42] = get_timing, [43] = set_pool, [47] = set_level,
};

struct plan { char version[NAME]; uint64_t sum; struct network network; };

/* Engines of another version are refused. */
static const char *version(void) {
    const char *text = getenv("STAND_IN_ENGINE");
    return text ? text : "stand-in";
}

static uint64_t sum_of(const struct plan *plan) { return hash_of(&plan->network, sizeof plan->network); }

struct builder { struct object object; struct object *logger; };

static void *create_config(struct builder *builder) { return made(sizeof(struct config), CONFIG, "IBuilderConfig"); }

static void *create_network(struct builder *builder, unsigned flags) {
    log_call("tensorrt network %u", flags);
    struct network *network = made(sizeof *network, NETWORK, "INetworkDefinition");
    for (int i = 0; i < TENSORS; i++)
        network->tensors[i].object = (struct object){TENSOR, &network->tensors[i].object, "ITensor"};
    return network;
}

static void *create_profile(struct builder *builder) {
    return made(sizeof(struct profile), PROFILE, "IOptimizationProfile");
}

/* Put the ranges of the profile into the network's inputs, or return false. */
static bool apply(const struct profile *profile, struct network *network) {
    for (int i = 0; i < network->inputs; i++) {
        struct tensor *tensor = &network->tensors[i];
        bool named = profile && !strcmp(profile->name, tensor->name);
        tensor->low = named ? profile->ranges[0] : tensor->dims;
        tensor->high = named ? profile->ranges[2] : tensor->dims;
        if (tensor->low.sides[0] < 0 || !within(tensor->low, tensor->low, tensor->high))
            return false;
    }
    return true;
}

static void *build(struct builder *builder, struct network *network, struct config *config) {
    struct plan plan = {.network = *network};
    strncpy(plan.version, version(), NAME - 1);
    if (!apply(config->profile, &plan.network)) {
        tell(builder->logger, "Network has dynamic inputs, but no optimization profile has been defined");
        return NULL;
    }
    log_call("tensorrt build");
    if (config->timing)
        config->timing->builds++;
    while (number_of("STAND_IN_BUILDS_WAIT", 0))
        usleep(1000);
    plan.sum = sum_of(&plan);
    return host_memory(&plan, sizeof plan);
}

static void *const BUILDER[NUMBERS] = {
    MISSING, [1] = release, [2] = yes, [3] = yes, [7] = create_config, [8] = create_network,
    [9] = create_profile, [14] = build,
};

void *createInferBuilder_INTERNAL(struct object *logger, int version) {
    struct builder *builder = made(sizeof *builder, BUILDER, "IBuilder");
    builder->logger = logger;
    return builder;
}

/* --- execution contexts --- */

struct context {
    struct object object;
    struct object *logger;
    struct network *network; /* the engine's, with the shapes of this run in `dims` */
    void *memory, *addresses[TENSORS];
};

static int place_of(const struct network *network, const char *name) {
    for (int i = 0; i < network->count; i++)
        if (!strcmp(network->tensors[i].name, name))
            return i;
    fprintf(stderr, "the stand-in for TensorRT has no tensor %s\n", name);
    _exit(43);
}

static struct tensor *named(struct network *network, const char *name) {
    return &network->tensors[place_of(network, name)];
}

static bool set_shape(struct context *context, const char *name, const struct dims *dims) {
    struct tensor *tensor = named(context->network, name);
    if (!within(tensor->low, *dims, tensor->high)) {
        tell(context->logger, "Set dimensions do not satisfy any optimization profile");
        return false;
    }
    tensor->dims = *dims;
    return true;
}

/* The side of an input that has this symbol. */
static int64_t side_of(const struct network *network, const char *symbol) {
    for (int i = 0; i < network->inputs; i++)
        for (int j = 0; j < network->tensors[i].dims.count; j++)
            if (!strcmp(network->tensors[i].symbols[j], symbol))
                return network->tensors[i].dims.sides[j];
    return -1;
}

static struct dims shape(struct context *context, const char *name) {
    const struct tensor *tensor = named(context->network, name);
    struct dims dims = tensor->dims;
    for (int i = 0; i < dims.count && !tensor->input; i++)
        if (tensor->symbols[i][0])
            dims.sides[i] = side_of(context->network, tensor->symbols[i]);
    return dims;
}

static bool set_address(struct context *context, const char *name, void *address) {
    context->addresses[place_of(context->network, name)] = address;
    return true;
}

static bool enqueue(struct context *context, cudaStream_t stream) {
    struct network *network = context->network;
    log_call("tensorrt run %s", TEXT(network->tensors[0].dims));
    for (int i = network->inputs; i < network->count; i++) {
        struct tensor *tensor = &network->tensors[i];
        cudaMemsetAsync(context->addresses[i], ANSWER, size_of(tensor, shape(context, tensor->name)), stream);
    }
    return true;
}

static void release_context(struct context *context) {
    cudaFree(context->memory);
    free(context->network);
    free(context);
}

static void *const CONTEXT[NUMBERS] = {
    MISSING, [1] = release_context, [10] = nothing, [21] = set_shape, [22] = shape, [24] = set_address,
    [37] = enqueue,
};

/* --- engines --- */

struct engine { struct object object; struct object *logger; struct network network; void *weights; };

/* Memory of a context: sixteen times what its tensors take at most. */
static int64_t context_size(struct engine *engine) {
    size_t size = 0;
    for (int i = 0; i < engine->network.inputs; i++)
        size += 16 * size_of(&engine->network.tensors[i], engine->network.tensors[i].high);
    return (int64_t)size;
}

static void *create_context(struct engine *engine, int strategy) {
    void *memory = NULL;
    if (strategy != 2 && cudaMalloc(&memory, context_size(engine))) { /* 2: the caller brings the memory */
        tell(engine->logger, "Error Code 2: OutOfMemory (Requested size for the context)");
        return NULL;
    }
    log_call("tensorrt context");
    struct context *context = made(sizeof *context, CONTEXT, "IExecutionContext");
    context->logger = engine->logger;
    context->memory = memory;
    context->network = malloc(sizeof engine->network);
    *context->network = engine->network;
    return context;
}

static int engine_type(struct engine *engine, const char *name) { return named(&engine->network, name)->type; }
static int direction(struct engine *engine, const char *name) { return named(&engine->network, name)->input ? 1 : 2; }
static int tensors(struct engine *engine) { return engine->network.count; }
static const char *engine_tensor(struct engine *engine, int number) { return engine->network.tensors[number].name; }

static void release_engine(struct engine *engine) {
    log_call("tensorrt close");
    cudaFree(engine->weights);
    free(engine);
}

static void *const ENGINE[NUMBERS] = {
    MISSING, [1] = release_engine, [5] = create_context, [20] = engine_type, [22] = no, 
    [23] = direction, [30] = tensors, [31] = engine_tensor, [52] = context_size,
};

struct runtime { struct object object; struct object *logger; };

static void *read_engine(struct runtime *runtime, const struct plan *plan, size_t size) {
    bool ours = size == sizeof *plan && !strncmp(plan->version, version(), NAME) && plan->sum == sum_of(plan);
    log_call(ours ? "tensorrt engine" : "tensorrt refused");
    if (!ours) {
        tell(runtime->logger, "Error Code 1: Serialization (the engine is damaged or another version's)");
        return NULL;
    }
    void *weights;
    if (cudaMalloc(&weights, WEIGHTS)) {
        tell(runtime->logger, "Error Code 2: OutOfMemory (Requested size for the weights)");
        return NULL;
    }
    struct engine *engine = made(sizeof *engine, ENGINE, "ICudaEngine");
    engine->logger = runtime->logger;
    engine->network = plan->network;
    engine->weights = weights;
    return engine;
}

static void *const RUNTIME[NUMBERS] = {MISSING, [1] = release, [3] = read_engine};

void *createInferRuntime_INTERNAL(struct object *logger, int version) {
    struct runtime *runtime = made(sizeof *runtime, RUNTIME, "IRuntime");
    runtime->logger = logger;
    return runtime;
}

void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return NULL; }

/* --- the registry of plugins, of which there are none --- */

static void *no_creators(void *object, int *count) { return NULL; }

static void *const REGISTRY[NUMBERS] = {MISSING, [13] = no_creators};
static struct object registry = {REGISTRY, &registry, "IPluginRegistry"};

void *getPluginRegistry(void) { return &registry; }

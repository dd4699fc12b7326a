/* libnvonnxparser.so.10: reads the inputs and outputs of an ONNX model, and supports every node. */
#include "tensorrt.h"

/* --- protobuf: fields of a message, as far as ONNX uses them --- */

struct bytes { const unsigned char *at, *end; };

struct field { int number; uint64_t value; struct bytes bytes; };

static uint64_t varint(struct bytes *from) {
    uint64_t value = 0;
    for (int shift = 0; from->at < from->end; shift += 7) {
        value |= (uint64_t)(*from->at & 127) << shift;
        if (!(*from->at++ & 128))
            break;
    }
    return value;
}

static bool next(struct bytes *message, struct field *field) {
    if (message->at >= message->end)
        return false;
    uint64_t key = varint(message);
    *field = (struct field){.number = (int)(key >> 3)};
    size_t size = (key & 7) == 5 ? 4 : (key & 7) == 1 ? 8 : 0;
    if ((key & 7) == 0)
        field->value = varint(message);
    if ((key & 7) == 2)
        size = varint(message);
    field->bytes = (struct bytes){message->at, message->at + size};
    message->at += size;
    return true;
}

static struct bytes part(struct bytes message, int number) {
    struct field field;
    while (next(&message, &field))
        if (field.number == number)
            return field.bytes;
    return (struct bytes){NULL, NULL};
}

static void copy(char *to, struct bytes text) {
    size_t size = text.end - text.at;
    memcpy(to, text.at, size < NAME ? size : NAME - 1);
}

/* --- models: numbers of fields as in onnx.proto --- */

enum { MODEL_GRAPH = 7, GRAPH_NODE = 1, GRAPH_INPUT = 11, GRAPH_OUTPUT = 12, VALUE_NAME = 1, VALUE_TYPE = 2 };
enum { TYPE_TENSOR = 1, TENSOR_TYPE = 1, TENSOR_SHAPE = 2, SHAPE_DIM = 1, DIM_VALUE = 1, DIM_SYMBOL = 2 };

/* TensorRT's number of a type of ONNX: float, half, int8, int32, bool, uint8, int64. */
static int type_of(uint64_t type) {
    static const int TYPES[] = {-1, 0, 5, 2, -1, -1, 3, 8, -1, 4, 1};
    return type < sizeof TYPES / sizeof *TYPES ? TYPES[type] : -1;
}

static void read_tensor(struct tensor *tensor, struct bytes value, bool input) {
    struct object object = tensor->object;
    *tensor = (struct tensor){.object = object, .input = input};
    copy(tensor->name, part(value, VALUE_NAME));
    struct bytes type = part(part(value, VALUE_TYPE), TYPE_TENSOR), shape = part(type, TENSOR_SHAPE);
    struct field field;
    while (next(&type, &field))
        if (field.number == TENSOR_TYPE)
            tensor->type = type_of(field.value);
    while (next(&shape, &field)) {
        int side = tensor->dims.count++;
        tensor->dims.sides[side] = -1;
        struct field dim;
        while (next(&field.bytes, &dim))
            if (dim.number == DIM_VALUE)
                tensor->dims.sides[side] = (int64_t)dim.value;
            else if (dim.number == DIM_SYMBOL)
                copy(tensor->symbols[side], dim.bytes);
    }
}

struct parser {
    struct object object;
    struct network *network;
    int64_t nodes, *numbers;
};

static bool parse(struct parser *parser, const void *model, size_t size, const char *path) {
    struct bytes whole = {model, (const unsigned char *)model + size}, graph = part(whole, MODEL_GRAPH), rest = graph;
    struct network *network = parser->network;
    struct field field;
    parser->nodes = 0;
    network->model = hash_of(model, size);
    network->count = network->inputs = 0;
    for (; next(&rest, &field);)
        if (field.number == GRAPH_NODE)
            parser->nodes++;
        else if (field.number == GRAPH_INPUT)
            read_tensor(&network->tensors[network->count++], field.bytes, true), network->inputs++;
        else if (field.number == GRAPH_OUTPUT)
            read_tensor(&network->tensors[network->count++], field.bytes, false);
    return true;
}

static bool supports_model(struct parser *parser, const void *model, size_t size, const char *path) {
    parse(parser, model, size, path);
    parser->numbers = realloc(parser->numbers, parser->nodes * sizeof *parser->numbers);
    for (int64_t i = 0; i < parser->nodes; i++)
        parser->numbers[i] = i;
    return true;
}

static int64_t subgraphs(struct parser *parser) { return 1; }

static int64_t *nodes_of(struct parser *parser, int64_t subgraph, int64_t *count) {
    *count = parser->nodes;
    return parser->numbers;
}

static void release_parser(struct parser *parser) {
    free(parser->numbers);
    free(parser);
}

static int no_errors(struct parser *parser) { return 0; }

static void *const PARSER[NUMBERS] = {
    MISSING, [0] = parse, [5] = no_errors, [9] = release_parser, [17] = supports_model, [18] = subgraphs,
    [20] = nodes_of,
};

void *createNvOnnxParser_INTERNAL(struct network *network, void *logger, int version) {
    struct parser *parser = made(sizeof *parser, PARSER, "IParser");
    parser->network = network;
    return parser;
}

void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return NULL; }

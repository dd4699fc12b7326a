/* What the stand-ins for TensorRT's two libraries share. An object of TensorRT is a table of methods, which the caller
   picks by their numbers, and a worker: its inline methods call those of the worker. Here an object is its own worker.
   The numbers follow the order of the methods in the public headers NvInferImpl.h and NvOnnxParser.h of TensorRT 10. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "calls.h"

enum { SIDES = 8, TENSORS = 4, NAME = 32, NUMBERS = 64 };

struct object { void *const *methods; struct object *worker; const char *kind; };

struct dims { int32_t count; int64_t sides[SIDES]; };

/* An input or output of a network; side -1 is free and has a symbol. */
struct tensor {
    struct object object;
    char name[NAME];
    int type;
    bool input;
    struct dims dims, low, high;
    char symbols[SIDES][NAME];
};

struct network {
    struct object object;
    uint64_t model; /* a hash over the bytes of the model */
    int count, inputs;
    struct tensor tensors[TENSORS]; /* the inputs first */
};

/* A method that the stand-in does not have ends the program, and tells its number. */
static long missing(struct object *object, int number) {
    const char *kind = object && object->worker == object ? object->kind : "object";
    fprintf(stderr, "the stand-in for TensorRT has no method %d of %s\n", number, kind);
    log_call("missing %s %d", kind, number);
    _exit(43);
}

#define ONE(number) static long missing_##number(struct object *object) { return missing(object, 0##number); }
#define EIGHT(ten) ONE(ten##0) ONE(ten##1) ONE(ten##2) ONE(ten##3) ONE(ten##4) ONE(ten##5) ONE(ten##6) ONE(ten##7)
EIGHT(0) EIGHT(1) EIGHT(2) EIGHT(3) EIGHT(4) EIGHT(5) EIGHT(6) EIGHT(7)

#define NAMES(ten)                                                                                                     \
    missing_##ten##0, missing_##ten##1, missing_##ten##2, missing_##ten##3, missing_##ten##4, missing_##ten##5,        \
        missing_##ten##6, missing_##ten##7
/* The start of every table of methods: numbers are octal above, so that they can be made from two digits. */
#define MISSING NAMES(0), NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5), NAMES(6), NAMES(7)

/* Make an object of `size` bytes, all 0 but for its table and its worker. */
static void *made(size_t size, void *const *methods, const char *kind) {
    struct object *object = calloc(1, size);
    *object = (struct object){methods, object, kind};
    return object;
}

static void release(struct object *object) { free(object); }

static uint64_t hash_of(const void *bytes, size_t size) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    return hash;
}

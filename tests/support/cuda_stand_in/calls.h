/* The log of calls: one line each, appended to the file that the environment names in STAND_IN_CALLS. */
#pragma once

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void log_call(const char *format, ...) {
    const char *path = getenv("STAND_IN_CALLS");
    if (!path)
        return;
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    line[length++] = '\n';
    int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600); /* appended whole, so threads and processes may share it */
    if (file >= 0) {
        if (write(file, line, length) < 0)
            abort();
        close(file);
    }
}

/* A number of the environment, read at every call, so that a program may change it while it runs. */
static inline long long number_of(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text ? atoll(text) : otherwise;
}

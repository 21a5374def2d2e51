/* What the fuzz targets share: dims.c as it is, checks that hold without
 * NDEBUG too, choices that depend on the input alone. */
#ifndef FUZZ_H
#define FUZZ_H

#include "../../dims.c"

#define CHECK(good) do { \
        if (!(good)) { \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, \
                    #good); \
            abort(); \
        } \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* A copy that ends where its memory ends, for ASan to watch. */
__attribute__((unused))
static char *exact(const void *p, size_t n) {
    char *copy = malloc(n ? n : 1);
    CHECK(copy);
    if (n) memcpy(copy, p, n);
    return copy;
}

/* The same input makes the same choices: xorshift from its FNV hash. */
static uint64_t chance_state;

__attribute__((unused))
static void chance_seed(const uint8_t *data, size_t n) {
    chance_state = 0xcbf29ce484222325;
    for (size_t i = 0; i < n; i++)
        chance_state = (chance_state ^ data[i]) * 0x100000001b3;
    chance_state |= 1;
}

/* 0 to below - 1. */
__attribute__((unused))
static size_t chance(size_t below) {
    chance_state ^= chance_state << 13;
    chance_state ^= chance_state >> 7;
    chance_state ^= chance_state << 17;
    return (size_t)((chance_state >> 11) % below);
}

#endif

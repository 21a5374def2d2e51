/* Range headers: a byte that picks the size, then the header's value. */
#include "fuzz.h"

/* An element of the list, read plainly: 1 usable, 0 not, -1 nonsense. */
static int plain_range(struct span spec, uint64_t size, struct http_range *r) {
    char text[4096], *end;
    if (spec.n >= sizeof text) return -1;
    memcpy(text, spec.p, spec.n);
    text[spec.n] = 0;
    const char *dash = strchr(text, '-');
    if (strlen(text) != spec.n || !dash) return -1;
    bool first = false, last = false;
    for (const char *p = text; *p; p++) {
        if (p == dash) continue;
        if (*p == ' ' || *p == '\t') continue;
        if (*p < '0' || *p > '9') return -1;
        if (p < dash) first = true;
        else last = true;
    }
    /* No blank within a number. */
    unsigned runs = 0;
    for (const char *p = text; *p; p++)
        runs += p[0] >= '0' && p[0] <= '9' && !(p[1] >= '0' && p[1] <= '9');
    if (runs != (unsigned)first + last || !runs) return -1;
    uint64_t to = last ? strtoull(dash + 1, &end, 10) : UINT64_MAX;
    if (!first) {
        if (!to || !size) return 0;
        *r = (struct http_range){to < size ? size - to : 0, size - 1};
        return 1;
    }
    uint64_t from = strtoull(text, &end, 10);
    if (from >= size || to < from) return 0;
    *r = (struct http_range){from, to < size ? to : size - 1};
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const uint64_t sizes[] = {0, 1, 10, 100, 1000, 1 << 20,
                                     INT64_MAX - 1, INT64_MAX};
    if (!n) return 0;
    uint64_t size = sizes[data[0] % 8], sum = 0;
    struct request *r = base_alloc(sizeof *r);
    struct http_range *range = 0, one;
    unsigned count = 0, at = 0;
    r->method = span_of("GET");
    struct span rest = {(const char *)data + 1, n - 1};
    r->header[HEADER_RANGE] = rest;
    enum http_result rc = http_ranges(r, size, &range, &count);
    CHECK(rc == HTTP_OK ? count > 0 && count <= HTTP_RANGES_MAX
                        : rc == HTTP_MORE || !count);
    for (unsigned i = 0; rc == HTTP_OK && i < count; i++) {
        CHECK(range[i].from <= range[i].to && range[i].to < size);
        sum += range[i].to - range[i].from + 1;
        CHECK(sum <= size);
    }
    bool nonsense = false;
    span_cut(&rest, '=');
    while (rest.n && rc != HTTP_MORE) {
        struct span spec = span_trim(span_cut(&rest, ','));
        int good = spec.n ? plain_range(spec, size, &one) : 0;
        nonsense |= good < 0;
        if (good != 1) continue;
        CHECK(at < count);
        CHECK(range[at].from == one.from && range[at].to == one.to);
        at++;
    }
    CHECK(!nonsense && (rc != HTTP_OK || at == count));
    arena_free(&r->arena);
    free(r);
    return 0;
}

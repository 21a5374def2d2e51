/* A connection's bytes: head, request, chunks. However they are cut into
 * pieces, the result is that of the whole; what is accepted also passes a
 * plain second reading. */
#include "fuzz.h"

struct outcome {
    enum http_result head, parsed, body;
    enum error error;
    size_t head_n, used;
    bool chunked;
    struct buf out;
};

static bool is_name(struct span line, const char *name) {
    return memchr(line.p, ':', line.n) &&
           span_is_nocase(span_cut(&line, ':'), name);
}

/* RFC 9112 once more, line by line: what may never get through. */
static void check_request(const struct request *r, struct span head) {
    unsigned lengths = 0, codings = 0, hosts = 0, lines = 0;
    CHECK(!memchr(head.p, 0, head.n));
    while (head.n) {
        struct span line = span_cut(&head, '\n');
        CHECK(line.n && line.p[line.n - 1] == '\r');
        line.n--;
        CHECK(!memchr(line.p, '\r', line.n));
        if (!line.n) break;
        CHECK(*line.p > ' ');
        if (lines++) {
            const char *colon = memchr(line.p, ':', line.n);
            CHECK(colon && colon > line.p && colon[-1] > ' ');
            lengths += is_name(line, "content-length");
            codings += is_name(line, "transfer-encoding");
            hosts += is_name(line, "host");
        }
    }
    CHECK(!head.n);
    CHECK(lengths + codings <= 1 && hosts <= 1);
    CHECK(r->has_length == (lengths == 1) && r->is_chunked == (codings == 1));
    CHECK(hosts || !r->minor);
    CHECK(r->length <= INT64_MAX);
    CHECK(r->method.n && r->path.n);
    CHECK(*r->path.p == '/' || (span_is(r->path, "*") &&
                                span_is(r->method, "OPTIONS")));
    CHECK(!memchr(r->path.p, '?', r->path.n));
    CHECK(!memchr(r->path.p, '#', r->path.n));
}

/* Chunks once more, as simply as can be; -1 where they do not end. */
static ssize_t plain_dechunk(struct span in, struct buf *out) {
    const char *start = in.p;
    for (;;) {
        struct span line = span_cut(&in, '\n');
        uint64_t n = 0;
        for (size_t i = 0; i < line.n; i++) {
            int digit = codec_nibble(line.p[i]);
            if (digit < 0) break;
            n = n << 4 | (unsigned)digit;
        }
        if (!n) break;
        if (in.n < n + 2 || memcmp(in.p + n, "\r\n", 2)) return -1;
        buf_put(out, in.p, (size_t)n);
        in = (struct span){in.p + n + 2, in.n - (size_t)n - 2};
    }
    while (in.n) {
        struct span line = span_cut(&in, '\n');
        if (span_is(line, "\r")) return in.p - start;
    }
    return -1;
}

static void read_head(struct span in, struct outcome *o, bool split) {
    size_t at = 0, have = split ? 0 : in.n;
    o->head = HTTP_MORE;
    do {
        if (split) have += 1 + chance(have > 256 ? in.n : 8);
        if (have > in.n) have = in.n;
        char *copy = exact(in.p, have);
        o->error = E_NONE;
        o->head = http_head_end((struct span){copy, have}, &at, &o->error);
        CHECK(at <= have);
        free(copy);
    } while (o->head == HTTP_MORE && have < in.n);
    o->head_n = at;
}

static void read_chunks(struct span in, struct outcome *o, bool split) {
    struct chunked c = {.state = CHUNK_SIZE};
    o->body = HTTP_MORE;
    while (o->body == HTTP_MORE && o->used < in.n) {
        size_t n = in.n - o->used, out = 0, used = 0;
        if (split) n = 1 + chance(n < 9 ? n : chance(2) ? 8 : n);
        char *copy = exact(in.p + o->used, n);
        o->body = http_dechunk(&c, copy, n, &out, &used);
        if (o->body != HTTP_BAD) {
            CHECK(out <= used && used <= n);
            CHECK(used == n || o->body == HTTP_OK);
            buf_put(&o->out, copy, out);
            o->used += used;
        }
        free(copy);
    }
}

static void run(struct span in, struct outcome *o, bool split) {
    memset(o, 0, sizeof *o);
    buf_init(&o->out, 0, 1 << 20);
    read_head(in, o, split);
    if (o->head != HTTP_OK) return;
    struct request *r = base_alloc(sizeof *r);
    char *copy = exact(in.p, o->head_n);
    struct span head = {copy, o->head_n};
    o->parsed = http_parse(r, head, &o->error);
    CHECK((o->parsed == HTTP_OK) == !o->error);
    if (o->parsed == HTTP_OK) check_request(r, head);
    o->chunked = o->parsed == HTTP_OK && r->is_chunked;
    arena_free(&r->arena);
    free(copy);
    free(r);
    in = (struct span){in.p + o->head_n, in.n - o->head_n};
    if (o->chunked) read_chunks(in, o, split);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct span in = {(const char *)data, n};
    struct outcome whole, parts;
    chance_seed(data, n);
    run(in, &whole, false);
    for (int i = 0; i < 3; i++) {
        run(in, &parts, true);
        CHECK(parts.head == whole.head && parts.parsed == whole.parsed);
        /* Past the limit it depends on what has come which limit it is. */
        CHECK(parts.error == whole.error || n >= HTTP_HEAD_MAX);
        CHECK(parts.body == whole.body);
        if (whole.head == HTTP_OK) CHECK(parts.head_n == whole.head_n);
        if (whole.chunked && whole.body != HTTP_BAD) {
            CHECK(parts.used == whole.used);
            CHECK(!span_compare(buf_view(&parts.out), buf_view(&whole.out)));
        }
        buf_free(&parts.out);
    }
    if (whole.chunked && whole.body == HTTP_OK) {
        struct buf plain;
        buf_init(&plain, 0, 1 << 20);
        struct span rest = {in.p + whole.head_n, n - whole.head_n};
        CHECK(plain_dechunk(rest, &plain) == (ssize_t)whole.used);
        CHECK(!span_compare(buf_view(&plain), buf_view(&whole.out)));
        buf_free(&plain);
    }
    buf_free(&whole.out);
    return 0;
}

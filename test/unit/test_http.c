/* HTTP: heads, framing, chunks, ranges, queries and answers. All input ends
 * at an unmapped page. */
#include "unit.h"

#define GET "GET / HTTP/1.1\r\n"
#define HOST "Host: h\r\n"
#define END "\r\n"

static struct arena arena;

static int reset(void **state) {
    (void)state;
    arena_free(&arena);
    return 0;
}

static struct request *request(void) {
    struct request *r = arena_alloc(&arena, sizeof *r);
    r->file = -1;
    return r;
}

static void done(struct request *r) {
    arena_free(&r->arena);
}

/* ---- the head's end */

static enum http_result head_end(struct span in, size_t *at,
                                 enum error *error) {
    *at = 0;
    *error = E_NONE;
    return http_head_end(guarded(in), at, error);
}

static void heads_end_at_an_empty_line(void **state) {
    (void)state;
    const struct {
        struct span in;
        enum http_result result;
        size_t length;
    } rows[] = {
        {S(""), HTTP_MORE, 0},
        {S("G"), HTTP_MORE, 0},
        {S("GET / HTTP/1.1"), HTTP_MORE, 0},
        {S("GET / HTTP/1.1\r"), HTTP_MORE, 0},
        {S(GET), HTTP_MORE, 0},
        {S(GET HOST), HTTP_MORE, 0},
        {S(GET HOST "\r"), HTTP_MORE, 0},
        {S(GET HOST END), HTTP_OK, sizeof(GET HOST END) - 1},
        {S(GET END), HTTP_OK, sizeof(GET END) - 1},
        {S(GET HOST END "body\n\r\n\r\n"), HTTP_OK, sizeof(GET HOST END) - 1},
        {S("\r\n" GET HOST END), HTTP_BAD, 0},
        {S(" " GET), HTTP_BAD, 0}, {S("\0"), HTTP_BAD, 0},
        {S("\x16\x03\x01"), HTTP_BAD, 0},       /* a TLS ClientHello */
        {S("GET / HTTP/1.1\n"), HTTP_BAD, 0},
        {S(GET "Host: h\n\r\n"), HTTP_BAD, 0},
        {S(GET HOST "\n"), HTTP_BAD, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t at;
        enum error e;
        assert_row(head_end(rows[i].in, &at, &e) == rows[i].result, i);
        if (rows[i].result == HTTP_OK) assert_row(at == rows[i].length, i);
        if (rows[i].result == HTTP_BAD) assert_row(e == E_BAD_REQUEST, i);
    }
}

static void heads_may_come_in_two_pieces(void **state) {
    (void)state;
    const struct span texts[] = {
        S(GET HOST "A: b\r\n" END "rest\r\n\r\n"), S(GET "A: b\n\r\n"),
        S("GET / HTTP/1.1\r\r\n\r\n"), S(GET HOST "\r\r\n\r\n"),
    };
    for (size_t i = 0; i < COUNT(texts); i++) {
        size_t want_at;
        enum error want_e;
        enum http_result want = head_end(texts[i], &want_at, &want_e);
        for (size_t cut = 0; cut < texts[i].n; cut++) {
            size_t at;
            enum error e;
            struct span part = {texts[i].p, cut};
            enum http_result got = head_end(part, &at, &e);
            if (got == HTTP_MORE)
                got = http_head_end(guarded(texts[i]), &at, &e);
            assert_row(got == want && e == want_e, cut);
            if (want == HTTP_OK) assert_row(at == want_at, cut);
        }
    }
}

static void heads_have_a_limit(void **state) {
    (void)state;
    char *text = arena_alloc(&arena, HTTP_HEAD_MAX + 8);
    size_t at;
    enum error e;
    memset(text, 'x', HTTP_HEAD_MAX + 8);
    struct span all = {text, HTTP_HEAD_MAX - 1};
    assert_int_equal(head_end(all, &at, &e), HTTP_MORE);
    all.n = HTTP_HEAD_MAX;
    assert_int_equal(head_end(all, &at, &e), HTTP_BAD);
    assert_int_equal(e, E_URI_LONG);
    memcpy(text, GET, sizeof GET - 1);
    assert_int_equal(head_end(all, &at, &e), HTTP_BAD);
    assert_int_equal(e, E_HEAD_LARGE);
    memcpy(text + HTTP_HEAD_MAX - 4, "\r\n\r\n", 4);
    assert_int_equal(head_end(all, &at, &e), HTTP_OK);
    assert_int_equal(at, HTTP_HEAD_MAX);
    memcpy(text + HTTP_HEAD_MAX - 4, "x\r\n\r\n", 5);
    all.n = HTTP_HEAD_MAX + 1;
    assert_int_equal(head_end(all, &at, &e), HTTP_BAD);
    assert_int_equal(e, E_HEAD_LARGE);
}

/* ---- the request */

static enum error parse(struct request *r, struct span head) {
    enum error e = E_NONE;
    enum http_result rc = http_parse(r, guarded(head), &e);
    assert_int_equal(rc, e ? HTTP_BAD : HTTP_OK);
    return e;
}

static void requests(void **state) {
    (void)state;
    struct request *r = request();
    assert_int_equal(parse(r, S(
        "PUT /v2/a/b?x=1&y=2?3 HTTP/1.1\r\n"
        "hOST:localhost:8000\r\n"
        "Content-Length:\t 12 \t\r\n"
        "Content-Type: text/plain; charset=\"x\xc3\xa9\"\r\n"
        "X-Other: a:b\r\n"
        "X-Empty:\r\n"
        "EXPECT: 100-Continue\r\n"
        "User-Agent: first\r\n"
        "User-Agent: second\r\n" END)), E_NONE);
    assert_span(r->method, "PUT");
    assert_span(r->target, "/v2/a/b?x=1&y=2?3");
    assert_span(r->path, "/v2/a/b");
    assert_span(r->query, "x=1&y=2?3");
    assert_int_equal(r->minor, 1);
    assert_true(r->has_length && r->length == 12);
    assert_true(r->expects && r->keep_alive);
    assert_false(r->is_chunked || r->is_head);
    assert_span(r->header[HEADER_HOST], "localhost:8000");
    assert_span(r->header[HEADER_CONTENT_TYPE],
                "text/plain; charset=\"x\xc3\xa9\"");
    assert_span(r->header[HEADER_USER_AGENT], "first");
    assert_null(r->header[HEADER_RANGE].p);

    r = request();
    assert_int_equal(parse(r, S("HEAD http://h:1/x?y HTTP/1.1\r\n" HOST
                                "Connection: foo , CLOSE\r\n" END)), E_NONE);
    assert_span(r->path, "/x");
    assert_span(r->query, "y");
    assert_true(r->is_head);
    assert_false(r->keep_alive || r->has_length || r->expects);

    r = request();
    assert_int_equal(parse(r, S("POST / HTTP/1.1\r\n" HOST
                                "Transfer-Encoding: Chunked\r\n"
                                "Expect: 100-continue\r\n" END)), E_NONE);
    assert_true(r->is_chunked && r->expects && !r->has_length);

    /* HTTP/1.0: Host may be missing, Expect does not count. */
    r = request();
    assert_int_equal(parse(r, S("GET / HTTP/1.0\r\nExpect: x\r\n" END)),
                     E_NONE);
    assert_false(r->keep_alive || r->expects || r->minor);
    r = request();
    assert_int_equal(parse(r, S("GET / HTTP/1.0\r\n"
                                "Connection: Keep-Alive\r\n" END)), E_NONE);
    assert_true(r->keep_alive);

    r = request();
    assert_int_equal(parse(r, S(GET HOST "Expect: 100-continue\r\n"
                                "Content-Length: 0\r\n" END)), E_NONE);
    assert_false(r->expects);

    r = request();
    assert_int_equal(parse(r, S("OPTIONS * HTTP/1.1\r\n" HOST END)), E_NONE);
    assert_span(r->path, "*");
}

static void request_lines(void **state) {
    (void)state;
    const struct {
        struct span line;
        enum error error;
    } rows[] = {
        {S("GET / HTTP/1.1"), E_NONE}, {S("GET / HTTP/1.0"), E_NONE},
        {S("M-SEARCH / HTTP/1.1"), E_NONE},
        {S("GET http://h HTTP/1.1"), E_NONE},
        {S("GET https://h/ HTTP/1.1"), E_NONE},
        {S("GET / HTTP/2.0"), E_VERSION}, {S("GET / HTTP/1.2"), E_VERSION},
        {S("GET / HTTP/0.9"), E_VERSION}, {S("GET / HTTP/"), E_VERSION},
        {S("GET / HTTP/1.1 "), E_VERSION}, {S("GET / HTTP/11"), E_VERSION},
        {S("GET / http/1.1"), E_BAD_REQUEST}, {S("GET /"), E_BAD_REQUEST},
        {S("GET"), E_BAD_REQUEST}, {S("GET  / HTTP/1.1"), E_BAD_REQUEST},
        {S("GET /  HTTP/1.1"), E_BAD_REQUEST},
        {S("GET / x HTTP/1.1"), E_BAD_REQUEST},
        {S("GET\t/ HTTP/1.1"), E_BAD_REQUEST},
        {S("G(T / HTTP/1.1"), E_BAD_REQUEST},
        {S("GET x HTTP/1.1"), E_BAD_REQUEST},
        {S("GET * HTTP/1.1"), E_BAD_REQUEST},
        {S("GET ?x HTTP/1.1"), E_BAD_REQUEST},
        {S("GET ftp://h/ HTTP/1.1"), E_BAD_REQUEST},
        {S("CONNECT h:443 HTTP/1.1"), E_BAD_REQUEST},
        {S("GET /#x HTTP/1.1"), E_BAD_REQUEST},
        {S("GET /\xc3\xa9 HTTP/1.1"), E_BAD_REQUEST},
        {S("GET /\x7f HTTP/1.1"), E_BAD_REQUEST},
        {S("GET /\0 HTTP/1.1"), E_BAD_REQUEST},
        {S("GET /\r HTTP/1.1"), E_BAD_REQUEST},
        {S("GET / HTTP/1.1\r"), E_BAD_REQUEST},
        {S("GET / HTTP/1.1\0"), E_BAD_REQUEST},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf b;
        struct request *r = request();
        buf_init(&b, &arena, 1 << 10);
        buf_span(&b, rows[i].line);
        buf_text(&b, "\r\n" HOST END);
        assert_row(parse(r, buf_view(&b)) == rows[i].error, i);
    }
}

/* RFC 9112: nothing that two readers could understand differently. */
static void fields(void **state) {
    (void)state;
    const struct {
        struct span lines;
        enum error error;
    } rows[] = {
        {S(HOST), E_NONE}, {S("Host:\r\n"), E_NONE},
        {S("Host: [::1]:80\r\n"), E_NONE},
        {S("Host: a-b_c.d:65535\r\n"), E_NONE},
        {S(HOST "A: \xff\r\n"), E_NONE}, {S(HOST "A: a\tb\r\n"), E_NONE},
        {S(HOST "A:\r\nA:\r\n"), E_NONE},
        {S("A: b\r\n"), E_BAD_REQUEST},                    /* no Host */
        {S(HOST HOST), E_BAD_REQUEST},
        {S("Host: a b\r\n"), E_BAD_REQUEST},
        {S("Host: a/b\r\n"), E_BAD_REQUEST},
        {S("Host: a@b\r\n"), E_BAD_REQUEST},
        {S("Host: a:b\r\n"), E_BAD_REQUEST},
        {S("Host: a:65536\r\n"), E_BAD_REQUEST},
        {S("Host: a,b\r\n"), E_BAD_REQUEST},
        {S("Host: [::1\r\n"), E_BAD_REQUEST},
        {S("Host: [::1]80\r\n"), E_BAD_REQUEST},
        {S("Host: [x]\r\n"), E_BAD_REQUEST},
        {S(HOST "A b\r\n"), E_BAD_REQUEST},
        {S(HOST ": b\r\n"), E_BAD_REQUEST},
        {S(HOST "A : b\r\n"), E_BAD_REQUEST},
        {S(HOST "A\t: b\r\n"), E_BAD_REQUEST},
        {S(HOST " A: b\r\n"), E_BAD_REQUEST},              /* folded */
        {S(HOST "A: b\r\n c\r\n"), E_BAD_REQUEST},
        {S(HOST "A: b\r\n\tc: d\r\n"), E_BAD_REQUEST},
        {S(HOST "A: b\rc\r\n"), E_BAD_REQUEST},
        {S(HOST "A: b\r\r\n"), E_BAD_REQUEST},
        {S(HOST "A: \0\r\n"), E_BAD_REQUEST},
        {S(HOST "A: \x01\r\n"), E_BAD_REQUEST},
        {S(HOST "A: \x7f\r\n"), E_BAD_REQUEST},
        {S(HOST "A(: b\r\n"), E_BAD_REQUEST},
        {S(HOST "\xc3\xa9: b\r\n"), E_BAD_REQUEST},
        {S(HOST "Content-Length: 9223372036854775807\r\n"), E_NONE},
        {S(HOST "Content-Length: 9223372036854775808\r\n"), E_TOO_LARGE},
        {S(HOST "Content-Length: 18446744073709551616\r\n"), E_BAD_REQUEST},
        {S(HOST "Content-Length:\r\n"), E_BAD_REQUEST},
        {S(HOST "Content-Length: -1\r\n"), E_BAD_REQUEST},
        {S(HOST "Content-Length: +1\r\n"), E_BAD_REQUEST},
        {S(HOST "Content-Length: 1 2\r\n"), E_BAD_REQUEST},
        {S(HOST "Content-Length: 1, 1\r\n"), E_BAD_REQUEST},
        {S(HOST "Content-Length: 0x1\r\n"), E_BAD_REQUEST},
        {S(HOST "Content-Length: 1.0\r\n"), E_BAD_REQUEST},
        {S(HOST "Content-Length: 1\r\nContent-Length: 1\r\n"),
         E_BAD_REQUEST},
        {S(HOST "Content-Length: 1\r\ncontent-length: 2\r\n"),
         E_BAD_REQUEST},
        {S(HOST "Content-Length:\r\nContent-Length: 2\r\n"), E_BAD_REQUEST},
        {S(HOST "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"),
         E_BAD_REQUEST},
        {S(HOST "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
         E_BAD_REQUEST},
        {S(HOST "Transfer-Encoding: chunked\r\n"
           "Transfer-Encoding: chunked\r\n"), E_BAD_REQUEST},
        {S(HOST "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n"),
         E_BAD_REQUEST},
        {S(HOST "Transfer-Encoding: gzip, chunked\r\n"), E_NOT_IMPLEMENTED},
        {S(HOST "Transfer-Encoding: chunked, identity\r\n"),
         E_NOT_IMPLEMENTED},
        {S(HOST "Transfer-Encoding: xchunked\r\n"), E_NOT_IMPLEMENTED},
        {S(HOST "Transfer-Encoding: \"chunked\"\r\n"), E_NOT_IMPLEMENTED},
        {S(HOST "Transfer-Encoding: chunked;a=b\r\n"), E_NOT_IMPLEMENTED},
        {S(HOST "Transfer-Encoding:\r\n"), E_NOT_IMPLEMENTED},
        {S(HOST "Transfer-Encoding: \x0b" "chunked\r\n"), E_BAD_REQUEST},
        {S(HOST "Transfer-Encoding : chunked\r\n"), E_BAD_REQUEST},
        {S(HOST "Expect: 200-ok\r\n"), E_EXPECT},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct buf b;
        struct request *r = request();
        buf_init(&b, &arena, 1 << 10);
        buf_text(&b, GET);
        buf_span(&b, rows[i].lines);
        buf_text(&b, END);
        assert_row(parse(r, buf_view(&b)) == rows[i].error, i);
    }
    /* Chunks are not known to HTTP/1.0. */
    assert_int_equal(parse(request(), S("PUT / HTTP/1.0\r\n"
                           "Transfer-Encoding: chunked\r\n" END)),
                     E_BAD_REQUEST);
}

static void headers_are_counted(void **state) {
    (void)state;
    for (int n = HTTP_HEADERS_MAX; n < HTTP_HEADERS_MAX + 2; n++) {
        struct buf b;
        buf_init(&b, &arena, HTTP_HEAD_MAX);
        buf_text(&b, GET HOST);
        for (int i = 1; i < n; i++) buf_text(&b, "A: b\r\n");
        buf_text(&b, END);
        assert_int_equal(parse(request(), buf_view(&b)),
                         n > HTTP_HEADERS_MAX ? E_HEAD_LARGE : E_NONE);
    }
}

/* ---- chunks */

struct dechunked {
    enum http_result result;
    size_t used;
    struct buf body;
};

/* Feeds pieces of the given sizes (the rest is the last); each lies before
 * the unmapped page. */
static struct dechunked feed(struct span in, size_t first, size_t step) {
    struct chunked c = {.state = CHUNK_SIZE};
    struct dechunked d = {.result = HTTP_MORE};
    buf_init(&d.body, &arena, 1 << 20);
    size_t want = first;
    while (d.result == HTTP_MORE && d.used < in.n) {
        if (want > in.n - d.used || !want) want = in.n - d.used;
        struct span part = guarded((struct span){in.p + d.used, want});
        size_t out = 0, used = 0;
        d.result = http_dechunk(&c, (char *)(uintptr_t)part.p, want, &out,
                                &used);
        if (d.result == HTTP_BAD) break;
        assert_true(out <= used && used <= want);
        assert_true(d.result == HTTP_OK || used == want);
        buf_put(&d.body, part.p, out);
        d.used += used;
        want = step;
    }
    return d;
}

/* In one piece, in every two, and byte by byte: always the same. */
static struct dechunked dechunk(struct span in) {
    struct dechunked whole = feed(in, in.n, in.n);
    for (size_t cut = 0; cut <= in.n + 1; cut++) {
        struct dechunked d = cut > in.n ? feed(in, 1, 1)
                                        : feed(in, cut ? cut : 1, in.n);
        assert_row(d.result == whole.result, cut);
        if (whole.result == HTTP_BAD) continue;
        assert_row(d.used == whole.used, cut);
        assert_row(!span_compare(buf_view(&d.body), buf_view(&whole.body)),
                   cut);
    }
    return whole;
}

static void good_chunks(void **state) {
    (void)state;
    const struct {
        struct span in;
        const char *body;
        size_t left;            /* the next request's bytes */
    } rows[] = {
        {S("0\r\n\r\n"), "", 0},
        {S("5\r\nhello\r\n0\r\n\r\n"), "hello", 0},
        {S("5\r\nhello\r\n6\r\n world\r\n000\r\n\r\nGET"), "hello world", 3},
        {S("A\r\n0123456789\r\n0\r\n\r\n"), "0123456789", 0},
        {S("00000000000000000a\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n"),
         "\r\n\r\n\r\n\r\n\r\n", 0},
        {S("1;a=b\r\nx\r\n0;c=\"d;e\";f\r\n\r\n"), "x", 0},
        {S("1 ;a\r\nx\r\n0 \t \r\n\r\n"), "x", 0},
        {S("1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n\r\n"), "x", 2},
        {S("1\r\nx\r\n0\r\nA: \xff:\t\r\n\r\n"), "x", 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct dechunked d = dechunk(rows[i].in);
        assert_row(d.result == HTTP_OK, i);
        assert_span(buf_view(&d.body), rows[i].body);
        assert_row(rows[i].in.n - d.used == rows[i].left, i);
    }
}

static void bad_chunks(void **state) {
    (void)state;
    const struct span rows[] = {
        S("\r\n"), S("\n"), S("x"), S("-1\r\n"), S("+1\r\n"), S(" 1\r\n"),
        S("0x1\r\n"), S("1g\r\n"), S(";a\r\n"), S("\0"), S("1\0"),
        S("1\n"), S("1\r\r\n"), S("1\rx"), S("1 x\r\n"), S("1 1\r\n"),
        S("1;a\nx"), S("1;a\x7f\r\n"), S("1;\0\r\n"), S("1;a\rb"),
        S("10000000000000000\r\n"), S("ffffffffffffffff\r\n"),
        S("1\r\nxx"), S("1\r\nx\n"), S("1\r\nx\rx"), S("1\r\nx0\r\n"),
        S("1\r\nx\r\n\r\n"), S("1\r\nx\r\nx"),
        S("0\r\n\n"), S("0\r\n\rx"), S("0\r\nA\r\n\r\n"), S("0\r\n A: b\r\n"),
        S("0\r\nA : b\r\n"), S("0\r\n: b\r\n"), S("0\r\nA: b\n\r\n"),
        S("0\r\nA: b\rc"), S("0\r\nA: \0"), S("0\r\nA: b\r\n c\r\n\r\n"),
        S("0\nA: b\r\n\r\n"),
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        assert_row(dechunk(rows[i]).result == HTTP_BAD, i);
}

static void unfinished_chunks(void **state) {
    (void)state;
    const struct span all = S("5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n");
    for (size_t n = 0; n < all.n; n++) {
        struct span part = {all.p, n};
        assert_row(dechunk(part).result == HTTP_MORE, n);
    }
}

static void chunk_lines_and_trailers_have_limits(void **state) {
    (void)state;
    struct buf b;
    buf_init(&b, &arena, 64 << 10);
    buf_text(&b, "1;");
    while (b.n < HTTP_CHUNK_LINE_MAX - 2) buf_text(&b, "x");
    buf_text(&b, "\r\n");
    assert_int_equal(feed(buf_view(&b), b.n, b.n).result, HTTP_MORE);
    b.n -= 2;
    buf_text(&b, "x\r\n");
    assert_int_equal(feed(buf_view(&b), b.n, b.n).result, HTTP_BAD);
    b.n = 0;
    while (b.n < HTTP_CHUNK_LINE_MAX) buf_text(&b, "0");
    buf_text(&b, "\r\n");
    assert_int_equal(feed(buf_view(&b), b.n, b.n).result, HTTP_BAD);
    b.n = 0;
    buf_text(&b, "0\r\n");
    while (b.n < HTTP_TRAILER_MAX + 4) buf_text(&b, "A: b\r\n");
    assert_int_equal(feed(buf_view(&b), b.n, b.n).result, HTTP_BAD);
}

/* ---- queries */

static void queries(void **state) {
    (void)state;
    const struct {
        const char *query, *key;
        unsigned index;
        const char *want;       /* 0: not there */
    } rows[] = {
        {"", "n", 0, 0}, {"n", "n", 0, ""}, {"n=", "n", 0, ""},
        {"n=1", "n", 0, "1"}, {"a=1&n=2&n=3", "n", 0, "2"},
        {"a=1&n=2&n=3", "n", 1, "3"}, {"a=1&n=2&n=3", "n", 2, 0},
        {"nn=1&n=2", "n", 0, "2"}, {"&&n=1&&", "n", 0, "1"},
        {"n=a%2Fb=c", "n", 0, "a/b=c"}, {"n=a+b", "n", 0, "a+b"},
        {"n=%", "n", 0, "%"}, {"n=%00", "n", 0, "%"}, {"N=1", "n", 0, 0},
        {"=1", "n", 0, 0}, {"?n=1", "n", 0, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct request *r = request();
        struct span out;
        r->query = guarded(span_of(rows[i].query));
        bool there = http_query_at(r, rows[i].key, rows[i].index, &out);
        assert_row(there == (rows[i].want != 0), i);
        if (there) assert_span(out, rows[i].want);
        done(r);
    }
    /* Values are terminated: a tag goes into a path as it is. */
    struct request *r = request();
    struct span out;
    r->query = S("tag=abc&x");
    assert_true(http_query(r, "tag", &out));
    assert_string_equal(out.p, "abc");
    done(r);
}

/* ---- ranges */

static void ranges(void **state) {
    (void)state;
    const struct {
        const char *header;
        enum http_result result;
        const char *want;
    } rows[] = {
        {"bytes=0-0", HTTP_OK, "0-0 "}, {"bytes=0-99", HTTP_OK, "0-99 "},
        {"bytes=0-", HTTP_OK, "0-99 "}, {"bytes=99-", HTTP_OK, "99-99 "},
        {"bytes=90-1000", HTTP_OK, "90-99 "}, {"bytes=-1", HTTP_OK, "99-99 "},
        {"bytes=-100", HTTP_OK, "0-99 "}, {"bytes=-1000", HTTP_OK, "0-99 "},
        {"bytes=0-99999999999999999999", HTTP_OK, "0-99 "},
        {"bytes=-99999999999999999999", HTTP_OK, "0-99 "},
        {"BYTES = 1 - 2 , 4-5", HTTP_OK, "1-2 4-5 "},
        {"bytes=0-0,-1", HTTP_OK, "0-0 99-99 "},
        {"bytes=5-6,0-1", HTTP_OK, "5-6 0-1 "},
        {"bytes=,,1-2,,", HTTP_OK, "1-2 "},
        {"bytes=1-2,200-300", HTTP_OK, "1-2 "},
        {"bytes=100-", HTTP_BAD, 0}, {"bytes=100-200", HTTP_BAD, 0},
        {"bytes=-0", HTTP_BAD, 0}, {"bytes=5-0", HTTP_BAD, 0},
        {"bytes=99999999999999999999-", HTTP_BAD, 0},
        {"bytes=100-,200-", HTTP_BAD, 0},
        {"", HTTP_MORE, 0}, {"items=0-1", HTTP_MORE, 0},
        {"bytes=x", HTTP_MORE, 0}, {"bytes=-", HTTP_MORE, 0},
        {"bytes=0", HTTP_MORE, 0}, {"bytes=a-b", HTTP_MORE, 0},
        {"bytes=0-1,x", HTTP_MORE, 0}, {"bytes=0--1", HTTP_MORE, 0},
        {"bytes=+0-1", HTTP_MORE, 0}, {"bytes=0-1-2", HTTP_MORE, 0},
        /* More bytes than the whole: the whole. */
        {"bytes=0-,0-", HTTP_MORE, 0}, {"bytes=0-98,98-99", HTTP_MORE, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct request *r = request();
        struct http_range *range = 0;
        unsigned count = 9;
        char got[256] = "";
        r->method = S("GET");
        r->header[HEADER_RANGE] = guarded(span_of(rows[i].header));
        assert_row(http_ranges(r, 100, &range, &count) == rows[i].result, i);
        for (unsigned k = 0; rows[i].want && k < count; k++)
            snprintf(got + strlen(got), sizeof got - strlen(got),
                     "%llu-%llu ", (unsigned long long)range[k].from,
                     (unsigned long long)range[k].to);
        if (rows[i].want) assert_string_equal(got, rows[i].want);
        done(r);
    }
}

static void ranges_that_do_not_apply(void **state) {
    (void)state;
    struct http_range *range = 0;
    unsigned count;
    struct request *r = request();
    r->method = S("GET");
    assert_int_equal(http_ranges(r, 100, &range, &count), HTTP_MORE);
    r->header[HEADER_RANGE] = S("bytes=0-0");
    assert_int_equal(http_ranges(r, 0, &range, &count), HTTP_BAD);
    r->method = S("HEAD");
    assert_int_equal(http_ranges(r, 100, &range, &count), HTTP_MORE);
    r->method = S("GET");
    struct buf b;
    buf_init(&b, &arena, 64 << 10);
    buf_text(&b, "bytes=0-0");
    for (int i = 1; i < HTTP_RANGES_MAX; i++) buf_printf(&b, ",%d-%d", i, i);
    r->header[HEADER_RANGE] = guarded(buf_view(&b));
    assert_int_equal(http_ranges(r, 1 << 20, &range, &count), HTTP_OK);
    assert_int_equal(count, HTTP_RANGES_MAX);
    buf_text(&b, ",9999-9999");
    r->header[HEADER_RANGE] = guarded(buf_view(&b));
    assert_int_equal(http_ranges(r, 1 << 20, &range, &count), HTTP_MORE);
    done(r);
}

/* ---- answers */

static const char *head_of(struct request *r) {
    assert_false(r->head.failed);
    buf_put(&r->head, "", 1);
    return r->head.p;
}

static uint64_t length_of(struct request *r) {
    const char *at = strstr(head_of(r), "Content-Length: ");
    assert_non_null(at);
    return strtoull(at + 16, 0, 10);
}

static void failures_are_json(void **state) {
    (void)state;
    for (int e = 1; e < E_COUNT; e++) {
        struct request *r = request();
        struct json j;
        struct span key, code = {0, 0};
        http_start(r, 200);
        http_header(r, "X-Started", "yes");
        http_fail(r, (enum error)e, e % 2 ? 0 : "it's \"\n\xff");
        assert_int_equal(r->error, e);
        assert_true(r->status >= 400 && r->status < 600);
        assert_string_not_equal(http_reason(r->status), "Status");
        assert_int_equal(r->seg_count, 1);
        struct span body = {r->segs->p, (size_t)r->segs->len};
        assert_int_equal(length_of(r), body.n);
        assert_null(strstr(r->head.p, "X-Started"));
        json_init(&j, body, 0);
        assert_true(json_object(&j) && json_key(&j, &key));
        assert_span(key, "errors");
        assert_true(json_array(&j) && json_item(&j) && json_object(&j) &&
                    json_key(&j, &key) && json_string(&j, &code));
        assert_span(code, http_errors[e].code);
        assert_true(json_key(&j, &key));
        assert_span(key, "message");
        json_skip(&j);
        assert_false(json_key(&j, &key) || json_item(&j) ||
                     json_key(&j, &key));
        assert_true(json_end(&j));
        done(r);
    }
}

static void files_are_sent_in_parts(void **state) {
    (void)state;
    const struct {
        const char *range;
        int status;
        unsigned segs;
        const char *content_range;
    } rows[] = {
        {0, 200, 1, 0},
        {"bytes=10-19", 206, 1, "Content-Range: bytes 10-19/1000\r\n"},
        {"bytes=0-0,5-9,-1", 206, 7, 0},
        {"bytes=1000-", 416, 0, "Content-Range: bytes */1000\r\n"},
        {"lines=1-2", 200, 1, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct request *r = request();
        uint64_t sum = 0;
        r->method = S("GET");
        if (rows[i].range) r->header[HEADER_RANGE] = span_of(rows[i].range);
        http_start(r, 200);
        http_send_file(r, "a/b", 99, 1000, true);
        assert_row(r->file == 99, i);
        assert_row(r->status == rows[i].status, i);
        assert_row(r->seg_count == rows[i].segs, i);
        for (unsigned k = 0; k < r->seg_count; k++) sum += r->segs[k].len;
        assert_row(length_of(r) == sum, i);
        if (rows[i].content_range)
            assert_non_null(strstr(r->head.p, rows[i].content_range));
        if (rows[i].segs == 7)
            assert_non_null(strstr(r->head.p, "multipart/byteranges; "));
        done(r);
    }
    /* A manifest has no ranges. */
    struct request *r = request();
    r->method = S("GET");
    r->header[HEADER_RANGE] = S("bytes=0-0");
    http_start(r, 200);
    http_send_file(r, "a/b", 99, 1000, false);
    assert_int_equal(r->status, 200);
    done(r);
}

static void empty_answers(void **state) {
    (void)state;
    const int statuses[] = {200, 201, 202, 204, 304};
    for (size_t i = 0; i < COUNT(statuses); i++) {
        struct request *r = request();
        bool none = statuses[i] == 204 || statuses[i] == 304;
        http_start(r, statuses[i]);
        http_send_empty(r);
        assert_row(!strstr(head_of(r), "Content-Length: 0\r\n") == none, i);
        done(r);
    }
}

#define TEST(name) cmocka_unit_test_teardown(name, reset)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(heads_end_at_an_empty_line),
        TEST(heads_may_come_in_two_pieces),
        TEST(heads_have_a_limit),
        TEST(requests),
        TEST(request_lines),
        TEST(fields),
        TEST(headers_are_counted),
        TEST(good_chunks),
        TEST(bad_chunks),
        TEST(unfinished_chunks),
        TEST(chunk_lines_and_trailers_have_limits),
        TEST(queries),
        TEST(ranges),
        TEST(ranges_that_do_not_apply),
        TEST(failures_are_json),
        TEST(files_are_sent_in_parts),
        TEST(empty_answers),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}

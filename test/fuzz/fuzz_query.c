/* A request's target: routes, escapes, query parameters. A byte that picks
 * the method, then the target. */
#include "fuzz.h"

static void check_percent(struct span in) {
    char *once = exact(in.p, in.n), *twice = exact(in.p, in.n);
    size_t n, m;
    struct buf b;
    if (!codec_percent(in, once, &n)) {
        CHECK(n <= in.n && !memchr(once, 0, n));
        buf_init(&b, 0, 1 << 20);
        codec_put_percent(&b, (struct span){once, n});
        CHECK(!b.failed && b.n <= 3 * n);
        free(twice);
        twice = exact(b.p ? b.p : "", b.n);
        CHECK(!codec_percent(buf_view(&b), twice, &m));
        CHECK(m == n && !memcmp(once, twice, n));
        buf_free(&b);
    }
    free(once);
    free(twice);
}

static void check_query(struct request *r) {
    static const char *const keys[] = {"n", "last", "digest", "tag", "mount"};
    struct span out;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        for (unsigned at = 0; http_query_at(r, keys[i], at, &out); at++) {
            CHECK(at < r->query.n && out.p);
            CHECK(out.n <= r->query.n && !memchr(out.p, 0, out.n));
            if (!span_is(out, "%")) CHECK(!out.p[out.n]);
        }
    }
}

static void check_route(struct request *r, bool found) {
    if (!found) {
        CHECK(r->status >= 400 || span_is(r->method, "OPTIONS"));
        return;
    }
    CHECK(!r->status && r->route);
    bool named = strstr(r->route->pattern, "<name>");
    CHECK(named == name_is_repository(span_of(r->name)));
    CHECK(named || !*r->name);
    if (r->ref.p) CHECK(!r->ref.p[r->ref.n] && strlen(r->ref.p) == r->ref.n);
    routes_headers(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const char *const methods[] = {"GET", "HEAD", "PUT", "POST",
                                          "PATCH", "DELETE", "OPTIONS", "X"};
    static struct conf conf;
    if (!n) return 0;
    struct request *r = base_alloc(sizeof *r);
    struct buf head;
    enum error e;
    size_t at = 0;
    buf_init(&head, 0, HTTP_HEAD_MAX);
    buf_text(&head, methods[data[0] % 8]);
    buf_text(&head, " ");
    buf_put(&head, data + 1, n - 1);
    buf_text(&head, " HTTP/1.1\r\nHost: h\r\n\r\n");
    r->conf = &conf;
    check_percent((struct span){(const char *)data + 1, n - 1});
    if (http_head_end(buf_view(&head), &at, &e) == HTTP_OK &&
        http_parse(r, (struct span){head.p, at}, &e) == HTTP_OK) {
        http_start(r, 0);
        check_query(r);
        check_route(r, routes_find(r));
        CHECK(!r->head.failed);
    }
    arena_free(&r->arena);
    buf_free(&head);
    free(r);
    return 0;
}

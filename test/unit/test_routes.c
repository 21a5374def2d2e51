/* Which handler a request gets, and what is refused before one. */
#include "unit.h"

static struct conf conf;
static struct arena arena;

static struct request *request(const char *method, const char *path) {
    struct request *r;
    arena_free(&arena);
    r = arena_alloc(&arena, sizeof *r);
    r->method = span_of(method);
    r->path = guarded(span_of(path));
    r->is_head = !strcmp(method, "HEAD");
    r->conf = &conf;
    return r;
}

static void done(struct request *r) {
    arena_free(&r->arena);
}

#define D "sha256:0123456789abcdef"

static void handlers(void **state) {
    (void)state;
    const struct {
        const char *method, *path;
        void (*handler)(struct request *);
        const char *name, *ref;
    } rows[] = {
        {"GET", "/", api_root, "", 0},
        {"GET", "/healthz", api_health, "", 0},
        {"GET", "/v2/", v2_ping, "", 0},
        {"HEAD", "/v2/", v2_ping, "", 0},
        {"GET", "/v2", v2_ping, "", 0},
        {"GET", "/v2/_catalog", v2_catalog, "", 0},
        {"GET", "/v2/a/manifests/latest", v2_manifest_get, "a", "latest"},
        {"HEAD", "/v2/a/manifests/latest", v2_manifest_get, "a", "latest"},
        {"PUT", "/v2/a/b/manifests/" D, v2_manifest_put, "a/b", D},
        {"DELETE", "/v2/a/manifests/x", v2_manifest_delete, "a", "x"},
        {"GET", "/v2/a/blobs/" D, v2_blob_get, "a", D},
        {"HEAD", "/v2/a/blobs/" D, v2_blob_head, "a", D},
        {"DELETE", "/v2/a/blobs/" D, v2_blob_delete, "a", D},
        {"POST", "/v2/a/blobs/uploads/", v2_upload_post, "a", 0},
        {"POST", "/v2/a/blobs/uploads", v2_upload_post, "a", 0},
        {"GET", "/v2/a/blobs/uploads/id", v2_upload_get, "a", "id"},
        {"PATCH", "/v2/a/blobs/uploads/id", v2_upload_patch, "a", "id"},
        {"PUT", "/v2/a/blobs/uploads/id", v2_upload_put, "a", "id"},
        {"DELETE", "/v2/a/blobs/uploads/id", v2_upload_delete, "a", "id"},
        {"GET", "/v2/a/tags/list", v2_tags, "a", 0},
        {"GET", "/v2/a/referrers/" D, v2_referrers, "a", D},
        /* Paths are read from their right end. */
        {"GET", "/v2/tags/list/tags/list", v2_tags, "tags/list", 0},
        {"GET", "/v2/manifests/manifests/manifests", v2_manifest_get,
         "manifests", "manifests"},
        {"GET", "/v2/a/manifests/b/manifests/c", v2_manifest_get,
         "a/manifests/b", "c"},
        {"POST", "/v2/a/blobs/uploads/blobs/uploads/", v2_upload_post,
         "a/blobs/uploads", 0},
        {"PUT", "/v2/a/blobs/uploads/blobs/uploads/id", v2_upload_put,
         "a/blobs/uploads", "id"},
        {"GET", "/v2/a/blobs/uploads/manifests/x", v2_manifest_get,
         "a/blobs/uploads", "x"},
        {"GET", "/v2/blobs/uploads/blobs/" D, v2_blob_get, "blobs/uploads",
         D},
        {"GET", "/v2/referrers/x/referrers/" D, v2_referrers, "referrers/x",
         D},
        {"GET", "/v2/v2/v2/tags/list", v2_tags, "v2/v2", 0},
        {"GET", "/v2/a/b/c/d/e/f/g/h/tags/list", v2_tags, "a/b/c/d/e/f/g/h",
         0},
        /* Escapes are decoded, and what they hide is checked. */
        {"GET", "/v2/%61/manifests/%6catest", v2_manifest_get, "a",
         "latest"},
        {"GET", "/v2/a%2fb/tags/list", v2_tags, "a/b", 0},
        {"GET", "/v2/a/blobs/sha256%3Aabc", v2_blob_get, "a", "sha256:abc"},
        {"GET", "/v2/a/manifests/..%2f..", v2_manifest_get, "a", "../.."},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct request *r = request(rows[i].method, rows[i].path);
        assert_row(routes_find(r), i);
        assert_row(r->route->handler == rows[i].handler && !r->status, i);
        assert_row(!strcmp(r->name, rows[i].name), i);
        assert_row(!rows[i].ref || span_is(r->ref, rows[i].ref), i);
        done(r);
    }
}

static void refusals(void **state) {
    (void)state;
    const struct {
        const char *method, *path;
        int status;
        const char *allow;
    } rows[] = {
        {"GET", "/v1/", 404, 0}, {"GET", "/v2x", 404, 0},
        {"GET", "//", 404, 0}, {"GET", "/v2//", 404, 0},
        {"GET", "/v2/a", 404, 0}, {"GET", "/v2/a/", 404, 0},
        {"GET", "/v2/tags/list", 404, 0}, {"GET", "/v2//tags/list", 404, 0},
        {"GET", "/v2/manifests/x", 404, 0}, {"GET", "/V2/", 404, 0},
        {"GET", "/v2/a/tags/list/", 404, 0}, {"GET", "/healthz/", 404, 0},
        {"GET", "/v2/a/manifests/", 404, 0}, {"GET", "/v2/a/blobs/", 404, 0},
        {"GET", "/x/v2/a/tags/list", 404, 0},
        {"GET", "/v2/A/tags/list", 400, 0},
        {"GET", "/v2/../tags/list", 400, 0},
        {"GET", "/v2/%2e%2e/tags/list", 400, 0},
        {"GET", "/v2/a/../b/tags/list", 400, 0},
        {"GET", "/v2/a//b/tags/list", 400, 0},
        {"GET", "/v2/_oci/tags/list", 400, 0},
        {"GET", "/v2/a/_oci/tags/list", 400, 0},
        {"GET", "/v2/a%00/tags/list", 400, 0},
        {"GET", "/v2/a%/tags/list", 400, 0},
        {"GET", "/v2/a%zz/tags/list", 400, 0},
        {"GET", "/v2/a/manifests/%", 400, 0},
        {"GET", "/v2/a/manifests/x%00", 400, 0},
        {"POST", "/v2/", 405, "GET, HEAD"},
        {"get", "/v2/", 405, "GET, HEAD"},
        {"PUT", "/v2/a/tags/list", 405, "GET, HEAD"},
        {"PATCH", "/v2/a/manifests/x", 405, "GET, HEAD, PUT, DELETE"},
        {"POST", "/v2/a/blobs/uploads/x", 405,
         "GET, HEAD, PATCH, PUT, DELETE"},
        {"GET", "/v2/a/blobs/uploads/", 405, "POST"},
        {"OPTIONS", "/v2/_catalog", 204, "GET, HEAD"},
        {"OPTIONS", "*", 204, "GET, HEAD, OPTIONS"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct request *r = request(rows[i].method, rows[i].path);
        assert_row(!routes_find(r), i);
        assert_row(r->status == rows[i].status, i);
        buf_put(&r->head, "", 1);
        const char *allow = strstr(r->head.p, "Allow: ");
        assert_row(!allow == !rows[i].allow, i);
        assert_row(!allow || strstr(allow, rows[i].allow), i);
        done(r);
    }
}

static void long_names(void **state) {
    (void)state;
    char path[1024];
    for (int n = NAME_MAX_LEN - 1; n < NAME_MAX_LEN + 2; n++) {
        snprintf(path, sizeof path, "/v2/%0*d/tags/list", n, 0);
        struct request *r = request("GET", path);
        assert_row(routes_find(r) == (n <= NAME_MAX_LEN), n);
        done(r);
    }
}

static void pages_of_other_origins_change_nothing(void **state) {
    (void)state;
    const struct {
        const char *method, *origin;
        bool good;
    } rows[] = {
        {"PUT", 0, true}, {"PUT", "http://localhost:8000", true},
        {"PUT", "https://localhost:8000", true},
        {"PUT", "http://evil.example", false}, {"PUT", "null", false},
        {"PUT", "", false}, {"PUT", "http://localhost:8001", false},
        {"PUT", "http://localhost:8000.evil.example", false},
        {"DELETE", "http://evil.example", false},
        {"GET", "http://evil.example", true},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct request *r = request(rows[i].method, "/v2/a/manifests/x");
        r->header[HEADER_HOST] = S("localhost:8000");
        if (rows[i].origin)
            r->header[HEADER_ORIGIN] = span_of(rows[i].origin);
        assert_row(routes_find(r) == rows[i].good, i);
        assert_row(rows[i].good || r->status == 403, i);
        done(r);
    }
}

static void read_only_serves_and_changes_nothing(void **state) {
    (void)state;
    conf.number[CONF_read_only] = 1;
    for (int i = 0; i < ROUTES_COUNT; i++) {
        char path[256];
        const char *mark = strstr(routes_table[i].pattern, "<name>");
        if (!mark) continue;
        snprintf(path, sizeof path, "/v2/a%s", mark + 6);
        for (char *p = path; *p; p++) if (*p == '<' || *p == '>') *p = 'x';
        struct request *r = request(routes_table[i].method, path);
        bool writes = strcmp(routes_table[i].method, "GET") &&
                      strcmp(routes_table[i].method, "HEAD");
        assert_row(routes_find(r) == !writes, i);
        assert_row(!writes || r->status == 405, i);
        done(r);
    }
    conf.number[CONF_read_only] = 0;
}

static void headers_of_every_answer(void **state) {
    (void)state;
    const struct {
        const char *path;
        bool v2, cors;
    } rows[] = {
        {"/", false, true}, {"/healthz", false, true}, {"/v2/", true, false},
        {"/v2/a/tags/list", true, false}, {"/v2/nothing", true, false},
        {"/nothing", false, false},
    };
    for (int on = 0; on < 2; on++) {
        conf.number[CONF_cors] = (uint64_t)on;
        for (size_t i = 0; i < COUNT(rows); i++) {
            struct request *r = request("GET", rows[i].path);
            if (routes_find(r)) http_start(r, 200);
            routes_headers(r);
            buf_put(&r->head, "", 1);
            assert_row(!strstr(r->head.p, "Docker-Distribution-API-Version: "
                               "registry/2.0\r\n") == !rows[i].v2, i);
            assert_row(!strstr(r->head.p, "Access-Control-Allow-Origin: *") ==
                       !(rows[i].cors && on), i);
            done(r);
        }
    }
}

static int teardown(void **state) {
    (void)state;
    arena_free(&arena);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handlers),
        cmocka_unit_test(refusals),
        cmocka_unit_test(long_names),
        cmocka_unit_test(pages_of_other_origins_change_nothing),
        cmocka_unit_test(read_only_serves_and_changes_nothing),
        cmocka_unit_test(headers_of_every_answer),
    };
    return cmocka_run_group_tests(tests, 0, teardown);
}

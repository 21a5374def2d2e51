/* What a manifest must be, and what is made of it. */
#include "unit.h"

#define D "\"sha256:0123456789abcdef0123456789abcdef" \
          "0123456789abcdef0123456789abcdef\""
#define DESC "{\"mediaType\":\"a/b\",\"digest\":" D ",\"size\":5}"
#define OCI "application/vnd.oci.image.manifest.v1+json"
#define INDEX "application/vnd.oci.image.index.v1+json"
#define DOCKER "application/vnd.docker.distribution.manifest.v2+json"

static struct arena arena;

static int reset(void **state) {
    (void)state;
    arena_free(&arena);
    return 0;
}

static int parse(struct span text, const char *type, struct manifest *m,
                 const char **why) {
    memset(m, 0, sizeof *m);
    m->bytes = guarded(text);
    digest_of(&m->digest, DIGEST_SHA256, m->bytes);
    int rc = manifest_parse(&arena, span_of(type), m, why);
    assert_true(rc == 0 || rc == E_MANIFEST_INVALID);
    if (rc) assert_non_null(*why);
    return rc;
}

static void members_have_their_types(void **state) {
    (void)state;
    const struct {
        const char *text;
        bool good;
    } rows[] = {
        {"{}", true}, {" { \"x\" : [ 1 ] } ", true},
        {"{\"schemaVersion\":2}", true},
        {"{\"schemaVersion\":2,\"config\":" DESC ",\"layers\":[" DESC ","
         DESC "]}", true},
        {"{\"layers\":[]}", true}, {"{\"layers\":null}", true},
        {"{\"manifests\":[" DESC "]}", true},
        {"{\"manifests\":null,\"annotations\":null,\"subject\":null}", true},
        {"{\"annotations\":{}}", true},
        {"{\"annotations\":{\"a\":\"b\",\"\\u00e9\":\"\\ud83d\\ude00\"}}",
         true},
        {"{\"subject\":" DESC "}", true},
        {"{\"config\":{\"digest\":" D ",\"size\":0,\"data\":\"e30=\",\"urls\":"
         "[],\"platform\":{\"os\":\"linux\"}}}", true},
        {"{\"config\":{\"digest\":\"blake3:abc\",\"size\":1}}", true},
        {"{\"custom\":{\"layers\":5}}", true},
        {"", false}, {" ", false}, {"null", false}, {"[]", false},
        {"\"x\"", false}, {"1", false}, {"{", false}, {"{}}", false},
        {"{} x", false}, {"{\"a\":}", false}, {"{\"a\":\"\xff\"}", false},
        {"{\"schemaVersion\":1}", false}, {"{\"schemaVersion\":2.0}", false},
        {"{\"schemaVersion\":\"2\"}", false},
        {"{\"schemaVersion\":null}", false},
        {"{\"schemaVersion\":-2}", false},
        {"{\"mediaType\":5}", false}, {"{\"mediaType\":null}", false},
        {"{\"artifactType\":{}}", false},
        {"{\"config\":null}", false}, {"{\"config\":[]}", false},
        {"{\"config\":\"x\"}", false}, {"{\"config\":{}}", false},
        {"{\"config\":{\"digest\":" D "}}", false},
        {"{\"config\":{\"size\":1}}", false},
        {"{\"config\":{\"digest\":" D ",\"size\":-1}}", false},
        {"{\"config\":{\"digest\":" D ",\"size\":1.5}}", false},
        {"{\"config\":{\"digest\":" D ",\"size\":\"1\"}}", false},
        {"{\"config\":{\"digest\":" D ",\"size\":99999999999999999999}}",
         false},
        {"{\"config\":{\"digest\":\"x\",\"size\":1}}", false},
        {"{\"config\":{\"digest\":\"\",\"size\":1}}", false},
        {"{\"config\":{\"digest\":null,\"size\":1}}", false},
        {"{\"config\":{\"digest\":\"sha256:..\",\"size\":1}}", false},
        {"{\"config\":{\"digest\":\"sha\\u0000256:a\",\"size\":1}}", false},
        {"{\"config\":{\"mediaType\":1,\"digest\":" D ",\"size\":1}}", false},
        {"{\"layers\":{}}", false}, {"{\"layers\":[null]}", false},
        {"{\"layers\":[" DESC ",{}]}", false}, {"{\"layers\":[[]]}", false},
        {"{\"layers\":\"x\"}", false}, {"{\"manifests\":{}}", false},
        {"{\"manifests\":[1]}", false}, {"{\"subject\":[]}", false},
        {"{\"subject\":\"x\"}", false}, {"{\"subject\":{}}", false},
        {"{\"subject\":{\"digest\":\"blake3:abc\",\"size\":1}}", false},
        {"{\"subject\":{\"digest\":\"sha256:abc\",\"size\":1}}", false},
        {"{\"annotations\":[]}", false}, {"{\"annotations\":\"x\"}", false},
        {"{\"annotations\":{\"a\":1}}", false},
        {"{\"annotations\":{\"a\":null}}", false},
        {"{\"annotations\":{\"a\":{}}}", false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct manifest m;
        const char *why = 0;
        int rc = parse(span_of(rows[i].text), OCI, &m, &why);
        if (rc != (rows[i].good ? 0 : E_MANIFEST_INVALID))
            fail_msg("%s: %d", rows[i].text, rc);
    }
}

static void media_types(void **state) {
    (void)state;
    const struct {
        const char *text, *type, *want;      /* 0: refused */
    } rows[] = {
        {"{}", OCI, OCI}, {"{}", OCI "; charset=utf-8", OCI},
        {"{}", "  " OCI " ;x", OCI}, {"{}", "x/y", "x/y"},
        {"{\"mediaType\":\"" OCI "\"}", OCI, OCI},
        {"{\"mediaType\":\"" OCI "\"}", "", OCI},
        {"{\"mediaType\":\"" OCI "\"}", "application/json", OCI},
        {"{\"mediaType\":\"" OCI "\"}", "Application/Octet-Stream", OCI},
        {"{\"mediaType\":\"" OCI "\"}", INDEX, 0},
        {"{\"mediaType\":\"" DOCKER "\"}", OCI, 0},
        {"{\"mediaType\":\"\"}", OCI, OCI},
        {"{\"manifests\":[]}", "", INDEX},
        {"{\"manifests\":null}", "application/json", INDEX},
        {"{\"config\":" DESC "}", "", OCI},
        {"{}", "application/json", "application/json"},
        {"{}", "", 0}, {"{}", ";", 0}, {"{}", "x", 0}, {"{}", "x/y z", 0},
        {"{}", "x/y\"", 0}, {"{}", "*/*", 0},
        {"{\"mediaType\":\"x\"}", "", 0},
        {"{\"mediaType\":\"a/b\\u0000\"}", "", 0},
        {"{\"mediaType\":\"a/b\\r\\nX: y\"}", "", 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct manifest m;
        const char *why = 0;
        int rc = parse(span_of(rows[i].text), rows[i].type, &m, &why);
        assert_row(rc == (rows[i].want ? 0 : E_MANIFEST_INVALID), i);
        if (!rc) assert_string_equal(m.media_type, rows[i].want);
    }
}

/* One member of a JSON object, raw; empty where it is not there. */
static struct span member(struct span object, const char *name) {
    struct json j;
    struct span key, value = {"", 0}, raw;
    json_init(&j, object, &arena);
    assert_true(json_object(&j));
    while (json_key(&j, &key)) {
        raw = json_raw(&j);
        if (span_is(key, name)) value = raw;
    }
    assert_true(json_end(&j));
    return value;
}

static void referrers_are_described(void **state) {
    (void)state;
#define SUBJECT "\"subject\":" DESC
    const struct {
        const char *text, *type, *artifact_type, *annotations;
    } rows[] = {
        {"{" SUBJECT "}", OCI, "", ""},
        {"{" SUBJECT ",\"artifactType\":\"x/y\"}", OCI, "\"x/y\"", ""},
        /* An image shows its config's type, an index does not. */
        {"{" SUBJECT ",\"config\":" DESC "}", OCI, "\"a/b\"", ""},
        {"{" SUBJECT ",\"config\":" DESC ",\"artifactType\":\"x/y\"}", OCI,
         "\"x/y\"", ""},
        {"{" SUBJECT ",\"manifests\":[]}", INDEX, "", ""},
        {"{" SUBJECT ",\"manifests\":[],\"artifactType\":\"x/y\"}", INDEX,
         "\"x/y\"", ""},
        {"{" SUBJECT ",\"annotations\":{\"a\\n\" : \"b\"}}", OCI, "",
         "{\"a\\n\" : \"b\"}"},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct manifest m;
        const char *why = 0;
        char text[DIGEST_TEXT_MAX];
        assert_row(!parse(span_of(rows[i].text), rows[i].type, &m, &why), i);
        assert_row(m.has_subject, i);
        digest_text(&m.subject, text);
        assert_row(!memcmp(D + 1, text, strlen(text)), i);
        assert_span(member(m.descriptor, "artifactType"),
                    rows[i].artifact_type);
        assert_span(member(m.descriptor, "annotations"),
                    rows[i].annotations);
        digest_text(&m.digest, text);
        struct span digest = member(m.descriptor, "digest");
        assert_row(digest.n == strlen(text) + 2 &&
                   !memcmp(digest.p + 1, text, digest.n - 2), i);
        uint64_t size;
        assert_int_equal(codec_number(member(m.descriptor, "size"), &size),
                         0);
        assert_int_equal(size, strlen(rows[i].text));
    }
    struct manifest m;
    const char *why;
    assert_int_equal(parse(S("{\"subject\":null}"), OCI, &m, &why), 0);
    assert_false(m.has_subject);
}

/* However large its parts are, a descriptor is JSON and within its limit. */
static void descriptors_stay_small_and_whole(void **state) {
    (void)state;
    const char *const parts[] = {
        "\"artifactType\":\"x/", "\"annotations\":{\"a\":\"",
        "\"config\":{\"digest\":" D ",\"size\":1,\"mediaType\":\"x/"};
    const char *const ends[] = {"\"", "\"}", "\"}"};
    for (size_t part = 0; part < COUNT(parts); part++) {
        for (size_t n = DESCRIPTOR_MAX - 400; n < DESCRIPTOR_MAX + 100;
             n += 7) {
            struct manifest m;
            struct buf b;
            const char *why = 0;
            buf_init(&b, &arena, MANIFEST_MAX);
            buf_printf(&b, "{" SUBJECT ",%s", parts[part]);
            assert_true(buf_reserve(&b, n));
            memset(b.p + b.n, 'x', n);
            b.n += n;
            buf_printf(&b, "%s}", ends[part]);
            if (!parse(buf_view(&b), OCI, &m, &why)) {
                assert_row(m.descriptor.n < DESCRIPTOR_MAX, n);
                struct json j;
                json_init(&j, m.descriptor, 0);
                json_skip(&j);
                assert_row(json_end(&j), n);
            }
            arena_reset(&arena);
        }
    }
}

static void deep_manifests_are_refused(void **state) {
    (void)state;
    const char *const opens[] = {"[", "{\"a\":"};
    for (size_t i = 0; i < COUNT(opens); i++) {
        struct manifest m;
        struct buf b;
        const char *why = 0;
        buf_init(&b, &arena, MANIFEST_MAX);
        buf_text(&b, "{\"x\":");
        for (int k = 0; k < 50000; k++) buf_text(&b, opens[i]);
        assert_int_equal(parse(buf_view(&b), OCI, &m, &why),
                         E_MANIFEST_INVALID);
    }
}

#define TEST(name) cmocka_unit_test_teardown(name, reset)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(members_have_their_types),
        TEST(media_types),
        TEST(referrers_are_described),
        TEST(descriptors_stay_small_and_whole),
        TEST(deep_manifests_are_refused),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}

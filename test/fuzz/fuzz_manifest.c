/* A manifest behind a line with its Content-Type. What is accepted has a
 * media type, and a descriptor that can stand in a list of referrers. */
#include "fuzz.h"

static void check_descriptor(struct arena *a, const struct manifest *m) {
    struct json j;
    struct span key, text;
    char digest[DIGEST_TEXT_MAX];
    uint64_t size = 0;
    unsigned seen = 0;
    CHECK(m->descriptor.n < DESCRIPTOR_MAX);
    json_init(&j, m->descriptor, a);
    CHECK(json_object(&j));
    while (json_key(&j, &key)) {
        if (span_is(key, "mediaType")) {
            CHECK(json_string(&j, &text) && span_is(text, m->media_type));
            seen |= 1;
        } else if (span_is(key, "size")) {
            CHECK(json_integer(&j, &size) && size == m->bytes.n);
            seen |= 2;
        } else if (span_is(key, "digest")) {
            digest_text(&m->digest, digest);
            CHECK(json_string(&j, &text) && span_is(text, digest));
            seen |= 4;
        } else {
            CHECK(span_is(key, "artifactType") ||
                  span_is(key, "annotations"));
            json_skip(&j);
        }
    }
    CHECK(json_end(&j) && seen == 7);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct span in = {(const char *)data, n};
    struct span type = span_cut(&in, '\n');
    struct arena a = {0};
    struct manifest m;
    struct digest again;
    char text[DIGEST_TEXT_MAX];
    const char *why = 0;
    memset(&m, 0, sizeof m);
    m.bytes = in;
    digest_of(&m.digest, DIGEST_SHA256, in);
    int rc = manifest_parse(&a, type, &m, &why);
    CHECK(rc == 0 || (rc == E_MANIFEST_INVALID && why));
    if (!rc) {
        struct json j;
        json_init(&j, in, 0);
        CHECK(json_peek(&j) == '{');
        json_skip(&j);
        CHECK(json_end(&j));
        CHECK(name_is_media_type(span_of(m.media_type)));
    }
    if (!rc && m.has_subject) {
        digest_text(&m.subject, text);
        CHECK(!digest_parse(span_of(text), &again));
        check_descriptor(&a, &m);
    }
    arena_free(&a);
    return 0;
}

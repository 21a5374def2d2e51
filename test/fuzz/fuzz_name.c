/* The grammars against the specifications' regular expressions. */
#include "fuzz.h"
#include <regex.h>

#define COMPONENT "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*"
#define TYPE "[A-Za-z0-9!#$&^_.+-]+"

static bool repository(struct span s) {
    return name_is_repository(s);
}

static bool canonical(struct span s) {
    struct digest d, again;
    char text[DIGEST_TEXT_MAX];
    int rc = digest_parse(s, &d);
    CHECK(rc == 0 || rc == E_DIGEST_BAD || rc == E_DIGEST_ALGO);
    if (rc) return false;
    digest_text(&d, text);
    CHECK(span_is(s, text));
    CHECK(!digest_parse(span_of(text), &again) && digest_equal(&d, &again));
    return true;
}

static bool upload(struct span s) {
    return store_upload_is_id("a", s);
}

static struct grammar {
    bool (*is)(struct span s);
    size_t longest;
    const char *expression;
    regex_t regex;
} grammars[] = {
    {repository, NAME_MAX_LEN, "^" COMPONENT "(/" COMPONENT ")*$", {0}},
    {name_is_tag, TAG_MAX_LEN, "^[a-zA-Z0-9_][a-zA-Z0-9._-]*$", {0}},
    {name_is_media_type, MEDIA_TYPE_MAX, "^" TYPE "/" TYPE "$", {0}},
    {digest_is, SIZE_MAX,
     "^[a-z0-9]+([+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+$", {0}},
    {canonical, SIZE_MAX,
     "^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$", {0}},
    {upload, SIZE_MAX, "^[ab]ca978112ca1bbdca[0-9a-f]{32}$", {0}},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static bool compiled;
    struct span s = {(const char *)data, n};
    if (n > 600) return 0;               /* the expressions get slow */
    char text[601];
    memcpy(text, data, n);
    text[n] = 0;
    bool plain = strlen(text) == n;      /* no grammar has a NUL */
    for (size_t i = 0; i < sizeof grammars / sizeof *grammars; i++) {
        struct grammar *g = &grammars[i];
        if (!compiled) CHECK(!regcomp(&g->regex, g->expression,
                                      REG_EXTENDED | REG_NOSUB));
        bool want = plain && n <= g->longest &&
                    !regexec(&g->regex, text, 0, 0, 0);
        if (g->is(s) != want) {
            fprintf(stderr, "%s: %d\n", g->expression, want);
            abort();
        }
    }
    compiled = true;
    return 0;
}

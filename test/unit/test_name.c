/* The grammars of names, against tables and against the specification's own
 * regular expressions. */
#include "unit.h"
#include <regex.h>

#define REPEAT_16(s) s s s s s s s s s s s s s s s s
#define N240 REPEAT_16("abcdefghijklmno")

static void repositories(void **state) {
    (void)state;
    const struct span good[] = {
        S("a"), S("0"), S("a/b"), S("a/b/c/d/e/f"), S("a.b"), S("a_b"),
        S("a__b"), S("a-b"), S("a---b"), S("a--b__c.d"), S("library/ubuntu"),
        S("a/blobs/uploads"), S("tags/list"), S("manifests"), S("v2/v2"),
        S(N240 "/12345678901234"), S(N240 "123456789012345"),
    };
    const struct span bad[] = {
        S(""), S("/"), S("a/"), S("/a"), S("a//b"), S("."), S(".."), S("a/.."),
        S("../a"), S("a/./b"), S("a..b"), S(".a"), S("a."), S("_a"), S("a_"),
        S("a___b"), S("-a"), S("a-"), S("a.-b"), S("a-.b"), S("a._b"),
        S("a_-b"), S("_oci"), S("a/_oci"), S("_catalog"), S("A"), S("a/B"),
        S("a b"), S("a:b"), S("a@b"), S("a%2fb"), S("a\\b"), S("a\0"),
        S("a\0b"), S("\0"), S("a\n"), S("a/b\n"), S("\xc3\xa9"), S("a+b"),
        S(N240 "/123456789012345"), S(N240 "1234567890123456"),
    };
    for (size_t i = 0; i < COUNT(good); i++)
        assert_row(name_is_repository(guarded(good[i])), i);
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_row(!name_is_repository(guarded(bad[i])), i);
}

static void tags(void **state) {
    (void)state;
    const struct span good[] = {
        S("a"), S("A"), S("0"), S("_"), S("latest"), S("1.0.0-rc.1"),
        S("a.."), S("_-."), S("sha256-abc.sig"), S("v1_2"),
        S(REPEAT_16("12345678")),
    };
    const struct span bad[] = {
        S(""), S("."), S(".."), S(".a"), S("-a"), S("a/b"), S("a:b"),
        S("a b"), S("a+b"), S("a%"), S("a\0"), S("\0"), S("a\n"),
        S("\xc3\xa9"), S(REPEAT_16("12345678") "9"),
    };
    for (size_t i = 0; i < COUNT(good); i++)
        assert_row(name_is_tag(guarded(good[i])), i);
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_row(!name_is_tag(guarded(bad[i])), i);
}

static void media_types(void **state) {
    (void)state;
    const struct span good[] = {
        S("a/b"), S("application/vnd.oci.image.manifest.v1+json"),
        S("application/vnd.docker.distribution.manifest.v2+json"),
        S("A/B"), S("a/b!#$&-^_.+"), S("text/x" N240),
    };
    const struct span bad[] = {
        S(""), S("a"), S("/"), S("a/"), S("/b"), S("a/b/c"), S("a/b;c=d"),
        S("a/b c"), S("a /b"), S("a/\"b"), S("a/b\\"), S("a/b\0"),
        S("a\0/b"), S("a/b\r\nX: y"), S("a/*"), S("a/b,c/d"), S("a/\xc3\xa9"),
        S("application/x" N240 "1234567890"),
    };
    for (size_t i = 0; i < COUNT(good); i++)
        assert_row(name_is_media_type(guarded(good[i])), i);
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_row(!name_is_media_type(guarded(bad[i])), i);
}

/* All strings over a small alphabet, against the expression. */
static void against_regex(const char *expression, const char *alphabet,
                          size_t longest, bool (*is)(struct span)) {
    regex_t regex;
    char text[16] = "";
    size_t letters = strlen(alphabet), index[16] = {0};
    assert_int_equal(regcomp(&regex, expression, REG_EXTENDED | REG_NOSUB),
                     0);
    for (size_t n = 1; n <= longest;) {
        for (size_t i = 0; i < n; i++) text[i] = alphabet[index[i]];
        bool want = !regexec(&regex, text, 0, 0, 0);
        if (is((struct span){text, n}) != want)
            fail_msg("'%s': the expression says %d", text, want);
        size_t i = 0;
        while (i < n && ++index[i] == letters) index[i++] = 0;
        if (i == n) n++;
    }
    regfree(&regex);
}

static void against_the_specification(void **state) {
    (void)state;
    against_regex("^[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*"
                  "(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*$",
                  "a9._-/", 7, name_is_repository);
    against_regex("^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$", "aZ9._-/:", 4,
                  name_is_tag);
    against_regex("^[a-z0-9]+([+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+$", "a9.+=:Z",
                  5, digest_is);
    /* Every single byte, in front and behind. */
    for (int c = 0; c < 256; c++) {
        const char text[] = {'a', (char)c, 'a'};
        bool letter = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        bool upper = c >= 'A' && c <= 'Z';
        bool inside = c && strchr("._-", c);
        assert_int_equal(name_is_repository((struct span){text, 3}),
                         letter || inside || c == '/');
        assert_int_equal(name_is_repository((struct span){text + 1, 2}),
                         letter);
        assert_int_equal(name_is_tag((struct span){text, 3}),
                         letter || upper || inside);
        assert_int_equal(name_is_tag((struct span){text + 1, 2}),
                         letter || upper || c == '_');
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(repositories),
        cmocka_unit_test(tags),
        cmocka_unit_test(media_types),
        cmocka_unit_test(against_the_specification),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}

/* The JSON reader: RFC 8259, to the letter. */
#include "unit.h"

static bool accepts(struct span text) {
    struct json j;
    text = guarded(text);
    json_init(&j, text, 0);
    json_skip(&j);
    return json_end(&j);
}

static void accepts_what_is_json(void **state) {
    (void)state;
    const struct span good[] = {
        S("null"), S("true"), S("false"), S("{}"), S("[]"), S("\"\""),
        S(" \t\r\n1 \t\r\n"), S(" [ 1 , 2 ] "), S("{ \"a\" : 1 , \"b\":2}"),
        S("0"), S("-0"), S("-0.0e-0"), S("1E+2"), S("123e45"), S("0.5"),
        S("1.25e+10"), S("123456789012345678901234567890"), S("1e9999"),
        S("[[]]"), S("[{},[],{\"a\":[{}]}]"), S("{\"\":0}"),
        S("{\"a\":1,\"a\":2}"), S("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""),
        S("\"\\u0000\\u001F\\uabCD\""), S("\"\\ud83d\\ude00\""),
        S("\"\\uDBFF\\uDFFF\""), S("\"\x7f\""),
        S("\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\""),
        S("\"\xef\xbf\xbf\xf4\x8f\xbf\xbf\""), S("\"/ // /* */\""),
    };
    for (size_t i = 0; i < COUNT(good); i++)
        assert_row(accepts(good[i]), i);
}

static void rejects_what_is_not(void **state) {
    (void)state;
    const struct span bad[] = {
        S(""), S(" "), S("\xef\xbb\xbf{}"), S("\0"), S("1\0"), S("\v1"),
        S("\f1"), S("\xc2\xa0" "1"),
        S("{"), S("["), S("}"), S("]"), S("[}"), S("{]"), S("[1"),
        S("[1,"), S("[1,]"), S("[,]"), S("[,1]"), S("[1,,2]"), S("[1 2]"),
        S("[1:2]"), S("[]]"), S("[["), S("[1]1"), S("1 1"), S("{} {}"),
        S("{\"a\""), S("{\"a\":"), S("{\"a\"}"), S("{\"a\":}"),
        S("{\"a\":1"), S("{\"a\":1,"), S("{\"a\":1,}"), S("{,}"),
        S("{\"a\",1}"), S("{\"a\":1 \"b\":2}"), S("{\"a\"::1}"), S("{a:1}"),
        S("{'a':1}"), S("{1:2}"), S("{null:1}"), S("{[]:1}"), S("{\"a\":1}}"),
        S("01"), S("-"), S("-01"), S("+1"), S("1."), S(".5"), S("-.5"),
        S("1e"), S("1e+"), S("1.e1"), S("1e1.5"), S("0x10"), S("--1"),
        S("1_0"), S("- 1"), S("1 .5"), S("NaN"), S("Infinity"),
        S("-Infinity"), S("nul"), S("nulll"), S("True"), S("tru"), S("t"),
        S("truefalse"),
        S("\""), S("\"a"), S("'a'"), S("\"\\"), S("\"\\\""), S("\"\\x\""),
        S("\"\\a\""), S("\"\\\n\""), S("\"\\\0\""), S("\"\\u"),
        S("\"\\u12\""), S("\"\\u12g4\""), S("\"\\U0041\""),
        S("\"\\u-123\""), S("\"\\ud800\""), S("\"\\udc00\""),
        S("\"\\ud800\\u0041\""), S("\"\\ud800\\ud800\""), S("\"\\ud800x\""),
        S("\"\\ud83d\\ude0\""), S("\"\\ud83d\\"), S("\"\\ud83d\\u"),
        S("\"\\udc00\\ud800\""),
        S("\"\t\""), S("\"\n\""), S("\"\x1f\""), S("\"\0\""),
        S("\"\x80\""), S("\"\xff\""), S("\"\xc3\""), S("\"\xc3(\""),
        S("\"\xc0\xaf\""), S("\"\xe0\x80\xaf\""), S("\"\xed\xa0\x80\""),
        S("\"\xf4\x90\x80\x80\""), S("\"\xe2\x82\""), S("\"\xf0\x9f\x98"),
        S("{\"\xff\":1}"), S("// c\n1"), S("/* c */1"), S("1//"), S("#\n1"),
    };
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_row(!accepts(bad[i]), i);
}

/* Every beginning of a text is not JSON, and no reader runs past it. */
static void rejects_every_prefix(void **state) {
    (void)state;
    const struct span all = S("{\"a\\n\":[1.5e+3,\"\\ud83d\\ude00\xe2\x82\xac"
                              "\",true,false,null,{}],\"b\":\"\\\\\"}");
    assert_true(accepts(all));
    for (size_t n = 0; n < all.n; n++)
        assert_row(!accepts((struct span){all.p, n}), n);
}

static bool nested(const char *open, size_t n, const char *close) {
    struct buf b;
    buf_init(&b, 0, 1 << 20);
    for (size_t i = 0; i < n; i++) buf_text(&b, open);
    if (*close) buf_text(&b, "1");
    for (size_t i = 0; i < n && *close; i++) buf_text(&b, close);
    bool good = accepts(buf_view(&b));
    buf_free(&b);
    return good;
}

static void depth_has_a_limit(void **state) {
    (void)state;
    for (size_t n = 1; n <= JSON_DEPTH_MAX + 2; n++) {
        assert_row(nested("[", n, "]") == (n <= JSON_DEPTH_MAX), n);
        assert_row(nested("{\"a\":", n, "}") == (n <= JSON_DEPTH_MAX), n);
        assert_row(nested("[{\"a\":", n, "}]") == (2 * n <= JSON_DEPTH_MAX),
                   n);
    }
    /* What was entered before the skip counts too. */
    for (size_t extra = 27; extra < 30; extra++) {
        char text[512];
        struct json j;
        memset(text, '[', 100 + extra);
        memset(text + 100 + extra, ']', 100 + extra);
        json_init(&j, guarded((struct span){text, 2 * (100 + extra)}), 0);
        for (int i = 0; i < 100; i++) {
            assert_true(json_array(&j));
            assert_true(json_item(&j));
        }
        json_skip(&j);
        for (int i = 0; i < 100; i++) json_item(&j);
        assert_row(json_end(&j) == (100 + extra <= JSON_DEPTH_MAX), extra);
    }
}

static void *deep_thread(void *result) {
    bool any = nested("[", 50000, "") || nested("[", 50000, "]") ||
               nested("{\"a\":", 50000, "") || nested("{\"a\":", 50000, "}");
    *(bool *)result = any;
    return 0;
}

/* The reader's own stack is a few hundred bytes: were it to recurse, this
 * thread would overflow. */
static void depth_costs_no_stack(void **state) {
    (void)state;
    pthread_attr_t attr;
    pthread_t thread;
    bool accepted = true;
    pthread_attr_init(&attr);
    assert_int_equal(pthread_attr_setstacksize(&attr, POOL_STACK), 0);
    assert_int_equal(pthread_create(&thread, &attr, deep_thread, &accepted),
                     0);
    pthread_join(thread, 0);
    pthread_attr_destroy(&attr);
    assert_false(accepted);
}

static void strings_are_decoded_into_the_arena(void **state) {
    (void)state;
    const struct {
        struct span text, want;
    } rows[] = {
        {S("\"plain\""), S("plain")},
        {S("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), S("\"\\/\b\f\n\r\t")},
        {S("\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00\""),
         S("A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80")},
        {S("\"a\\u0000b\""), S("a\0b")},
        {S("\"\\u007f\\u0080\\u07ff\\u0800\\uffff\""),
         S("\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf")},
        {S("\"\\udbff\\udfff\""), S("\xf4\x8f\xbf\xbf")},
        {S("\"\xe2\x82\xac\\t\xe2\x82\xac\""),
         S("\xe2\x82\xac\t\xe2\x82\xac")},
    };
    struct arena a = {0};
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct json j;
        struct span out;
        json_init(&j, guarded(rows[i].text), &a);
        assert_row(json_string(&j, &out) && json_end(&j), i);
        assert_row(!span_compare(out, rows[i].want), i);
        /* Without an arena it is what stands there. */
        json_init(&j, guarded(rows[i].text), 0);
        assert_row(json_string(&j, &out) && json_end(&j), i);
        assert_row(out.n == rows[i].text.n - 2, i);
    }
    arena_free(&a);
}

static void integers(void **state) {
    (void)state;
    const struct {
        const char *text;
        bool good, failed;
        uint64_t value;
    } rows[] = {
        {"0", true, false, 0},
        {" 42 ", true, false, 42},
        {"18446744073709551615", true, false, UINT64_MAX},
        /* Numbers, but not ones that fit: the reader goes on. */
        {"18446744073709551616", false, false, 0},
        {"-1", false, false, 0}, {"-0", false, false, 0},
        {"1.0", false, false, 0}, {"1e2", false, false, 0},
        {"01", true, false, 0},            /* and then "1" is left over */
        {"\"1\"", false, true, 0}, {"null", false, true, 0},
        {"", false, true, 0}, {"-", false, true, 0}, {"1.", false, true, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct json j;
        uint64_t n = 0;
        json_init(&j, guarded(span_of(rows[i].text)), 0);
        bool good = json_integer(&j, &n);
        assert_row(good == rows[i].good && j.failed == rows[i].failed, i);
        if (good) assert_row(n == rows[i].value, i);
    }
    struct json j;
    uint64_t n;
    json_init(&j, S("01"), 0);
    json_integer(&j, &n);
    assert_false(json_end(&j));
}

static void walking_takes_and_skips(void **state) {
    (void)state;
    struct json j;
    struct span key, text, raw;
    uint64_t n;
    json_init(&j, guarded(S(
        " { \"a\" : [ 1 , { \"x\" : [ ] } ] , \"b\":\"t\",\"c\": {\"d\" : "
        "7 } , \"a\": false, \"e\":[] , \"f\":{} } ")), 0);
    assert_int_equal(json_peek(&j), '{');
    assert_true(json_object(&j));
    assert_true(json_key(&j, &key));
    assert_span(key, "a");
    assert_int_equal(json_peek(&j), '[');
    raw = json_raw(&j);
    assert_span(raw, "[ 1 , { \"x\" : [ ] } ]");
    assert_true(json_key(&j, &key));
    assert_int_equal(json_peek(&j), '"');
    assert_true(json_string(&j, &text));
    assert_span(text, "t");
    assert_true(json_key(&j, &key));
    assert_true(json_object(&j));
    assert_true(json_key(&j, &key));
    assert_span(key, "d");
    assert_int_equal(json_peek(&j), '0');
    assert_true(json_integer(&j, &n));
    assert_int_equal(n, 7);
    assert_false(json_key(&j, &key));
    assert_false(j.failed);
    /* A key that is there twice comes twice. */
    assert_true(json_key(&j, &key));
    assert_span(key, "a");
    assert_span(json_raw(&j), "false");
    assert_true(json_key(&j, &key));
    assert_true(json_array(&j));
    assert_false(json_item(&j));
    assert_true(json_key(&j, &key));
    assert_true(json_object(&j));
    assert_false(json_key(&j, &key));
    assert_false(json_key(&j, &key));
    assert_true(json_end(&j));
}

static void an_unclosed_walk_has_not_ended(void **state) {
    (void)state;
    struct json j;
    struct span key;
    json_init(&j, S("{\"a\":"), 0);
    assert_true(json_object(&j));
    assert_true(json_key(&j, &key));
    assert_false(json_end(&j));
    json_init(&j, S("["), 0);
    assert_true(json_array(&j));
    assert_false(json_end(&j));
}

static void the_first_failure_sticks(void **state) {
    (void)state;
    struct json j;
    struct span s;
    uint64_t n;
    json_init(&j, S("[x,1,\"a\",{},[]]"), 0);
    assert_true(json_array(&j));
    assert_true(json_item(&j));
    assert_false(json_string(&j, &s));
    assert_true(j.failed);
    assert_int_equal(json_peek(&j), 0);
    assert_false(json_item(&j));
    assert_false(json_key(&j, &s));
    assert_false(json_object(&j));
    assert_false(json_array(&j));
    assert_false(json_string(&j, &s));
    assert_false(json_integer(&j, &n));
    json_skip(&j);
    assert_span(json_raw(&j), "");
    assert_false(json_end(&j));
}

/* What dims writes, dims reads: any bytes, made UTF-8 on the way. */
static void written_strings_come_back(void **state) {
    (void)state;
    struct arena a = {0};
    struct buf b;
    buf_init(&b, &a, 1 << 10);
    char all[128];
    for (int i = 0; i < 128; i++) all[i] = (char)i;
    codec_put_json(&b, (struct span){all, sizeof all});
    struct json j;
    struct span out;
    json_init(&j, buf_view(&b), &a);
    assert_true(json_string(&j, &out) && json_end(&j));
    assert_int_equal(out.n, sizeof all);
    assert_memory_equal(out.p, all, sizeof all);
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_what_is_json),
        cmocka_unit_test(rejects_what_is_not),
        cmocka_unit_test(rejects_every_prefix),
        cmocka_unit_test(depth_has_a_limit),
        cmocka_unit_test(depth_costs_no_stack),
        cmocka_unit_test(strings_are_decoded_into_the_arena),
        cmocka_unit_test(integers),
        cmocka_unit_test(walking_takes_and_skips),
        cmocka_unit_test(an_unclosed_walk_has_not_ended),
        cmocka_unit_test(the_first_failure_sticks),
        cmocka_unit_test(written_strings_come_back),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}

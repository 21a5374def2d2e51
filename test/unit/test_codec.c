/* Hex, numbers, percent, time, JSON strings, UTF-8. */
#include "unit.h"

struct number_row {
    struct span text;
    bool good;
    uint64_t value;
};

static void check_numbers(int (*parse)(struct span, uint64_t *),
                          const struct number_row *rows, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint64_t n = 0;
        int rc = parse(guarded(rows[i].text), &n);
        if (rows[i].good ? rc || n != rows[i].value : rc != -1)
            fail_msg("'%.*s': %d, %llu", (int)rows[i].text.n, rows[i].text.p,
                     rc, (unsigned long long)n);
    }
}

static void numbers(void **state) {
    (void)state;
    const struct number_row rows[] = {
        {S("0"), true, 0},
        {S("007"), true, 7},
        {S("18446744073709551615"), true, UINT64_MAX},
        {S("18446744073709551616"), false, 0},
        {S("99999999999999999999999"), false, 0},
        {S(""), false, 0}, {S("+1"), false, 0}, {S("-1"), false, 0},
        {S(" 1"), false, 0}, {S("1 "), false, 0}, {S("0x1"), false, 0},
        {S("1\0"), false, 0}, {S("1/"), false, 0}, {S("1:"), false, 0},
    };
    check_numbers(codec_number, rows, COUNT(rows));
}

static void sizes(void **state) {
    (void)state;
    const struct number_row rows[] = {
        {S("0"), true, 0},
        {S("123"), true, 123},
        {S("1k"), true, 1024},
        {S("64M"), true, 64 << 20},
        {S("64MB"), true, 64 << 20},
        {S("64MiB"), true, 64 << 20},
        {S("10G"), true, 10ull << 30},
        {S("1T"), true, 1ull << 40},
        {S("8388607T"), true, 8388607ull << 40},
        {S("8388608T"), false, 0},
        {S("18446744073709551615K"), false, 0},
        {S(""), false, 0}, {S("M"), false, 0}, {S("iB"), false, 0},
        {S("B"), false, 0}, {S("1.5G"), false, 0}, {S("-1"), false, 0},
        {S("1 G"), false, 0}, {S("1MM"), false, 0}, {S("1E"), false, 0},
        {S("5\0"), false, 0}, {S("1Gi "), false, 0},
    };
    check_numbers(codec_size, rows, COUNT(rows));
}

static void durations(void **state) {
    (void)state;
    const struct number_row rows[] = {
        {S("500ms"), true, 500},
        {S("10s"), true, 10000},
        {S("5m"), true, 300000},
        {S("24h"), true, 86400000},
        {S("7d"), true, 604800000},
        {S("90"), true, 90000},
        {S("0"), true, 0},
        {S("106751991167d"), true, 106751991167ull * 86400000},
        {S("106751991168d"), false, 0},
        {S(""), false, 0}, {S("s"), false, 0}, {S("ms"), false, 0},
        {S("1.5s"), false, 0}, {S("-1s"), false, 0}, {S("1w"), false, 0},
        {S("1 s"), false, 0}, {S("10m5s"), false, 0}, {S("1\0s"), false, 0},
    };
    check_numbers(codec_duration, rows, COUNT(rows));
}

static void hex(void **state) {
    (void)state;
    uint8_t bytes[256], back[256];
    char text[513];
    for (int i = 0; i < 256; i++) bytes[i] = (uint8_t)i;
    codec_hex(text, bytes, sizeof bytes);
    assert_int_equal(strlen(text), 512);
    assert_memory_equal(text, "000102", 6);
    assert_int_equal(codec_unhex(back, guarded(span_of(text))), 0);
    assert_memory_equal(back, bytes, sizeof bytes);
    assert_int_equal(codec_unhex(back, S("aBCd")), 0);
    assert_int_equal(back[1], 0xcd);
    assert_int_equal(codec_unhex(back, S("")), 0);
    assert_int_equal(codec_unhex(back, guarded(S("abc"))), -1);
    assert_int_equal(codec_unhex(back, S("0g")), -1);
    for (int c = 0; c < 256; c++) {
        const char *at = c ? strchr("0123456789abcdefABCDEF", c) : 0;
        assert_int_equal(codec_nibble((char)c) >= 0, at != 0);
    }
}

static void percent_decoding(void **state) {
    (void)state;
    const struct {
        struct span text;
        const char *want;        /* 0: refused */
    } rows[] = {
        {S(""), ""}, {S("a+b"), "a+b"}, {S("a%2Fb%2fc"), "a/b/c"},
        {S("%41%7e"), "A~"}, {S("%25"), "%"}, {S("%252F"), "%2F"},
        {S("%"), 0}, {S("%4"), 0}, {S("a%"), 0}, {S("%zz"), 0},
        {S("%4g"), 0}, {S("%00"), 0}, {S("a\0"), 0}, {S("% 41"), 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char out[64];
        size_t n = 0;
        int rc = codec_percent(guarded(rows[i].text), out, &n);
        assert_row(rc == (rows[i].want ? 0 : -1), i);
        if (!rc) assert_span(((struct span){out, n}), rows[i].want);
    }
}

static void percent_encoding_comes_back(void **state) {
    (void)state;
    struct buf b;
    char all[255], back[1024];
    size_t n;
    buf_init(&b, 0, 1024);
    for (int i = 0; i < 255; i++) all[i] = (char)(i + 1);
    codec_put_percent(&b, (struct span){all, sizeof all});
    for (size_t i = 0; i < b.n; i++)
        assert_true(b.p[i] > ' ' && b.p[i] < 127 && !strchr("\"<>&?=#+",
                                                            b.p[i]));
    assert_int_equal(codec_percent(buf_view(&b), back, &n), 0);
    assert_int_equal(n, sizeof all);
    assert_memory_equal(back, all, n);
    b.n = 0;
    codec_put_percent(&b, S("a\0/ b%"));
    assert_span(buf_view(&b), "a%00/%20b%25");
    buf_free(&b);
}

static void json_strings(void **state) {
    (void)state;
    struct buf b;
    buf_init(&b, 0, 1024);
    codec_put_json(&b, S("a\"\\\b\n\0\x7f/\xc3\xa9\xf0\x9f\x98\x80"));
    assert_span(buf_view(&b), "\"a\\\"\\\\\\u0008\\u000a\\u0000\\u007f/"
                              "\xc3\xa9\xf0\x9f\x98\x80\"");
    b.n = 0;
    /* Each byte that is no UTF-8 becomes U+FFFD. */
    codec_put_json(&b, guarded(S("\xff-\xed\xa0\x80-\xc3")));
    assert_span(buf_view(&b), "\"\xef\xbf\xbd-\xef\xbf\xbd\xef\xbf\xbd"
                              "\xef\xbf\xbd-\xef\xbf\xbd\"");
    buf_free(&b);
}

/* RFC 3629, 3: the plain way, for one code point. */
static size_t encode(char *out, uint32_t c) {
    if (c < 0x80) return out[0] = (char)c, 1;
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(0xf00 >> n | c);
    return n;
}

static void utf8_knows_every_code_point(void **state) {
    (void)state;
    char p[4];
    for (uint32_t c = 0; c < 0x110000; c++) {
        size_t n = encode(p, c);
        bool surrogate = c >= 0xd800 && c <= 0xdfff;
        if (codec_utf8(p, n) != (surrogate ? 0 : n))
            fail_msg("U+%04X", c);
        for (size_t k = 1; k < n && c % 61 == 0; k++)
            assert_int_equal(codec_utf8(guarded((struct span){p, k}).p, k),
                             0);
    }
    const struct span bad[] = {
        S(""), S("\x80"), S("\xbf"), S("\xc0\x80"), S("\xc1\xbf"),
        S("\xe0\x80\x80"), S("\xe0\x9f\xbf"), S("\xed\xa0\x80"),
        S("\xf0\x80\x80\x80"), S("\xf0\x8f\xbf\xbf"), S("\xf4\x90\x80\x80"),
        S("\xf5\x80\x80\x80"), S("\xf8\x88\x80\x80\x80"), S("\xfe"),
        S("\xff"), S("\xc3("), S("\xe2\x82("), S("\xf0\x9f\x98("),
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        struct span s = guarded(bad[i]);
        assert_row(!codec_utf8(s.p, s.n), i);
    }
}

static void times(void **state) {
    (void)state;
    char text[30];
    codec_time(text, 0);
    assert_string_equal(text, "1970-01-01T00:00:00.000Z");
    codec_time(text, 1795359600123);
    assert_string_equal(text, "2026-11-22T15:00:00.123Z");
    codec_time(text, 1709251199999);
    assert_string_equal(text, "2024-02-29T23:59:59.999Z");
    codec_http_date(text, 784111777000);       /* RFC 9110, 5.6.7 */
    assert_string_equal(text, "Sun, 06 Nov 1994 08:49:37 GMT");
    codec_http_date(text, 1709251199999);
    assert_string_equal(text, "Thu, 29 Feb 2024 23:59:59 GMT");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers),
        cmocka_unit_test(sizes),
        cmocka_unit_test(durations),
        cmocka_unit_test(hex),
        cmocka_unit_test(percent_decoding),
        cmocka_unit_test(percent_encoding_comes_back),
        cmocka_unit_test(json_strings),
        cmocka_unit_test(utf8_knows_every_code_point),
        cmocka_unit_test(times),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}

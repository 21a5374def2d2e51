/* The tests of spans, arenas, buffers and paths; compiled twice. */
#include "unit.h"

static void spans_compare_by_bytes(void **state) {
    (void)state;
    assert_true(span_is(S("abc"), "abc"));
    assert_false(span_is(S("abc"), "ab"));
    assert_false(span_is(S("ab"), "abc"));
    assert_false(span_is(S("a\0c"), "a"));
    assert_true(span_is_nocase(S("ChUnKeD"), "chunked"));
    assert_false(span_is_nocase(S("chunke"), "chunked"));
    /* Not letters, though they differ by the same bit. */
    assert_false(span_is_nocase(S("@[`{"), "`{@["));
    assert_true(span_starts(S("unix:/x"), "unix:"));
    assert_false(span_starts(S("uni"), "unix:"));
    assert_true(span_compare(S("a"), S("b")) < 0);
    assert_true(span_compare(S("b"), S("a")) > 0);
    assert_true(span_compare(S("a"), S("aa")) < 0);
    assert_true(span_compare(S("aa"), S("a")) > 0);
    assert_true(span_compare(S("\xff"), S("a")) > 0);
    assert_int_equal(span_compare(S("a"), S("a")), 0);
    assert_int_equal(span_compare((struct span){0, 0}, S("")), 0);
}

static void cutting_takes_the_separator_along(void **state) {
    (void)state;
    struct span s = S("a,,b");
    assert_span(span_cut(&s, ','), "a");
    assert_span(span_cut(&s, ','), "");
    assert_span(span_cut(&s, ','), "b");
    assert_int_equal(s.n, 0);
    assert_span(span_cut(&s, ','), "");
    s = guarded(S("x"));
    assert_span(span_cut(&s, ','), "x");
    s = guarded(S("x,"));
    assert_span(span_cut(&s, ','), "x");
    assert_int_equal(s.n, 0);
}

static void trimming_knows_blank_and_tab_only(void **state) {
    (void)state;
    assert_span(span_trim(guarded(S(" \t a b\t "))), "a b");
    assert_span(span_trim(guarded(S(" \t "))), "");
    assert_span(span_trim(guarded(S(""))), "");
    assert_span(span_trim(S("\na\r")), "\na\r");
}

static void arena_memory_is_zeroed_and_aligned(void **state) {
    (void)state;
    struct arena a = {0};
    static const char zero[3 * ARENA_CHUNK];
    for (int round = 0; round < 3; round++) {
        for (size_t n = 0; n < sizeof zero; n = 2 * n + 1) {
            char *p = arena_alloc(&a, n);
            assert_int_equal((uintptr_t)p % 16, 0);
            assert_memory_equal(p, zero, n);
            memset(p, 0xff, n);
        }
        assert_true(a.total > 0);
        arena_reset(&a);
        assert_int_equal(a.total, 0);
    }
    /* A large first chunk is not kept. */
    arena_free(&a);
    arena_alloc(&a, 1 << 20);
    arena_reset(&a);
    assert_null(a.top);
    char *text = arena_text(&a, guarded(S("a\0b")));
    assert_memory_equal(text, "a\0b", 4);
    assert_string_equal(arena_text(&a, (struct span){0, 0}), "");
    arena_free(&a);
}

/* The same rules on the heap and in an arena. */
static void buf_obeys(struct arena *a) {
    struct buf b;
    buf_init(&b, a, 1000);
    assert_span(buf_view(&b), "");
    assert_non_null(buf_view(&b).p);
    for (int i = 0; i < 999; i++) buf_put(&b, "x", 1);
    assert_false(b.failed);
    buf_put(&b, "yz", 2);
    assert_true(b.failed);
    assert_int_equal(b.n, 999);
    buf_put(&b, "y", 1);            /* would fit, but it has failed */
    buf_text(&b, "y");
    buf_number(&b, 1);
    buf_printf(&b, "y");
    assert_false(buf_reserve(&b, 1));
    assert_true(b.failed);
    assert_int_equal(b.n, 999);
    for (size_t i = 0; i < b.n; i++) assert_int_equal(b.p[i], 'x');
    buf_free(&b);
    assert_int_equal(b.n, 0);

    buf_init(&b, a, 5);
    buf_text(&b, "12345");
    buf_put(&b, "", 0);
    assert_false(b.failed);
    assert_span(buf_view(&b), "12345");
    assert_false(buf_reserve(&b, SIZE_MAX));
    buf_free(&b);

    buf_init(&b, a, 0);
    buf_put(&b, "", 0);
    assert_false(b.failed);
    buf_put(&b, "x", 1);
    assert_true(b.failed);
    buf_free(&b);
}

static void bufs_stop_at_their_limit(void **state) {
    (void)state;
    struct arena a = {0};
    buf_obeys(0);
    buf_obeys(&a);
    arena_free(&a);
}

static void bufs_take_numbers_and_formats(void **state) {
    (void)state;
    struct buf b;
    buf_init(&b, 0, 10000);
    buf_number(&b, 0);
    buf_text(&b, " ");
    buf_number(&b, UINT64_MAX);
    buf_span(&b, S(" a"));
    buf_printf(&b, " %d%%", -5);
    assert_span(buf_view(&b), "0 18446744073709551615 a -5%");
    /* Longer than buf_printf's own line: nothing of it is put. */
    size_t before = b.n;
    buf_printf(&b, "%5000d", 1);
    assert_true(b.failed);
    assert_int_equal(b.n, before);
    buf_free(&b);
}

static void paths_that_do_not_fit_are_empty(void **state) {
    (void)state;
    struct path p;
    char longest[PATH_MAX_LEN];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    path_join(&p, longest, (char *)0);
    assert_string_equal(p.s, longest);
    path_join(&p, longest, "y", (char *)0);
    assert_string_equal(p.s, "");
    path_join(&p, "a", "/", "", "b", (char *)0);
    assert_string_equal(p.s, "a/b");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spans_compare_by_bytes),
        cmocka_unit_test(cutting_takes_the_separator_along),
        cmocka_unit_test(trimming_knows_blank_and_tab_only),
        cmocka_unit_test(arena_memory_is_zeroed_and_aligned),
        cmocka_unit_test(bufs_stop_at_their_limit),
        cmocka_unit_test(bufs_take_numbers_and_formats),
        cmocka_unit_test(paths_that_do_not_fit_are_empty),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}

/* Log lines: what they look like, and what becomes of too many. */
#include "unit.h"

static int reset(void **state) {
    (void)state;
    log_state.n = 0;
    log_state.dropped = 0;
    log_state.level = LOG_INFO;
    log_state.json = false;
    return 0;
}

/* The last line without its time. */
static struct span line(void) {
    struct span s = {log_state.ring, log_state.n};
    assert_true(s.n && s.p[s.n - 1] == '\n');
    s.n--;
    assert_null(memchr(s.p, '\n', s.n));
    if (!log_state.json) assert_int_equal(span_cut(&s, ' ').n, 24);
    return s;
}

static void plain_lines(void **state) {
    (void)state;
    log_event(LOG_WARN, "a.tag", "plain", "a/b:c", "empty", "", "blank",
              "a b", "equals", "a=b", "quote", "\"", "line", "a\nb",
              "bytes", "\xff", "#number", "5", (char *)0);
    assert_span(line(), "warn a.tag plain=a/b:c empty=\"\" blank=\"a b\" "
                "equals=\"a=b\" quote=\"\\\"\" line=\"a\\u000ab\" "
                "bytes=\"\xef\xbf\xbd\" number=5");
}

static void json_lines(void **state) {
    (void)state;
    struct json j;
    log_state.json = true;
    log_event(LOG_ERROR, "a.tag", "key", "a\"\n\xff", "#number", "5",
              (char *)0);
    json_init(&j, line(), 0);
    json_skip(&j);
    assert_true(json_end(&j));
    struct span all = line();
    const char *at = memmem(all.p, all.n, ",\"level\"", 8);
    assert_non_null(at);
    all.n -= (size_t)(at - all.p);
    all.p = at;
    assert_span(all, ",\"level\":\"error\",\"event\":\"a.tag\","
                "\"key\":\"a\\\"\\u000a\xef\xbf\xbd\",\"number\":5}");
}

static void levels_are_kept(void **state) {
    (void)state;
    log_event(LOG_DEBUG, "a.tag", (char *)0);
    assert_false(log_pending());
    assert_false(log_is(LOG_DEBUG));
    log_event(LOG_INFO, "a.tag", (char *)0);
    assert_true(log_pending());
    assert_span(line(), "info a.tag");
}

/* A value that does not fit is left out; the others, and the line, stay. */
static void long_values_are_left_out(void **state) {
    (void)state;
    char value[2 * LOG_LINE_MAX];
    for (int json = 0; json < 2; json++) {
        log_state.json = json;
        for (size_t n = LOG_LINE_MAX - 120; n < LOG_LINE_MAX + 120; n++) {
            memset(value, 'x', n);
            value[n] = 0;
            log_state.n = 0;
            log_event(LOG_INFO, "a.tag", "a", "1", "long", value, "b", "2",
                      (char *)0);
            assert_true(log_state.n <= LOG_LINE_MAX);
            struct span s = line();
            const char *b = json ? "\"b\":\"2\"" : " b=2";
            assert_true(n < LOG_LINE_MAX || memmem(s.p, s.n, b, strlen(b)));
            if (!json) continue;
            struct json j;
            json_init(&j, s, 0);
            json_skip(&j);
            assert_true(json_end(&j));
        }
    }
}

static void a_full_ring_counts_what_it_drops(void **state) {
    (void)state;
    unsigned lines = 0;
    while (!log_state.dropped) {
        log_event(LOG_INFO, "a.tag", "key", "value", (char *)0);
        lines++;
    }
    assert_true(lines > 1000 && log_state.n <= LOG_RING);
    log_event(LOG_INFO, "a.tag", "key", "value", (char *)0);
    assert_int_equal(log_state.dropped, 2);
    /* Once there is room again, a line says so. */
    int full = log_state.fd, null = open("/dev/null", O_WRONLY);
    log_state.fd = null;
    log_flush();
    log_state.fd = full;
    close(null);
    assert_span(line(), "warn log.dropped lines=2");
    assert_int_equal(log_state.dropped, 0);
}

static void a_slow_reader_loses_nothing_that_fits(void **state) {
    (void)state;
    int ends[2], real = log_state.fd;
    char got[LOG_RING], want[LOG_RING];
    size_t n = 0;
    assert_int_equal(pipe2(ends, O_NONBLOCK), 0);
    assert_true(fcntl(ends[1], F_SETPIPE_SZ, 4096) >= 4096);
    log_state.fd = ends[1];
    for (int i = 0; i < 900; i++) {
        char number[12];
        snprintf(number, sizeof number, "%d", i);
        log_event(LOG_INFO, "a.tag", "#n", number, (char *)0);
    }
    size_t all = log_state.n;
    memcpy(want, log_state.ring, all);
    while (log_pending()) {
        log_flush();
        ssize_t k = read(ends[0], got + n, sizeof got - n);
        assert_true(k > 0);
        n += (size_t)k;
    }
    ssize_t k = read(ends[0], got + n, sizeof got - n);
    if (k > 0) n += (size_t)k;
    log_state.fd = real;
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(n, all);
    assert_memory_equal(got, want, all);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, reset, reset)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(plain_lines),
        TEST(json_lines),
        TEST(levels_are_kept),
        TEST(long_values_are_left_out),
        TEST(a_full_ring_counts_what_it_drops),
        TEST(a_slow_reader_loses_nothing_that_fits),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}

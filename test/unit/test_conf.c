/* The configuration: flag before variable before file before default. */
#include "unit.h"

static char file[64];

/* Nothing of the machine's own configuration is seen. */
static int setup(void **state) {
    unsetenv("PORT");
    for (int i = 0; i < CONF_COUNT; i++) {
        char name[64];
        snprintf(name, sizeof name, "DIMS_%s", conf_table[i].name);
        for (char *p = name; *p; p++)
            if (*p >= 'a' && *p <= 'z') *p = (char)(*p - 32);
        unsetenv(name);
    }
    if (folder_make(state)) return -1;
    snprintf(file, sizeof file, "%s/dims.conf", folder);
    return setenv("DIMS_CONFIG", file, 1);
}

static void write_file(const char *text) {
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* Arguments as a shell would split them. */
static int load(struct conf *c, const char *line, char *message) {
    char words[512], *argv[32] = {"dims"};
    int argc = 1;
    struct buf err;
    snprintf(words, sizeof words, "%s", line);
    for (char *w = strtok(words, " "); w; w = strtok(0, " "))
        argv[argc++] = w;
    buf_init(&err, 0, 64 << 10);
    int rc = conf_load(c, argc, argv, &err);
    snprintf(message, 512, "%.*s", (int)err.n, err.n ? err.p : "");
    assert_true(rc == 0 || rc == -1);
    /* One line, and only where it failed. */
    assert_int_equal(rc != 0, err.n > 0);
    assert_null(strchr(message, '\n'));
    buf_free(&err);
    return rc;
}

static void loads(struct conf *c, const char *line) {
    char message[512];
    if (load(c, line, message)) fail_msg("'%s': %s", line, message);
}

static void refuses(const char *line, const char *why) {
    struct conf c;
    char message[512];
    if (!load(&c, line, message)) fail_msg("'%s' was taken", line);
    if (!strstr(message, why)) fail_msg("'%s': %s", line, message);
    conf_free(&c);
}

static void defaults(void **state) {
    (void)state;
    struct conf c;
    write_file("");
    loads(&c, "");
    assert_string_equal(c.text[CONF_dir][0], "./dims-data");
    assert_int_equal(c.count[CONF_port], 1);
    assert_string_equal(c.text[CONF_port][0], "8000");
    assert_int_equal(c.count[CONF_listen], 0);
    assert_int_equal(c.number[CONF_min_free], 64 << 20);
    assert_int_equal(c.number[CONF_upload_expire], 24 * 3600 * 1000);
    assert_int_equal(c.number[CONF_stop_timeout], 10000);
    assert_int_equal(c.number[CONF_read_only], 0);
    assert_int_equal(c.number[CONF_cors], 1);
    assert_int_equal(c.number[CONF_log_level], LOG_INFO);
    conf_free(&c);
    setenv("PORT", "81", 1);
    loads(&c, "");
    assert_string_equal(c.text[CONF_port][0], "81");
    conf_free(&c);
    setenv("PORT", "eighty", 1);
    refuses("", "PORT: ");
    loads(&c, "-p 82");
    conf_free(&c);
    unsetenv("PORT");
}

static void the_stronger_source_wins(void **state) {
    (void)state;
    struct conf c;
    write_file("log-level = error\nport = 1\nport = 2\n");
    loads(&c, "");
    assert_int_equal(c.number[CONF_log_level], LOG_ERROR);
    assert_int_equal(c.count[CONF_port], 2);
    conf_free(&c);
    setenv("DIMS_LOG_LEVEL", "debug", 1);
    setenv("DIMS_PORT", " 3  4 5 ", 1);
    setenv("PORT", "6", 1);
    loads(&c, "");
    assert_int_equal(c.number[CONF_log_level], LOG_DEBUG);
    assert_int_equal(c.count[CONF_port], 3);
    assert_string_equal(c.text[CONF_port][2], "5");
    conf_free(&c);
    /* A repeated option's whole list is replaced. */
    loads(&c, "-p 7 --log-level warn");
    assert_int_equal(c.number[CONF_log_level], LOG_WARN);
    assert_int_equal(c.count[CONF_port], 1);
    assert_string_equal(c.text[CONF_port][0], "7");
    conf_free(&c);
    unsetenv("DIMS_LOG_LEVEL");
    unsetenv("DIMS_PORT");
    unsetenv("PORT");
}

static void flags_in_every_spelling(void **state) {
    (void)state;
    struct conf c;
    write_file("");
    loads(&c, "-p 1 -p2 --port 3 --port=4 -d /x --min-free=1K --read-only");
    assert_int_equal(c.count[CONF_port], 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(c.text[CONF_port][i][0], '1' + i);
    assert_string_equal(c.text[CONF_dir][0], "/x");
    assert_int_equal(c.number[CONF_min_free], 1024);
    assert_int_equal(c.number[CONF_read_only], 1);
    conf_free(&c);
    loads(&c, "--read-only=YES --cors False");
    assert_int_equal(c.number[CONF_read_only], 1);
    assert_int_equal(c.number[CONF_cors], 0);
    conf_free(&c);
    loads(&c, "--read-only=off --dir=a=b --dir=c=d");
    assert_int_equal(c.number[CONF_read_only], 0);
    assert_string_equal(c.text[CONF_dir][0], "c=d");
    assert_int_equal(c.count[CONF_dir], 1);
    conf_free(&c);
}

static void bad_flags(void **state) {
    (void)state;
    write_file("");
    refuses("--nonsense", "--nonsense");
    refuses("-x", "-x");
    refuses("-", "-");
    refuses("--", "--");
    refuses("serve", "serve");
    refuses("---port 1", "---port");
    refuses("--por 1", "--por");
    refuses("--port", "needs a value");
    refuses("-p", "needs a value");
    refuses("--port= 1", "port");
    refuses("--port 65536", "port: '65536'");
    refuses("--port -1", "port");
    refuses("-p 1 -p x", "'x'");
    refuses("--workers 65", "up to 64");
    refuses("--workers two", "workers");
    refuses("--min-free 1X", "min-free");
    refuses("--upload-expire soon", "upload-expire");
    refuses("--cors maybe", "on or off");
    refuses("--log-level loud", "error|warn|info|debug");
    refuses("--log-format xml", "plain|json");
    refuses("--listen localhost", "listen");
}

static void bad_variables(void **state) {
    (void)state;
    struct conf c;
    write_file("");
    setenv("DIMS_WORKERS", "many", 1);
    refuses("", "workers: 'many'");
    loads(&c, "--workers 1");
    conf_free(&c);
    unsetenv("DIMS_WORKERS");
}

static void files(void **state) {
    (void)state;
    struct conf c;
    write_file("# a comment\n\n  dir =  /a b \t\r\n\tread-only=yes\r\n"
               "log-level = warn\nlog-level = debug\nlisten = ::1\n"
               "listen = unix:/run/x y\n  # port = 1\nmax-blob=1M");
    loads(&c, "");
    assert_string_equal(c.text[CONF_dir][0], "/a b");
    assert_int_equal(c.number[CONF_read_only], 1);
    assert_int_equal(c.number[CONF_log_level], LOG_DEBUG);
    assert_int_equal(c.count[CONF_listen], 2);
    assert_string_equal(c.text[CONF_listen][1], "unix:/run/x y");
    assert_int_equal(c.number[CONF_max_blob], 1 << 20);
    assert_string_equal(c.file, file);
    conf_free(&c);
    write_file("dir = /a\nnot a pair\n");
    refuses("", "line 2: not 'key = value'");
    write_file("dir = /a\n\nlogs = x\n");
    refuses("", "line 3: unknown key 'logs'");
    write_file("workers = x\n");
    refuses("", "line 1: workers");
    refuses("--workers 1 --config /nonexistent/x", "/nonexistent/x");
    refuses("--config=/nonexistent/x", "/nonexistent/x");
    refuses("--config", "--config");
    /* What a flag has set is not even looked at. */
    loads(&c, "--workers 1");
    conf_free(&c);
    write_file("log_level = warn\n");
    refuses("", "log_level");
    unlink(file);
    refuses("", file);
}

static int parse_text(struct span text) {
    struct conf c;
    struct buf err;
    memset(&c, 0, sizeof c);
    buf_init(&err, 0, 64 << 10);
    int rc = conf_parse_file(&c, guarded(text), &err);
    conf_free(&c);
    buf_free(&err);
    return rc;
}

static void file_texts_at_their_limits(void **state) {
    (void)state;
    char many[(CONF_LIST_MAX + 1) * 7 + 1] = "";
    for (int i = 0; i < CONF_LIST_MAX; i++) strcat(many, "port=1\n");
    assert_int_equal(parse_text(span_of(many)), 0);
    strcat(many, "port=1\n");
    assert_int_equal(parse_text(span_of(many)), -1);
    assert_int_equal(parse_text(S("")), 0);
    assert_int_equal(parse_text(S("\n\r\n \n#")), 0);
    assert_int_equal(parse_text(S("=")), -1);
    assert_int_equal(parse_text(S("dir=")), 0);
    assert_int_equal(parse_text(S("dir=a\0b")), -1);
    assert_int_equal(parse_text(S("min-free=5\0")), -1);
    assert_int_equal(parse_text(S("\0")), -1);
}

static void listen_forms(void **state) {
    (void)state;
    const struct {
        const char *text, *ip;     /* 0: refused */
        int port;                  /* -1: none */
    } rows[] = {
        {"127.0.0.1", "127.0.0.1", -1},
        {"0.0.0.0:80", "0.0.0.0", 80},
        {"1.2.3.4:0", "1.2.3.4", 0},
        {"1.2.3.4:65535", "1.2.3.4", 65535},
        {"::", "::", -1}, {"::1", "::1", -1}, {"[::1]", "::1", -1},
        {"[::1]:8000", "::1", 8000}, {"fe80::1:80", "fe80::1:80", -1},
        {"[::ffff:1.2.3.4]:5", "::ffff:1.2.3.4", 5},
        {"", 0, 0}, {":", 0, 0}, {":80", 0, 0}, {"1.2.3.4:", 0, 0},
        {"1.2.3.4:x", 0, 0}, {"1.2.3.4:65536", 0, 0}, {"1.2.3", 0, 0},
        {"1.2.3.4.5", 0, 0}, {"localhost:80", 0, 0}, {"[::1", 0, 0},
        {"[::1]x", 0, 0}, {"[::1]:", 0, 0}, {"[]:80", 0, 0}, {"[", 0, 0},
        {"[::1]80", 0, 0}, {"[::1]:80:81", 0, 0}, {"[1.2.3.4]:80x", 0, 0},
        {"1.2.3.4 :80", 0, 0}, {"::1%lo", 0, 0}, {"unix:", 0, 0},
        {"0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:"
         "0001", 0, 0},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct conf_listen l;
        int rc = conf_listen_parse(rows[i].text, &l);
        assert_row(rc == (rows[i].ip ? 0 : -1), i);
        if (rc) continue;
        assert_row(!l.path && !strcmp(l.ip, rows[i].ip), i);
        assert_row(l.has_port == (rows[i].port >= 0), i);
        assert_row(!l.has_port || l.port == rows[i].port, i);
    }
    struct conf_listen l;
    assert_int_equal(conf_listen_parse("unix:/run/dims.sock", &l), 0);
    assert_string_equal(l.path, "/run/dims.sock");
    char longest[5 + 108 + 1] = "unix:";
    memset(longest + 5, 'x', 107);
    assert_int_equal(conf_listen_parse(longest, &l), 0);
    longest[5 + 107] = 'x';
    assert_int_equal(conf_listen_parse(longest, &l), -1);
}

static void help_names_every_option_in_79_columns(void **state) {
    (void)state;
    struct buf help;
    buf_init(&help, 0, 64 << 10);
    conf_help(&help);
    assert_false(help.failed);
    struct span rest = buf_view(&help);
    while (rest.n) assert_true(span_cut(&rest, '\n').n <= 79);
    buf_put(&help, "", 1);
    for (int i = 0; i < CONF_COUNT; i++) {
        char name[32], flag[40];
        conf_name(i, name);
        snprintf(flag, sizeof flag, "--%s ", name);
        assert_non_null(strstr(help.p, flag));
        assert_int_equal(conf_find(span_of(name)), i);
    }
    buf_free(&help);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(the_stronger_source_wins),
        cmocka_unit_test(flags_in_every_spelling),
        cmocka_unit_test(bad_flags),
        cmocka_unit_test(bad_variables),
        cmocka_unit_test(files),
        cmocka_unit_test(file_texts_at_their_limits),
        cmocka_unit_test(listen_forms),
        cmocka_unit_test(help_names_every_option_in_79_columns),
    };
    return cmocka_run_group_tests(tests, setup, folder_remove);
}

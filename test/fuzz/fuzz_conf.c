/* The config file: what was taken, written out and read again, is the
 * same. */
#include "fuzz.h"

static int parse(struct conf *c, struct span text, struct buf *err) {
    memset(c, 0, sizeof *c);
    buf_init(err, 0, 64 << 10);
    int rc = conf_parse_file(c, text, err);
    CHECK(rc == 0 || rc == -1);
    CHECK((rc != 0) == (err->n > 0) && !err->failed);
    /* One line: it goes to stderr. */
    if (err->n) CHECK(!memchr(err->p, '\n', err->n));
    return rc;
}

static void check_value(const struct conf *c, int i, int at) {
    const char *text = c->text[i][at];
    struct conf_listen listen;
    CHECK(text);
    switch (conf_table[i].type) {
    case CONF_IS_BOOL: CHECK(c->number[i] <= 1); break;
    case CONF_IS_SIZE:
    case CONF_IS_SPAN: CHECK(c->number[i] <= INT64_MAX); break;
    case CONF_IS_LISTEN:
        CHECK(!conf_listen_parse(text, &listen));
        CHECK(listen.path || *listen.ip);
        break;
    default: break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct conf c, again;
    struct buf err, text;
    char name[32];
    if (n >= CONF_FILE_MAX) return 0;
    int rc = parse(&c, (struct span){(const char *)data, n}, &err);
    buf_free(&err);
    buf_init(&text, 0, 4 * CONF_FILE_MAX);
    for (int i = 0; i < CONF_COUNT; i++) {
        for (int at = 0; at < c.count[i]; at++) {
            check_value(&c, i, at);
            conf_name(i, name);
            buf_printf(&text, "%s =", name);
            buf_text(&text, c.text[i][at]);
            buf_text(&text, "\r\n");      /* one CR is not the value's */
        }
    }
    if (!rc) {
        CHECK(!parse(&again, buf_view(&text), &err));
        buf_free(&err);
        for (int i = 0; i < CONF_COUNT; i++) {
            CHECK(c.count[i] == again.count[i]);
            CHECK(c.number[i] == again.number[i]);
            for (int at = 0; at < c.count[i]; at++)
                CHECK(!strcmp(c.text[i][at], again.text[i][at]));
        }
        conf_free(&again);
    }
    buf_free(&text);
    conf_free(&c);
    return 0;
}

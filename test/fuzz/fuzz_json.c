/* The JSON reader against a plain recursive validator; what is read and
 * written again means the same; no order of calls does harm. */
#include "fuzz.h"

/* ---- the validator: RFC 8259, 2 to 7, straight from its grammar */

struct text {
    const unsigned char *p, *end;
};

static int peek(struct text *t) {
    return t->p < t->end ? *t->p : -1;
}

static bool take(struct text *t, int c) {
    if (peek(t) != c) return false;
    t->p++;
    return true;
}

static void blanks(struct text *t) {
    while (peek(t) == ' ' || peek(t) == '\t' || peek(t) == '\n' ||
           peek(t) == '\r') t->p++;
}

static bool digits(struct text *t) {
    const unsigned char *from = t->p;
    while (peek(t) >= '0' && peek(t) <= '9') t->p++;
    return t->p > from;
}

static bool number(struct text *t) {
    take(t, '-');
    if (!take(t, '0') && !digits(t)) return false;
    if (take(t, '.') && !digits(t)) return false;
    if (!take(t, 'e') && !take(t, 'E')) return true;
    if (!take(t, '+')) take(t, '-');
    return digits(t);
}

static bool between(struct text *t, int low, int high) {
    if (peek(t) < low || peek(t) > high) return false;
    t->p++;
    return true;
}

/* RFC 3629, 4: UTF8-char, one alternative a line. */
static bool utf8(struct text *t) {
    int c = peek(t);
    if (c < 0x80) return between(t, 0, 0x7f);
    t->p++;
    if (c >= 0xc2 && c <= 0xdf) return between(t, 0x80, 0xbf);
    bool second = c == 0xe0 ? between(t, 0xa0, 0xbf)
                : c == 0xed ? between(t, 0x80, 0x9f)
                : c == 0xf0 ? between(t, 0x90, 0xbf)
                : c == 0xf4 ? between(t, 0x80, 0x8f)
                : c >= 0xe1 && c <= 0xf3 ? between(t, 0x80, 0xbf) : false;
    if (!second || !between(t, 0x80, 0xbf)) return false;
    return c < 0xf0 || between(t, 0x80, 0xbf);
}

/* Four hex digits; -1 where they are none. */
static long unit(struct text *t) {
    char four[5] = "";
    if (t->end - t->p < 4) return -1;
    memcpy(four, t->p, 4);
    if (strspn(four, "0123456789abcdefABCDEF") != 4) return -1;
    t->p += 4;
    return strtol(four, 0, 16);
}

static bool escape(struct text *t) {
    int c = peek(t);
    if (c > 0 && strchr("\"\\/bfnrt", c)) return take(t, c);
    if (!take(t, 'u')) return false;
    long high = unit(t);
    if (high < 0 || (high >= 0xdc00 && high <= 0xdfff)) return false;
    if (high < 0xd800 || high > 0xdbff) return true;
    if (!take(t, '\\') || !take(t, 'u')) return false;
    long low = unit(t);
    return low >= 0xdc00 && low <= 0xdfff;
}

static bool string(struct text *t) {
    if (!take(t, '"')) return false;
    while (!take(t, '"')) {
        if (peek(t) < ' ') return false;
        if (take(t, '\\') ? !escape(t) : !utf8(t)) return false;
    }
    return true;
}

static bool word(struct text *t, const char *s) {
    while (*s) if (!take(t, *s++)) return false;
    return true;
}

static bool value(struct text *t, int depth);

static bool members(struct text *t, int depth, char close) {
    t->p++;
    blanks(t);
    if (depth == JSON_DEPTH_MAX) return false;
    if (take(t, close)) return true;
    do {
        blanks(t);
        if (close == '}') {
            if (!string(t)) return false;
            blanks(t);
            if (!take(t, ':')) return false;
        }
        if (!value(t, depth + 1)) return false;
        blanks(t);
    } while (take(t, ','));
    return take(t, close);
}

static bool value(struct text *t, int depth) {
    blanks(t);
    switch (peek(t)) {
    case '{': return members(t, depth, '}');
    case '[': return members(t, depth, ']');
    case '"': return string(t);
    case 't': return word(t, "true");
    case 'f': return word(t, "false");
    case 'n': return word(t, "null");
    default: return number(t);
    }
}

static bool is_json(struct span s) {
    struct text t = {(const unsigned char *)s.p,
                     (const unsigned char *)s.p + s.n};
    if (!value(&t, 0)) return false;
    blanks(&t);
    return t.p == t.end;
}

/* ---- reading and writing again */

static void copy_value(struct json *j, struct buf *out) {
    struct span s, key;
    uint64_t n;
    struct json before;
    bool first = true;
    switch (json_peek(j)) {
    case '{':
        json_object(j);
        buf_text(out, "{");
        while (json_key(j, &key)) {
            buf_text(out, first ? "" : ",");
            codec_put_json(out, key);
            buf_text(out, ":");
            copy_value(j, out);
            first = false;
        }
        buf_text(out, "}");
        break;
    case '[':
        json_array(j);
        buf_text(out, "[");
        while (json_item(j)) {
            buf_text(out, first ? "" : ",");
            copy_value(j, out);
            first = false;
        }
        buf_text(out, "]");
        break;
    case '"':
        if (json_string(j, &s)) codec_put_json(out, s);
        break;
    case '0':
        before = *j;
        if (json_integer(j, &n)) {
            buf_number(out, n);
            break;
        }
        if (!j->failed) *j = before;
        buf_span(out, json_raw(j));
        break;
    default:
        buf_span(out, json_raw(j));
    }
}

static bool copy(struct span in, struct buf *out) {
    struct arena a = {0};
    struct json j;
    json_init(&j, in, &a);
    copy_value(&j, out);
    bool good = json_end(&j);
    arena_free(&a);
    return good;
}

/* Calls in an order that makes no sense; only to leave what was never
 * entered is a caller's bug. */
static void misuse(struct span in) {
    struct arena a = {0};
    struct json j;
    struct span s;
    uint64_t n;
    json_init(&j, in, chance(2) ? &a : 0);
    for (int i = 0; i < 64; i++) {
        switch (chance(9)) {
        case 0: json_object(&j); break;
        case 1: json_array(&j); break;
        case 2: if (j.depth && json_key(&j, &s)) CHECK(s.p); break;
        case 3: if (j.depth) json_item(&j); break;
        case 4: if (json_string(&j, &s)) CHECK(s.p); break;
        case 5: json_integer(&j, &n); break;
        case 6: json_skip(&j); break;
        case 7: s = json_raw(&j); CHECK(s.p); break;
        default: json_peek(&j);
        }
        CHECK(j.p >= in.p && j.p <= in.p + in.n && j.end == in.p + in.n);
        CHECK(j.depth <= JSON_DEPTH_MAX);
        if (j.failed) CHECK(!json_end(&j) && j.p == j.end);
    }
    arena_free(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct span in = {(const char *)data, n};
    struct json j;
    struct buf once, twice;
    chance_seed(data, n);
    json_init(&j, in, 0);
    struct span raw = json_raw(&j);
    bool good = json_end(&j);
    CHECK(good == is_json(in));
    if (good) CHECK(raw.n && is_json(raw));
    buf_init(&once, 0, 16 << 20);
    buf_init(&twice, 0, 16 << 20);
    CHECK(copy(in, &once) == good);
    if (good) {
        CHECK(is_json(buf_view(&once)));
        CHECK(copy(buf_view(&once), &twice));
        CHECK(!span_compare(buf_view(&once), buf_view(&twice)));
    }
    buf_free(&once);
    buf_free(&twice);
    misuse(in);
    return 0;
}

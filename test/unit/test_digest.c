/* Hashing with every backend that this CPU has, and the digests' grammar. */
#include "unit.h"

static void (*const portable[DIGEST_ALGOS])(struct digest_ctx *,
                                            const uint8_t *, size_t) = {
    digest_blocks_256, digest_blocks_512};

/* 0: BearSSL's, 1: the CPU's, where it has one. */
static void use_backend(int which) {
    memcpy(digest_blocks, portable, sizeof digest_blocks);
    if (which) digest_setup();
}

/* BearSSL from end to end, without a line of dims. */
static void reference(enum digest_algo algo, const void *p, size_t n,
                      char *out) {
    br_sha256_context c256;
    br_sha512_context c512;
    uint8_t bytes[64];
    br_sha256_init(&c256);
    br_sha512_init(&c512);
    if (algo == DIGEST_SHA256) {
        br_sha256_update(&c256, p, n);
        br_sha256_out(&c256, bytes);
    } else {
        br_sha512_update(&c512, p, n);
        br_sha512_out(&c512, bytes);
    }
    size_t size = algo == DIGEST_SHA256 ? 32 : 64;
    for (size_t i = 0; i < size; i++) sprintf(out + 2 * i, "%02x", bytes[i]);
}

#define LONG_896 \
    "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn" \
    "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"

static void fips_vectors(void **state) {
    (void)state;
    const struct {
        const char *text, *sha256, *sha512;
    } rows[] = {
        {"",
         "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
         "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
         "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"},
        {"abc",
         "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
         "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
         "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"},
        {LONG_896,
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
         "8e959b75dae313da8cf4f72814fc143f8f7779c6eb9f7fa17299aeadb6889018"
         "501d289e4900f7e4331b99dec4b5433ac7d329eeb6dd26545e96e55b874be909"},
    };
    for (int backend = 0; backend < 2; backend++) {
        use_backend(backend);
        for (size_t i = 0; i < COUNT(rows); i++) {
            struct digest d;
            digest_of(&d, DIGEST_SHA256, guarded(span_of(rows[i].text)));
            assert_string_equal(d.hex, rows[i].sha256);
            digest_of(&d, DIGEST_SHA512, guarded(span_of(rows[i].text)));
            assert_string_equal(d.hex, rows[i].sha512);
        }
    }
}

static void a_million_times_a(void **state) {
    (void)state;
    char *a = malloc(1000000);
    struct digest d;
    memset(a, 'a', 1000000);
    for (int backend = 0; backend < 2; backend++) {
        use_backend(backend);
        digest_of(&d, DIGEST_SHA256, (struct span){a, 1000000});
        assert_string_equal(d.hex, "cdc76e5c9914fb9281a1c7e284d73e67"
                                   "f1809a48a497200e046d39ccc7112cd0");
        digest_of(&d, DIGEST_SHA512, (struct span){a, 1000000});
        assert_string_equal(d.hex, "e718483d0ce769644e2e42c7bc15b463"
                                   "8e1f98b13b2044285632a803afa973eb"
                                   "de0ff244877ea60a4cb0432ce577c31b"
                                   "eb009c5c2c49aa2e4eadb217ad8cc09b");
    }
    free(a);
}

enum { LONGEST = 300 };

static void fill(uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)(i * 131 + (i >> 3));
}

static void every_length_split_anywhere(void **state) {
    (void)state;
    uint8_t text[LONGEST];
    char want[129];
    struct digest_ctx c;
    struct digest d;
    fill(text, sizeof text);
    for (int run = 0; run < 2 * DIGEST_ALGOS; run++) {
        enum digest_algo algo = (enum digest_algo)(run / 2);
        use_backend(run % 2);
        for (size_t n = 0; n <= LONGEST; n++) {
            reference(algo, text, n, want);
            for (size_t cut = 0; cut <= n; cut++) {
                digest_init(&c, algo);
                digest_update(&c, text, cut);
                digest_update(&c, text + cut, n - cut);
                digest_final(&c, &d);
                if (strcmp(d.hex, want))
                    fail_msg("run %d, %zu of %zu", run, cut, n);
            }
        }
    }
}

static void byte_by_byte(void **state) {
    (void)state;
    uint8_t text[LONGEST];
    char want[129];
    struct digest d;
    fill(text, sizeof text);
    for (int run = 0; run < 2 * DIGEST_ALGOS; run++) {
        struct digest_ctx c;
        use_backend(run % 2);
        digest_init(&c, (enum digest_algo)(run / 2));
        for (size_t n = 0; n < LONGEST; n++) {
            digest_update(&c, text + n, 1);
            digest_final(&c, &d);          /* leaves the hash usable */
            reference(c.algo, text, n + 1, want);
            assert_string_equal(d.hex, want);
        }
    }
}

/* One backend begins, the state goes through text, the other ends. */
static void saved_states_go_on_anywhere(void **state) {
    (void)state;
    uint8_t text[LONGEST];
    char want[129];
    struct digest_ctx c, loaded;
    struct digest d;
    fill(text, sizeof text);
    for (int run = 0; run < 4 * DIGEST_ALGOS; run++) {
        enum digest_algo algo = (enum digest_algo)(run / 4);
        reference(algo, text, LONGEST, want);
        for (size_t cut = 0; cut <= LONGEST; cut++) {
            struct buf line;
            buf_init(&line, 0, 4 << 10);
            use_backend(run & 1);
            digest_init(&c, algo);
            digest_update(&c, text, cut);
            digest_save(&c, &line);
            assert_false(line.failed);
            assert_int_equal(line.p[line.n - 1], '\n');
            memset(&loaded, 0xee, sizeof loaded);
            use_backend(run >> 1 & 1);
            assert_int_equal(digest_load(&loaded, guarded(buf_view(&line))),
                             0);
            assert_int_equal(loaded.total, cut);
            digest_update(&loaded, text + cut, LONGEST - cut);
            digest_final(&loaded, &d);
            if (strcmp(d.hex, want)) fail_msg("run %d, cut %zu", run, cut);
            buf_free(&line);
        }
    }
}

#define H64 "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static void damaged_states_are_refused(void **state) {
    (void)state;
    const struct {
        const char *line;
        bool good;
    } rows[] = {
        {"sha256 0 " H64 " ", true},
        {"sha256 2 " H64 " abcd", true},
        {"sha256 66 " H64 " abcd", true},
        {"sha512 0 " H64 H64 " ", true},
        {"sha256 0 " H64, true},
        {"", false}, {"sha256", false}, {"sha256 0", false},
        {"sha256 0 ", false}, {"md5 0 " H64 " ", false},
        {"sha256 2 " H64 " ab", false}, {"sha256 2 " H64 " abcde", false},
        {"sha256 2 " H64 " abcdef", false}, {"sha256 2 " H64 " abcg", false},
        {"sha256 0 " H64 " ab", false}, {"sha256 64 " H64 " ab", false},
        {"sha256 -1 " H64 " ", false}, {"sha256 x " H64 " ", false},
        {"sha256 99999999999999999999 " H64 " ", false},
        {"sha256 0 " H64 H64 " ", false}, {"sha512 0 " H64 " ", false},
        {"sha256  0 " H64 " ", false}, {" sha256 0 " H64 " ", false},
        {"sha256 18446744073709551615 " H64 " ab", false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct digest_ctx c;
        int rc = digest_load(&c, guarded(span_of(rows[i].line)));
        assert_row(rc == (rows[i].good ? 0 : -1), i);
    }
}

static void grammar_of_digests(void **state) {
    (void)state;
    const struct {
        struct span text;
        bool is;
        int parsed;
    } rows[] = {
        {S("sha256:" H64), true, 0},
        {S("sha512:" H64 H64), true, 0},
        {S("sha256:" H64 "0"), true, E_DIGEST_BAD},
        {S("sha256:0"), true, E_DIGEST_BAD},
        {S("sha512:" H64), true, E_DIGEST_BAD},
        {S("sha256:G123456789abcdef0123456789abcdef0123456789abcdef0123456789"
           "abcdef"), true, E_DIGEST_BAD},
        {S("sha256:A123456789abcdef0123456789abcdef0123456789abcdef0123456789"
           "abcdef"), true, E_DIGEST_BAD},
        {S("sha384:" H64), true, E_DIGEST_ALGO},
        {S("blake3:" H64), true, E_DIGEST_ALGO},
        {S("multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8"),
         true, E_DIGEST_ALGO},
        {S("sha256+b64u:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564"),
         true, E_DIGEST_ALGO},
        {S("a.b_c-d+e:="), true, E_DIGEST_ALGO},
        {S(""), false, E_DIGEST_BAD}, {S(":"), false, E_DIGEST_BAD},
        {S("sha256"), false, E_DIGEST_BAD},
        {S("sha256:"), false, E_DIGEST_BAD},
        {S(":" H64), false, E_DIGEST_BAD},
        {S("SHA256:" H64), false, E_DIGEST_BAD},
        {S("sha256::" H64), false, E_DIGEST_BAD},
        {S("sha256:a/b"), false, E_DIGEST_BAD},
        {S("sha256:.."), false, E_DIGEST_BAD},
        {S("sha256: " H64), false, E_DIGEST_BAD},
        {S("sha256:" H64 "\n"), false, E_DIGEST_BAD},
        {S("sha256:" H64 "\0"), false, E_DIGEST_BAD},
        {S("+a:b"), false, E_DIGEST_BAD}, {S("a+:b"), false, E_DIGEST_BAD},
        {S("a++b:c"), false, E_DIGEST_BAD},
        {S("a\0b:c"), false, E_DIGEST_BAD},
        {S("a:b\0c"), false, E_DIGEST_BAD},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct digest d;
        char text[DIGEST_TEXT_MAX];
        assert_row(digest_is(guarded(rows[i].text)) == rows[i].is, i);
        int rc = digest_parse(guarded(rows[i].text), &d);
        assert_row(rc == rows[i].parsed, i);
        if (rc) continue;
        digest_text(&d, text);
        assert_row(span_is(rows[i].text, text), i);
    }
}

static void equality_looks_at_both_parts(void **state) {
    (void)state;
    struct digest a, b;
    assert_int_equal(digest_parse(S("sha256:" H64), &a), 0);
    b = a;
    assert_true(digest_equal(&a, &b));
    b.hex[63] = '0';
    assert_false(digest_equal(&a, &b));
    b = a;
    b.algo = DIGEST_SHA512;
    assert_false(digest_equal(&a, &b));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fips_vectors),
        cmocka_unit_test(a_million_times_a),
        cmocka_unit_test(every_length_split_anywhere),
        cmocka_unit_test(byte_by_byte),
        cmocka_unit_test(saved_states_go_on_anywhere),
        cmocka_unit_test(damaged_states_are_refused),
        cmocka_unit_test(grammar_of_digests),
        cmocka_unit_test(equality_looks_at_both_parts),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}

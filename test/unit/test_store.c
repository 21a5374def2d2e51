/* The store in a temporary folder: uploads, blobs, manifests, tags,
 * referrers, lists. */
#define _GNU_SOURCE
#include <unistd.h>
/* Thousands of syncs would take the disk's time; test_faults.c has them. */
#define fsync(fd) ((void)(fd), 0)
#define fdatasync(fd) ((void)(fd), 0)
#include "unit.h"

static struct shared shared;
static struct arena arena;

static int setup(void **state) {
    if (folder_make(state)) return -1;
    store_setup(folder, &shared);
    store_set_limits(&(struct store_limits){.gc_grace_ms = 3600 * 1000});
    return 0;
}

static int reset(void **state) {
    (void)state;
    arena_free(&arena);
    store_set_limits(&(struct store_limits){.gc_grace_ms = 3600 * 1000});
    return 0;
}

static struct digest sum(struct span s) {
    struct digest d;
    digest_of(&d, DIGEST_SHA256, s);
    return d;
}

static struct span made(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));
static struct span made(const char *fmt, ...) {
    char text[4096];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    struct span s = {text, (size_t)n};
    return (struct span){arena_text(&arena, s), s.n};
}

static void on_disk(struct path *p, const char *fmt, const char *a,
                    const char *b) {
    path_join(p, folder, "/", (char *)0);
    size_t n = strlen(p->s);
    snprintf(p->s + n, sizeof p->s - n, fmt, a, b);
}

/* Links of repository `name`'s file for a blob, 0 where there is none. */
static long links(const char *name, const struct digest *d) {
    struct path p;
    struct stat st;
    if (name) store_blob_path(&p, name, d);
    else store_pool_path(&p, d);
    return fs_stat(p.s, &st) ? 0 : (long)st.st_nlink;
}

/* A second user of an upload, or the first one again. */
static int reopen(struct upload *u, const char *name, const char *id) {
    return store_upload_open(u, name, guarded(made("%s", id)));
}

static struct digest push_blob(const char *name, struct span text) {
    struct upload u;
    struct digest d = sum(text);
    assert_int_equal(store_upload_create(&u, name, DIGEST_SHA256), 0);
    assert_int_equal(store_upload_write(&u, text.p, text.n), 0);
    assert_int_equal(store_upload_commit(&u, name, &d), 0);
    assert_int_equal(u.fd, -1);
    assert_int_equal(store_upload_close(&u), 0);
    return d;
}

static void assert_blob(const char *name, const struct digest *d,
                        struct span want) {
    struct stat st;
    char got[4096];
    int fd;
    assert_int_equal(store_blob_open(name, d, &fd, &st), 0);
    assert_int_equal(st.st_size, want.n);
    assert_int_equal(fs_read_at(fd, got, sizeof got, 0), want.n);
    assert_memory_equal(got, want.p, want.n);
    fs_close(fd);
}

static bool has_blob(const char *name, const struct digest *d) {
    struct stat st;
    int fd, rc = store_blob_open(name, d, &fd, &st);
    if (!rc) fs_close(fd);
    assert_true(rc == 0 || rc == E_BLOB_UNKNOWN);
    return !rc;
}

/* ---- uploads and blobs */

static void a_committed_upload_is_a_blob(void **state) {
    (void)state;
    struct span text = S("one");
    struct digest d = push_blob("commit/a", text);
    assert_blob("commit/a", &d, text);
    assert_int_equal(links("commit/a", &d), 2);
    assert_false(has_blob("commit/b", &d));
    assert_false(store_repo_exists("commit/a"));
    /* The same in another repository costs a link, not a file. */
    push_blob("commit/b", text);
    push_blob("commit/b", text);
    assert_blob("commit/b", &d, text);
    assert_int_equal(links("commit/b", &d), 3);
    struct digest empty = push_blob("commit/a", S(""));
    assert_blob("commit/a", &empty, S(""));
    assert_int_equal(atomic_load(&shared.upload_bytes), 0);
}

static void sha512_is_kept_apart(void **state) {
    (void)state;
    struct upload u;
    struct digest d;
    struct span text = S("five hundred and twelve");
    digest_of(&d, DIGEST_SHA512, text);
    /* Announced, and found out only at the end. */
    for (int algo = 0; algo < DIGEST_ALGOS; algo++) {
        const char *name = algo ? "sha/announced" : "sha/late";
        assert_int_equal(store_upload_create(&u, name,
                                             (enum digest_algo)algo), 0);
        assert_int_equal(store_upload_write(&u, text.p, text.n), 0);
        assert_int_equal(store_upload_commit(&u, name, &d), 0);
        assert_blob(name, &d, text);
    }
}

static void a_wrong_digest_ends_the_upload(void **state) {
    (void)state;
    struct upload u;
    struct digest d = sum(S("something else"));
    assert_int_equal(store_upload_create(&u, "wrong", DIGEST_SHA256), 0);
    assert_int_equal(store_upload_write(&u, "abc", 3), 0);
    assert_int_equal(store_upload_commit(&u, "wrong", &d), E_DIGEST_INVALID);
    assert_int_equal(u.fd, -1);
    assert_int_equal(reopen(&u, "wrong", u.id), E_UPLOAD_UNKNOWN);
    assert_false(has_blob("wrong", &d));
    assert_int_equal(atomic_load(&shared.upload_bytes), 0);
}

/* Writes "abc", closes, spoils something, opens: how much is left. */
static void check_resume(void (*spoil)(const char *id), const char *left) {
    struct upload u;
    struct digest d;
    char id[UPLOAD_ID_LEN + 1];
    assert_int_equal(store_upload_create(&u, "resume", DIGEST_SHA256), 0);
    memcpy(id, u.id, sizeof id);
    assert_int_equal(store_upload_write(&u, "abc", 3), 0);
    assert_int_equal(store_upload_close(&u), 0);
    assert_int_equal(store_upload_close(&u), 0);
    if (spoil) spoil(id);
    assert_int_equal(reopen(&u, "resume", id), 0);
    assert_int_equal(u.size, strlen(left));
    assert_int_equal(store_upload_write(&u, "def", 3), 0);
    assert_int_equal(store_upload_close(&u), 0);
    assert_int_equal(reopen(&u, "resume", id), 0);
    struct span all = made("%sdef", left);
    assert_int_equal(u.size, all.n);
    d = sum(all);
    assert_int_equal(store_upload_commit(&u, "resume", &d), 0);
    assert_blob("resume", &d, all);
    assert_int_equal(reopen(&u, "resume", id), E_UPLOAD_UNKNOWN);
}

static void spoil_boot(const char *id) {
    (void)id;
    store.boot[0] ^= 1;
}

static void spoil_by_growing(const char *id) {
    struct path p;
    on_disk(&p, "uploads/%s%s", id, "");
    FILE *f = fopen(p.s, "a");
    assert_non_null(f);
    fputs("not in the state", f);
    fclose(f);
    atomic_fetch_add(&shared.upload_bytes, 16);
}

static void spoil_by_cutting(const char *id) {
    struct path p;
    on_disk(&p, "uploads/%s%s", id, "");
    assert_int_equal(truncate(p.s, 2), 0);
    atomic_fetch_sub(&shared.upload_bytes, 1);
}

static void spoil_state(const char *id) {
    struct path p;
    on_disk(&p, "uploads/%s%s", id, ".state");
    FILE *f = fopen(p.s, "w");
    assert_non_null(f);
    fputs("sha256 3 nonsense\nboot", f);
    fclose(f);
}

static void remove_state(const char *id) {
    struct path p;
    on_disk(&p, "uploads/%s%s", id, ".state");
    assert_int_equal(unlink(p.s), 0);
}

static void uploads_go_on_where_their_state_says(void **state) {
    (void)state;
    long long before = atomic_load(&shared.upload_bytes);
    check_resume(0, "abc");
    check_resume(spoil_boot, "abc");            /* read again */
    check_resume(spoil_by_growing, "abc");      /* came after the state */
    check_resume(spoil_by_cutting, "ab");
    check_resume(spoil_state, "");
    check_resume(remove_state, "");
    assert_int_equal(atomic_load(&shared.upload_bytes), before);
}

static void uploads_have_one_user_and_one_repository(void **state) {
    (void)state;
    struct upload a, b;
    assert_int_equal(store_upload_create(&a, "busy", DIGEST_SHA512), 0);
    struct span id = made("%s", a.id);
    assert_int_equal(store_upload_open(&b, "busy", id), E_UPLOAD_BUSY);
    assert_int_equal(b.fd, -1);
    assert_int_equal(store_upload_close(&a), 0);
    assert_int_equal(store_upload_open(&b, "other", id), E_UPLOAD_UNKNOWN);
    const struct span bad[] = {
        S(""), S("x"), S("."), S("../format"), {id.p, id.n - 1},
        made("%s0", id.p), made("c%s", id.p + 1), made("A%s", id.p + 1),
        made("%.48s/", id.p), made("%.48sG", id.p), made("%.48sF", id.p),
        {memset(arena_alloc(&arena, UPLOAD_ID_LEN), 0, UPLOAD_ID_LEN),
         UPLOAD_ID_LEN},
        {memcpy(arena_alloc(&arena, UPLOAD_ID_LEN), id.p, UPLOAD_ID_LEN - 1),
         UPLOAD_ID_LEN},
    };
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_row(store_upload_open(&b, "busy", guarded(bad[i])) ==
                   E_UPLOAD_UNKNOWN, i);
    assert_int_equal(store_upload_open(&b, "busy", id), 0);
    assert_int_equal(store_upload_cancel(&b), 0);
    assert_int_equal(store_upload_open(&b, "busy", id), E_UPLOAD_UNKNOWN);
}

static void abandoned_uploads_expire(void **state) {
    (void)state;
    struct upload used, idle, fresh;
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    struct path p;
    struct stat st;
    assert_int_equal(store_upload_create(&used, "old", DIGEST_SHA256), 0);
    assert_int_equal(store_upload_write(&used, "used", 4), 0);
    assert_int_equal(store_upload_create(&idle, "old", DIGEST_SHA256), 0);
    assert_int_equal(store_upload_write(&idle, "idle", 4), 0);
    assert_int_equal(store_upload_close(&idle), 0);
    assert_int_equal(store_upload_create(&fresh, "old", DIGEST_SHA256), 0);
    assert_int_equal(store_upload_write(&fresh, "fresh", 5), 0);
    assert_int_equal(store_upload_close(&fresh), 0);
    store_upload_path(&p, &used, "");
    assert_int_equal(utimensat(fs_root, p.s, old, 0), 0);
    store_upload_path(&p, &idle, "");
    assert_int_equal(utimensat(fs_root, p.s, old, 0), 0);
    store_upload_expire(60 * 1000);
    assert_int_equal(atomic_load(&shared.upload_bytes), 9);
    assert_int_equal(reopen(&idle, "old", idle.id), E_UPLOAD_UNKNOWN);
    store_upload_path(&p, &idle, ".state");
    assert_int_equal(fs_stat(p.s, &st), -1);
    assert_int_equal(reopen(&fresh, "old", fresh.id), 0);
    atomic_store(&shared.upload_bytes, 77);
    store_upload_count();
    assert_int_equal(atomic_load(&shared.upload_bytes), 9);
    assert_int_equal(store_upload_cancel(&fresh), 0);
    assert_int_equal(store_upload_cancel(&used), 0);
    assert_int_equal(atomic_load(&shared.upload_bytes), 0);
}

static void limits_are_kept(void **state) {
    (void)state;
    struct upload u;
    assert_int_equal(store_upload_create(&u, "limits", DIGEST_SHA256), 0);
    store_set_limits(&(struct store_limits){.max_blob = 5});
    assert_int_equal(store_upload_write(&u, "abc", 3), 0);
    assert_int_equal(store_upload_write(&u, "def", 3), E_TOO_LARGE);
    assert_int_equal(store_upload_write(&u, "de", 2), 0);
    assert_int_equal(store_upload_write(&u, "f", 1), E_TOO_LARGE);
    store_set_limits(&(struct store_limits){.max_uploads = 7});
    assert_int_equal(store_upload_write(&u, "ghi", 3), E_FULL);
    assert_int_equal(store_upload_write(&u, "gh", 2), 0);
    assert_int_equal(store_upload_room(1), E_FULL);
    assert_int_equal(store_upload_room(0), 0);
    store_set_limits(&(struct store_limits){.min_free = UINT64_MAX});
    assert_int_equal(store_upload_room(0), E_FULL);
    store_set_limits(&(struct store_limits){.min_free = 0});
    assert_int_equal(store_upload_room(UINT64_MAX), E_FULL);
    struct digest d = sum(S("abcdegh"));
    assert_int_equal(store_upload_commit(&u, "limits", &d), 0);
    assert_blob("limits", &d, S("abcdegh"));
}

static void mounts(void **state) {
    (void)state;
    struct digest d = push_blob("mount/a", S("to mount")), none = sum(S("?"));
    assert_int_equal(store_blob_mount("mount/b", "mount/a", &d), 0);
    assert_int_equal(store_blob_mount("mount/b", "mount/a", &d), 0);
    assert_blob("mount/b", &d, S("to mount"));
    assert_int_equal(store_blob_mount("mount/c", 0, &d), 0);
    assert_blob("mount/c", &d, S("to mount"));
    assert_int_equal(links(0, &d), 4);
    assert_int_equal(store_blob_mount("mount/d", "mount/a", &none),
                     E_BLOB_UNKNOWN);
    assert_int_equal(store_blob_mount("mount/d", "mount/none", &d),
                     E_BLOB_UNKNOWN);
    assert_int_equal(store_blob_mount("mount/d", 0, &none), E_BLOB_UNKNOWN);
    /* A miss leaves no repository behind. */
    struct stat st;
    assert_int_equal(fs_stat("repos/mount/d", &st), -1);
}

static void deleted_blobs_give_their_room_back(void **state) {
    (void)state;
    struct digest d = push_blob("delete/a", S("to delete"));
    push_blob("delete/b", S("to delete"));
    assert_int_equal(store_blob_delete("delete/a", &d), 0);
    assert_false(has_blob("delete/a", &d));
    assert_blob("delete/b", &d, S("to delete"));
    assert_int_equal(store_blob_delete("delete/a", &d), E_BLOB_UNKNOWN);
    assert_int_equal(store_blob_delete("delete/c", &d), E_BLOB_UNKNOWN);
    assert_int_equal(store_blob_delete("delete/b", &d), 0);
    assert_int_equal(links(0, &d), 0);
    assert_int_equal(store_blob_mount("delete/c", 0, &d), E_BLOB_UNKNOWN);
    push_blob("delete/a", S("to delete"));
    assert_blob("delete/a", &d, S("to delete"));
}

static void damaged_blobs_are_pushed_again(void **state) {
    (void)state;
    struct digest d = push_blob("heal/a", S("to heal"));
    struct path p;
    /* The pool's file and the repository's are the same one. */
    store_pool_path(&p, &d);
    int fd = fs_open(p.s, O_RDWR);
    assert_int_equal(fs_truncate(fd, 3), 0);
    fs_close(fd);
    push_blob("heal/b", S("to heal"));
    assert_blob("heal/b", &d, S("to heal"));
    push_blob("heal/a", S("to heal"));
    assert_blob("heal/a", &d, S("to heal"));
    /* Without a pool nothing is lost. */
    assert_int_equal(fs_unlink(p.s), 0);
    assert_blob("heal/a", &d, S("to heal"));
    assert_int_equal(store_blob_mount("heal/c", "heal/a", &d), 0);
    assert_blob("heal/c", &d, S("to heal"));
}

static void a_repository_that_vanished_is_made_again(void **state) {
    (void)state;
    push_blob("vanish", S("1"));
    assert_int_equal(fs_rename("repos/vanish", "trash/vanish"), 0);
    struct digest d = push_blob("vanish", S("2"));
    assert_blob("vanish", &d, S("2"));
}

/* ---- manifests, tags, referrers */

static struct digest put(const char *name, struct span text,
                         const char *tag, const char *second) {
    struct manifest m;
    const char *why = 0;
    memset(&m, 0, sizeof m);
    m.bytes = text;
    m.who = "it's me";
    m.digest = sum(text);
    if (tag) m.tags[m.tag_count++] = tag;
    if (second) m.tags[m.tag_count++] = second;
    assert_int_equal(manifest_parse(&arena, S("application/x.test"), &m,
                                    &why), 0);
    assert_int_equal(store_manifest_put(name, &m), 0);
    return m.digest;
}

static struct span tags_of(const char *name, size_t max, const char *last) {
    struct list l = {.arena = &arena, .max = max};
    struct buf b;
    if (last) l.last = span_of(last);
    buf_init(&b, &arena, 1 << 20);
    int rc = store_tags(name, &l);
    if (rc) buf_printf(&b, "%d", rc);
    for (size_t i = 0; i < l.count; i++) {
        buf_span(&b, l.names[i]);
        buf_text(&b, " ");
    }
    if (l.more) buf_text(&b, "...");
    return buf_view(&b);
}

static void manifests_are_found_by_digest_and_tag(void **state) {
    (void)state;
    struct record r;
    struct span text = S("{\"a\":1}");
    assert_int_equal(store_tag_find("m/a", "x", &r), E_NAME_UNKNOWN);
    struct digest d = put("m/a", text, "v1", "v2");
    assert_true(store_repo_exists("m/a"));
    assert_false(store_repo_exists("m"));
    assert_int_equal(store_tag_find("m/a", "v1", &r), 0);
    assert_true(digest_equal(&r.digest, &d));
    assert_string_equal(r.media_type, "application/x.test");
    assert_int_equal(r.size, text.n);
    assert_int_equal(store_manifest_find("m/a", &d, &r), 0);
    assert_true(digest_equal(&r.digest, &d));
    assert_blob("m/a", &d, text);
    struct digest none = sum(S("?"));
    assert_int_equal(store_manifest_find("m/a", &none, &r),
                     E_MANIFEST_UNKNOWN);
    assert_int_equal(store_manifest_find("m/b", &none, &r), E_NAME_UNKNOWN);
    assert_int_equal(store_tag_find("m/a", "v3", &r), E_MANIFEST_UNKNOWN);
    /* A manifest is not deleted as a blob. */
    assert_int_equal(store_blob_delete("m/a", &d), E_BLOB_UNKNOWN);
    assert_blob("m/a", &d, text);
}

static void tags_move_and_go(void **state) {
    (void)state;
    struct record r;
    struct digest one = put("t/a", S("{\"t\":1}"), "x", "y");
    struct digest two = put("t/a", S("{\"t\":2}"), "x", 0);
    assert_int_equal(store_tag_find("t/a", "x", &r), 0);
    assert_true(digest_equal(&r.digest, &two));
    assert_int_equal(store_tag_find("t/a", "y", &r), 0);
    assert_true(digest_equal(&r.digest, &one));
    assert_span(tags_of("t/a", 10, 0), "x y ");
    assert_int_equal(store_tag_delete("t/a", "y"), 0);
    assert_int_equal(store_tag_delete("t/a", "y"), E_MANIFEST_UNKNOWN);
    assert_int_equal(store_tag_delete("t/none", "y"), E_NAME_UNKNOWN);
    assert_span(tags_of("t/a", 10, 0), "x ");
    assert_int_equal(store_manifest_find("t/a", &one, &r), 0);
    /* With a manifest all its tags go, and only they. */
    put("t/a", S("{\"t\":1}"), "z", "w");
    assert_int_equal(store_manifest_delete("t/a", &one), 0);
    assert_span(tags_of("t/a", 10, 0), "x ");
    assert_int_equal(store_manifest_find("t/a", &one, &r),
                     E_MANIFEST_UNKNOWN);
    assert_false(has_blob("t/a", &one));
    assert_int_equal(store_manifest_delete("t/a", &one), E_MANIFEST_UNKNOWN);
    assert_int_equal(store_manifest_delete("t/none", &one), E_NAME_UNKNOWN);
    put("t/a", S("{\"t\":1}"), "z", 0);
    assert_int_equal(store_tag_find("t/a", "z", &r), 0);
}

static void tag_lists_have_pages_in_byte_order(void **state) {
    (void)state;
    put("pages", S("{}"), "b", "B");
    put("pages", S("{}"), "a", "10");
    put("pages", S("{}"), "2", "_");
    assert_span(tags_of("pages", 100, 0), "10 2 B _ a b ");
    assert_span(tags_of("pages", 6, 0), "10 2 B _ a b ");
    assert_span(tags_of("pages", 5, 0), "10 2 B _ a ...");
    assert_span(tags_of("pages", 1, 0), "10 ...");
    assert_span(tags_of("pages", 0, 0), "...");
    assert_span(tags_of("pages", 2, "2"), "B _ ...");
    assert_span(tags_of("pages", 2, "C"), "_ a ...");
    assert_span(tags_of("pages", 2, "a"), "b ");
    assert_span(tags_of("pages", 2, "b"), "");
    assert_span(tags_of("pages", 2, ""), "10 2 ...");
    assert_span(tags_of("no/such", 2, 0), made("%d", E_NAME_UNKNOWN).p);
}

static void damaged_records_are_not_served(void **state) {
    (void)state;
#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    const struct {
        const char *text;
        bool good;
    } rows[] = {
        {"sha256:" HEX " a/b 5 now -\n", true},
        {"sha256:" HEX " a/b 5 now - sha256:" HEX "\n", true},
        {"sha256:" HEX " a/b 5 now -", true},
        {"", false}, {"\n", false}, {"sha256:" HEX, false},
        {"sha256:" HEX " a/b", false}, {"sha256:" HEX " a/b 5", false},
        {"sha256:" HEX " a/b 5 now", false},
        {"sha256:" HEX " a/b 5 now \n", false},
        {"sha256:" HEX " a 5 now -\n", false},
        {"sha256:" HEX " a/b x now -\n", false},
        {"sha256:" HEX " a/b -5 now -\n", false},
        {"sha256:" HEX "  a/b 5 now -\n", false},
        {"sha256:../../x a/b 5 now -\n", false},
        {"md5:0 a/b 5 now -\n", false},
        {"sha256:" HEX " a/b 5 now - sha256:x\n", false},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct record r;
        struct digest subject;
        assert_int_equal(fs_save_quick("uploads/.record",
                                       span_of(rows[i].text)), 0);
        int rc = store_record_load("uploads/.record", &r, &subject);
        assert_row(rc == (rows[i].good ? 0 : -1), i);
        if (rc) assert_row(errno == EILSEQ, i);
    }
    fs_unlink("uploads/.record");
    /* A damaged tag is not there, and a push puts it right. */
    struct record r;
    put("damaged", S("{}"), "x", 0);
    assert_int_equal(fs_save_quick("repos/damaged/_oci/tags/x", S("?")), 0);
    assert_int_equal(store_tag_find("damaged", "x", &r), E_MANIFEST_UNKNOWN);
    put("damaged", S("{}"), "x", 0);
    assert_int_equal(store_tag_find("damaged", "x", &r), 0);
}

static unsigned referrers_of(const char *name, const struct digest *subject,
                             const char *type, struct referrers *page) {
    struct buf out;
    struct json j;
    unsigned n = 0;
    buf_init(&out, &arena, REFERRERS_PAGE + DESCRIPTOR_MAX);
    page->out = &out;
    page->arena = &arena;
    page->artifact_type = span_of(type);
    buf_text(&out, "[");
    assert_int_equal(store_referrers(name, subject, page), 0);
    buf_text(&out, "]");
    assert_false(out.failed);
    json_init(&j, buf_view(&out), 0);
    assert_true(json_array(&j));
    while (json_item(&j)) json_skip(&j), n++;
    assert_true(json_end(&j));
    return n;
}

#define SUBJECT "\"subject\":{\"digest\":\"sha256:" HEX "\",\"size\":1}"

static void referrers(void **state) {
    (void)state;
    struct referrers page = {.out = 0};
    struct digest subject;
    digest_parse(S("sha256:" HEX), &subject);
    assert_int_equal(referrers_of("ref", &subject, "", &page), 0);
    struct digest a = put("ref", S("{" SUBJECT ",\"artifactType\":\"a/a\"}"),
                          0, 0);
    put("ref", S("{" SUBJECT ",\"artifactType\":\"b/b\"}"), "tagged", 0);
    put("ref", S("{" SUBJECT ",\"artifactType\":\"b/\\u0062\",\"x\":1}"), 0,
        0);
    assert_int_equal(referrers_of("ref", &subject, "", &page), 3);
    assert_int_equal(referrers_of("ref", &subject, "a/a", &page), 1);
    assert_int_equal(referrers_of("ref", &subject, "b/b", &page), 2);
    assert_int_equal(referrers_of("ref", &subject, "c/c", &page), 0);
    assert_int_equal(store_manifest_delete("ref", &a), 0);
    assert_int_equal(referrers_of("ref", &subject, "", &page), 2);
    assert_int_equal(referrers_of("ref", &subject, "a/a", &page), 0);
}

static void referrers_come_in_pages(void **state) {
    (void)state;
    enum { MANY = 50, SIZE = 200 << 10 };
    struct referrers page = {.out = 0};
    struct digest subject;
    unsigned n = 0, pages = 0;
    char *text = malloc(SIZE + 1024);
    digest_parse(S("sha256:" HEX), &subject);
    for (int i = 0; i < MANY; i++) {
        int k = sprintf(text, "{" SUBJECT ",\"annotations\":{\"%d\":\"", i);
        memset(text + k, 'x', SIZE);
        strcpy(text + k + SIZE, "\"}}");
        put("many", span_of(text), 0, 0);
    }
    free(text);
    do {
        n += referrers_of("many", &subject, "", &page);
        page.last = page.next;
        pages++;
    } while (page.next.n);
    assert_int_equal(n, MANY);
    assert_true(pages > 1 && pages < MANY);
}

/* ---- lists */

static int compare_spans(const void *a, const void *b) {
    struct span x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return span_compare(x, y);
}

static void lists_keep_the_smallest(void **state) {
    (void)state;
    enum { MANY = 200 };
    struct span all[MANY];
    for (int i = 0; i < MANY; i++)
        all[i] = made("%x", (unsigned)(i * 7919 % 1009));
    struct span sorted[MANY];
    memcpy(sorted, all, sizeof all);
    qsort(sorted, MANY, sizeof *sorted, compare_spans);
    for (size_t max = 0; max < MANY + 3; max++) {
        for (size_t after = 0; after < MANY; after += 37) {
            struct list l = {.arena = &arena, .max = max};
            if (after) l.last = sorted[after - 1];
            for (int i = 0; i < MANY; i++) list_add(&l, all[i]);
            list_sort(&l);
            size_t left = MANY - after, want = max < left ? max : left;
            assert_int_equal(l.count, want);
            assert_int_equal(l.more, max < left);
            for (size_t i = 0; i < want; i++)
                assert_int_equal(span_compare(l.names[i], sorted[after + i]),
                                 0);
        }
    }
}

static struct span repos_page(size_t max, struct span last, size_t *count) {
    struct list l = {.arena = &arena, .max = max, .last = last};
    struct buf b;
    buf_init(&b, &arena, 1 << 20);
    assert_int_equal(store_repos(&l), 0);
    for (size_t i = 0; i < l.count; i++) {
        buf_span(&b, l.names[i]);
        buf_text(&b, l.more || i + 1 < l.count ? " " : "");
    }
    *count = l.count;
    return buf_view(&b);
}

/* The order is that of whole names; a tree walk has another. */
static void the_catalog_is_in_byte_order(void **state) {
    (void)state;
    static const char *const names[] = {
        "0cat/a", "0cat/a-b", "0cat/a-b/c", "0cat/a.b", "0cat/a/b",
        "0cat/a/b-c", "0cat/a/b.c", "0cat/a/b/c/d/e/f", "0cat/a0",
        "0cat/a__b", "0cat/a_b", "0cat/aa", "0cat/b/c", "0cat/z",
    };
    struct span sorted[COUNT(names)], prefix = S("0cat");
    size_t n;
    for (size_t i = 0; i < COUNT(names); i++) {
        put(names[(i * 5) % COUNT(names)], S("{}"), 0, 0);
        sorted[i] = span_of(names[i]);
    }
    push_blob("0cat/blobs-only", S("x"));
    qsort(sorted, COUNT(names), sizeof *sorted, compare_spans);
    for (size_t max = 1; max <= COUNT(names); max++) {
        for (size_t after = 0; after + max <= COUNT(names); after++) {
            struct buf want;
            buf_init(&want, &arena, 4096);
            for (size_t i = 0; i < max; i++) {
                buf_span(&want, sorted[after + i]);
                buf_text(&want, " ");
            }
            buf_put(&want, "", 1);
            /* Other tests' repositories come behind these. */
            struct span last = after ? sorted[after - 1] : prefix;
            assert_span(repos_page(max, last, &n), want.p);
            assert_int_equal(n, max);
        }
    }
    /* `last` need not be a repository. */
    assert_span(repos_page(1, S("0cat/a."), &n), "0cat/a.b ");
    assert_span(repos_page(1, S("0cat/a/"), &n), "0cat/a/b ");
    assert_span(repos_page(1, S("0cat/a/b/"), &n), "0cat/a/b/c/d/e/f ");
    assert_span(repos_page(1, S("0cat/a/b/c/d/e/f/g"), &n), "0cat/a0 ");
    assert_span(repos_page(9, S("zzz"), &n), "");
}

/* More of them than are looked at together. They are links to two that
 * are real, since that many folders take their time. */
static void large_catalogs_come_in_windows(void **state) {
    (void)state;
    enum { MANY = REPO_WINDOW / 2 + 300 };
    static const char *const folders[] = {
        "repos/1big", "trash/one", "trash/one/_oci",
        "trash/one/_oci/manifests", "trash/two", "trash/two/_oci",
        "trash/two/_oci/manifests", "trash/two/x", "trash/two/x/_oci",
        "trash/two/x/_oci/manifests"};
    struct span last = S("1"), name;
    size_t n = 0;
    for (size_t i = 0; i < COUNT(folders); i++)
        assert_int_equal(fs_mkdir(folders[i]), 0);
    for (int i = 0; i < MANY; i++) {
        const char *to = i % 7 ? "../../trash/one" : "../../trash/two";
        char from[32];
        snprintf(from, sizeof from, "repos/1big/%04d", i);
        assert_int_equal(symlinkat(to, fs_root, from), 0);
    }
    for (bool more = true; more;) {
        struct list l = {.arena = &arena, .max = 1000, .last = last};
        assert_int_equal(store_repos(&l), 0);
        more = l.more && span_starts(l.names[l.count - 1], "1big/");
        for (size_t i = 0; i < l.count; i++) {
            if (!span_starts(l.names[i], "1big/")) break;
            name = made(n % 8 == 1 ? "1big/%04zu/x" : "1big/%04zu",
                        n / 8 * 7 + (n % 8 ? n % 8 - 1 : 0));
            assert_span(l.names[i], name.p);
            n++;
        }
        last = l.names[l.count - 1];
    }
    assert_int_equal(n, MANY + (MANY + 6) / 7);
}

static void names_of_every_length(void **state) {
    (void)state;
    char deep[NAME_MAX_LEN + 1], wide[NAME_MAX_LEN + 1];
    struct record r;
    size_t n;
    for (int i = 0; i < NAME_MAX_LEN; i++) deep[i] = i % 2 ? '/' : 'z';
    deep[NAME_MAX_LEN] = 0;
    memset(wide, 'z', NAME_MAX_LEN);
    wide[NAME_MAX_LEN] = 0;
    put(deep, S("{}"), "deep", 0);
    put(wide, S("{}"), "wide", 0);
    assert_int_equal(store_tag_find(deep, "deep", &r), 0);
    assert_int_equal(store_tag_find(wide, "wide", &r), 0);
    assert_span(repos_page(9, S("z"), &n), made("%s %s", deep, wide).p);
    char name[NAME_MAX_LEN + 1];
    uint64_t wait;
    while (store_view_due(name, true, &wait))
        assert_int_equal(store_view_write(name), 0);
}

/* ---- the view */

static void index_json_shows_the_repository(void **state) {
    (void)state;
    char *text = arena_alloc(&arena, 64 << 10), name[NAME_MAX_LEN + 1];
    uint64_t wait;
    put("view/a", S("{\"v\":1}"), "one", "uno");
    put("view/a", S("{\"v\":2}"), 0, 0);
    assert_true(store_view_due(name, true, &wait));
    bool found = false;
    do {
        found |= !strcmp(name, "view/a");
        assert_int_equal(store_view_write(name), 0);
    } while (store_view_due(name, true, &wait));
    assert_true(found);
    ssize_t n = fs_load("repos/view/a/_oci/index.json", text, 64 << 10);
    assert_true(n > 0);
    struct json j;
    json_init(&j, (struct span){text, (size_t)n}, 0);
    json_skip(&j);
    assert_true(json_end(&j));
    assert_non_null(strstr(text, "image.ref.name\":\"one\""));
    assert_non_null(strstr(text, "image.ref.name\":\"uno\""));
    struct digest one = sum(S("{\"v\":1}")), two = sum(S("{\"v\":2}"));
    char *at = strstr(text, one.hex);
    assert_non_null(at);
    assert_non_null(strstr(at + 1, one.hex));
    at = strstr(text, two.hex);
    assert_non_null(at);
    assert_null(strstr(at + 1, two.hex));
}

static void views_are_remembered_across_a_crash(void **state) {
    (void)state;
    char name[NAME_MAX_LEN + 1];
    uint64_t wait;
    put("view/crash", S("{}"), "x", 0);
    store.view_count = 0;           /* as a new process has it */
    assert_false(store_view_due(name, true, &wait));
    store_view_recover();
    assert_false(store_view_due(name, false, &wait));
    assert_in_range(wait, 1, VIEW_DELAY_MS);
    assert_true(store_view_due(name, true, &wait));
    assert_string_equal(name, "view/crash");
    assert_int_equal(store_view_write(name), 0);
    store_view_recover();
    assert_false(store_view_due(name, true, &wait));
}

static void more_views_than_are_remembered(void **state) {
    (void)state;
    enum { MANY = VIEW_PENDING_MAX + 20 };
    char name[NAME_MAX_LEN + 1];
    uint64_t wait;
    unsigned n = 0;
    for (int i = 0; i < MANY; i++) store_view_mark(made("lost/%d", i).p);
    while (store_view_due(name, true, &wait)) {
        struct path p;
        store_marker(&p, "dirty/", name);
        n += !fs_unlink(p.s);       /* one may come twice */
    }
    assert_int_equal(n, MANY);
}

#define TEST(name) cmocka_unit_test_teardown(name, reset)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_committed_upload_is_a_blob),
        TEST(sha512_is_kept_apart),
        TEST(a_wrong_digest_ends_the_upload),
        TEST(uploads_go_on_where_their_state_says),
        TEST(uploads_have_one_user_and_one_repository),
        TEST(abandoned_uploads_expire),
        TEST(limits_are_kept),
        TEST(mounts),
        TEST(deleted_blobs_give_their_room_back),
        TEST(damaged_blobs_are_pushed_again),
        TEST(a_repository_that_vanished_is_made_again),
        TEST(manifests_are_found_by_digest_and_tag),
        TEST(tags_move_and_go),
        TEST(tag_lists_have_pages_in_byte_order),
        TEST(damaged_records_are_not_served),
        TEST(referrers),
        TEST(referrers_come_in_pages),
        TEST(lists_keep_the_smallest),
        TEST(the_catalog_is_in_byte_order),
        TEST(large_catalogs_come_in_windows),
        TEST(names_of_every_length),
        TEST(index_json_shows_the_repository),
        TEST(views_are_remembered_across_a_crash),
        TEST(more_views_than_are_remembered),
    };
    return cmocka_run_group_tests(tests, setup, folder_remove);
}

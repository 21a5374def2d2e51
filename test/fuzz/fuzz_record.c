/* Small files of the store that somebody else may have written: records,
 * and the states of uploads. */
#include "fuzz.h"

static struct shared shared;

static void write_whole(const char *path, struct span s) {
    int fd = openat(fs_root, path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && !fs_write(fd, s.p, s.n));
    close(fd);
}

#define UPLOAD "uploads/aca978112ca1bbdca0123456789abcdef0123456789abcdef"

static char memory[] = "/dev/shm/dims-fuzz-XXXXXX";
static char disk[] = "/tmp/dims-fuzz-XXXXXX";
static const char *folder;

static void cleanup(void) {
    fs_unlink("record");
    fs_unlink(UPLOAD);
    fs_unlink(UPLOAD ".state");
    unlinkat(fs_root, "uploads", AT_REMOVEDIR);
    rmdir(folder);
}

static void setup(void) {
    folder = mkdtemp(memory);
    if (!folder) folder = mkdtemp(disk);
    CHECK(folder);
    fs_root = open(folder, O_RDONLY | O_DIRECTORY);
    CHECK(fs_root >= 0 && !fs_mkdir("uploads") && !atexit(cleanup));
    store.shared = &shared;
    memcpy(store.boot, "boot\n", 6);
    log_init(LOG_ERROR, false);
}

/* What was read, put into a record of our own, is read again. */
static void check_record(struct span in) {
    struct record r, again;
    struct digest subject, same;
    write_whole("record", in);
    if (store_record_load("record", &r, &subject)) {
        CHECK(errno == EILSEQ);
        return;
    }
    struct buf b;
    char digest[DIGEST_TEXT_MAX];
    CHECK(name_is_media_type(span_of(r.media_type)));
    digest_text(&r.digest, digest);
    buf_init(&b, 0, SMALL_FILE_MAX);
    buf_printf(&b, "%s %s %llu now %s", digest, r.media_type,
               (unsigned long long)r.size, r.who);
    if (subject.hex[0]) {
        digest_text(&subject, digest);
        buf_printf(&b, " %s", digest);
    }
    write_whole("record", buf_view(&b));
    /* A NUL in `who` ends it: dims writes none. */
    bool cut = !*r.who;
    CHECK(cut || !store_record_load("record", &again, &same));
    if (!cut) {
        CHECK(digest_equal(&r.digest, &again.digest));
        CHECK(r.size == again.size && !strcmp(r.media_type,
                                              again.media_type));
        CHECK(!subject.hex[0] == !same.hex[0]);
    }
    buf_free(&b);
}

static void check_digest_state(struct span in) {
    struct digest_ctx c, again;
    struct digest one, two;
    struct buf b;
    struct span line = span_cut(&in, '\n');
    if (digest_load(&c, line)) return;
    for (int i = 0; i < 3; i++) span_cut(&line, ' ');
    CHECK(line.n == c.total % digest_algos[c.algo].block * 2);
    buf_init(&b, 0, SMALL_FILE_MAX);
    digest_save(&c, &b);
    CHECK(!b.failed && !digest_load(&again, buf_view(&b)));
    digest_update(&c, "abc", 3);
    digest_update(&again, "abc", 3);
    digest_final(&c, &one);
    digest_final(&again, &two);
    CHECK(digest_equal(&one, &two));
    buf_free(&b);
}

/* Whatever the state says: no more bytes than there are, and a hash of
 * exactly these. */
static void check_upload(struct span in) {
    struct upload u;
    struct stat st;
    write_whole(UPLOAD, span_of("0123456789"));
    write_whole(UPLOAD ".state", in);
    CHECK(!store_upload_open(&u, "a", span_of(strchr(UPLOAD, '/') + 1)));
    CHECK(u.size <= 10 && u.hash.total == u.size && u.hashed);
    CHECK(!fs_stat_fd(u.fd, &st) && (uint64_t)st.st_size == u.size);
    bool trusted = u.saved == u.size && u.size;
    if (!trusted) {
        struct digest got, want;
        digest_final(&u.hash, &got);
        digest_of(&want, u.hash.algo,
                  (struct span){"0123456789", (size_t)u.size});
        CHECK(digest_equal(&got, &want) || u.saved == u.size);
    }
    u.saved = u.size;
    CHECK(!store_upload_close(&u));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct span in = {(const char *)data, n};
    if (fs_root < 0) setup();
    if (n >= SMALL_FILE_MAX) return 0;
    check_record(in);
    check_digest_state(in);
    check_upload(in);
    log_state.n = 0;
    return 0;
}

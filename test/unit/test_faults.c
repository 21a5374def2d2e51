/* The store while system calls fail, one at a time, everywhere: what was
 * answered with success is there and durable, what was not can be tried
 * again, and nothing leaks. Durable is judged by a model: a name counts
 * once its folder was synced, bytes once their file was. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PENDING_MAX = 512 };

/* Names and bytes that a power cut could still take. */
static struct pending {
    ino_t folder, file;       /* one of them is 0 */
    char name[256];
} pending[PENDING_MAX];
static unsigned pending_count;
static unsigned calls, fault_at;
static int fault_errno;

/* Whether this call is the one to fail. */
static bool faulty(void) {
    if (++calls != fault_at) return false;
    errno = fault_errno;
    return true;
}

static ino_t inode_of(int fd) {
    struct stat st;
    return fstat(fd, &st) ? 0 : st.st_ino;
}

static void pending_add(ino_t folder, ino_t file, const char *name) {
    for (unsigned i = 0; i < pending_count; i++) {
        if (pending[i].folder == folder && pending[i].file == file &&
            !strcmp(pending[i].name, name)) return;
    }
    if (pending_count == PENDING_MAX) abort();
    struct pending *p = &pending[pending_count++];
    p->folder = folder;
    p->file = file;
    strcpy(p->name, name);
}

static void pending_synced(ino_t ino) {
    for (unsigned i = 0; i < pending_count;) {
        struct pending *p = &pending[i];
        if (p->folder != ino && p->file != ino) i++;
        else *p = pending[--pending_count];
    }
}

/* A name appeared or went: its folder has to be synced. */
static void changed(int at, const char *path) {
    char folder[1024];
    struct stat st;
    strcpy(folder, path);
    char *slash = strrchr(folder, '/');
    if (slash) *slash = 0;
    if (!fstatat(at, slash ? folder : ".", &st, 0))
        pending_add(st.st_ino, 0, slash ? slash + 1 : path);
}

static int test_openat(int at, const char *path, int flags, mode_t mode) {
    if (faulty()) return -1;
    struct stat st;
    bool there = !fstatat(at, path, &st, 0);
    int fd = openat(at, path, flags, mode);
    if (fd >= 0 && !there) {
        changed(at, path);
        /* A new file that has a dead one's number. */
        for (unsigned i = 0; i < pending_count; i++) {
            if (pending[i].file == inode_of(fd))
                pending[i] = pending[--pending_count];
        }
    }
    return fd;
}

static ssize_t test_write(int fd, const void *p, size_t n) {
    if (faulty()) {
        /* As a disk does that gets full: a part of it, then the error. */
        fault_at = calls + 1;
        return n > 1 ? write(fd, p, n / 2) : -1;
    }
    pending_add(0, inode_of(fd), "");
    return write(fd, p, n);
}

static ssize_t test_sendfile(int out, int in, off_t *at, size_t n) {
    if (faulty()) return -1;
    pending_add(0, inode_of(out), "");
    return sendfile(out, in, at, n);
}

static int test_sync(int fd) {
    if (faulty()) return -1;
    pending_synced(inode_of(fd));
    return 0;
}

static int test_renameat(int a, const char *from, int b, const char *to) {
    if (faulty()) return -1;
    int rc = renameat(a, from, b, to);
    if (!rc) changed(b, to);
    return rc;
}

static bool no_more_links;

static int test_linkat(int a, const char *from, int b, const char *to,
                       int flags) {
    struct stat st;
    if (faulty()) return -1;
    if (no_more_links && !fstatat(a, from, &st, 0) && st.st_nlink > 1) {
        errno = EMLINK;
        return -1;
    }
    int rc = linkat(a, from, b, to, flags);
    if (!rc) changed(b, to);
    return rc;
}

static int test_mkdirat(int at, const char *path, mode_t mode) {
    if (faulty()) return -1;
    int rc = mkdirat(at, path, mode);
    if (!rc) changed(at, path);
    return rc;
}

static int test_unlinkat(int at, const char *path, int flags) {
    if (faulty()) return -1;
    int rc = unlinkat(at, path, flags);
    if (!rc) changed(at, path);
    return rc;
}

static int test_utimensat(int at, const char *path,
                          const struct timespec *t, int flags) {
    return faulty() ? -1 : utimensat(at, path, t, flags);
}

static int test_ftruncate(int fd, off_t n) {
    return faulty() ? -1 : ftruncate(fd, n);
}

#define openat test_openat
#define write test_write
#define sendfile test_sendfile
#define fsync test_sync
#define fdatasync test_sync
#define renameat test_renameat
#define linkat test_linkat
#define mkdirat test_mkdirat
#define unlinkat test_unlinkat
#define utimensat test_utimensat
#define ftruncate test_ftruncate
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
    no_more_links = false;
    return 0;
}

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const struct span blob = S("the bytes of a blob, the same everywhere");
static const struct span referrer = S(
    "{\"subject\":{\"digest\":\"sha256:" HEX "\",\"size\":1}}");

static int push_blob(const char *name) {
    struct upload u;
    struct digest d;
    digest_of(&d, DIGEST_SHA256, blob);
    int rc = store_upload_create(&u, name, DIGEST_SHA256);
    if (!rc) rc = store_upload_write(&u, blob.p, blob.n);
    if (!rc) rc = store_upload_commit(&u, name, &d);
    fault_at = 0;
    if (rc && u.fd >= 0) store_upload_cancel(&u);
    return rc;
}

static int put_manifest(const char *name) {
    struct manifest m;
    const char *why;
    memset(&m, 0, sizeof m);
    m.bytes = referrer;
    m.who = "-";
    digest_of(&m.digest, DIGEST_SHA256, m.bytes);
    m.tags[m.tag_count++] = "one";
    m.tags[m.tag_count++] = "two";
    assert_int_equal(manifest_parse(&arena, S("a/b"), &m, &why), 0);
    return store_manifest_put(name, &m);
}

static int mount_blob(const char *name) {
    struct digest d;
    digest_of(&d, DIGEST_SHA256, blob);
    int rc = store_blob_mount(name, "source", &d);
    /* What cannot be mounted is uploaded: nothing is lost by that. */
    return rc == E_BLOB_UNKNOWN ? E_STORAGE : rc;
}

static int delete_tag(const char *name) {
    return store_tag_delete(name, "one");
}

static int delete_manifest(const char *name) {
    struct digest d;
    digest_of(&d, DIGEST_SHA256, referrer);
    return store_manifest_delete(name, &d);
}

static int delete_blob(const char *name) {
    struct digest d;
    digest_of(&d, DIGEST_SHA256, blob);
    return store_blob_delete(name, &d);
}

static bool blob_is(const char *name, struct span bytes) {
    struct digest d;
    struct stat st;
    char got[256];
    int fd;
    digest_of(&d, DIGEST_SHA256, bytes);
    if (store_blob_open(name, &d, &fd, &st)) return false;
    bool same = fs_read_at(fd, got, sizeof got, 0) == (ssize_t)bytes.n &&
                !memcmp(got, bytes.p, bytes.n);
    fs_close(fd);
    return same;
}

static bool blob_is_there(const char *name) {
    return blob_is(name, blob);
}

static bool blob_is_gone(const char *name) {
    return !blob_is(name, blob);
}

static bool manifest_is_there(const char *name) {
    struct record one, two, r;
    struct digest subject;
    struct referrers page = {.arena = &arena};
    struct buf out;
    digest_parse(S("sha256:" HEX), &subject);
    buf_init(&out, &arena, REFERRERS_PAGE);
    page.out = &out;
    return !store_tag_find(name, "one", &one) &&
           !store_tag_find(name, "two", &two) &&
           !store_manifest_find(name, &one.digest, &r) &&
           digest_equal(&one.digest, &two.digest) &&
           blob_is(name, referrer) &&
           !store_referrers(name, &subject, &page) && out.n;
}

static bool tag_is_gone(const char *name) {
    struct record r;
    return store_tag_find(name, "one", &r) == E_MANIFEST_UNKNOWN;
}

static bool manifest_is_gone(const char *name) {
    struct record r;
    struct digest d;
    digest_of(&d, DIGEST_SHA256, referrer);
    return store_manifest_find(name, &d, &r) == E_MANIFEST_UNKNOWN &&
           tag_is_gone(name);
}

/* Folders and files below repos/ of what a power cut could still take;
 * what is made again when it is missing does not count. */
static int durable_one(const char *path, const struct stat *st, int type,
                       struct FTW *ftw) {
    const char *base = path + ftw->base;
    (void)type;
    for (unsigned i = 0; i < pending_count; i++) {
        const char *name = pending[i].name;
        bool mine = pending[i].folder == st->st_ino ||
                    pending[i].file == st->st_ino;
        bool spare = !strcmp(name, "lock") || !strcmp(name, "oci-layout") ||
                     !strcmp(base, "oci-layout") || !strcmp(base, "lock");
        /* A referrer without its record is not shown. */
        if (pending[i].folder && strstr(path, "/referrers/")) {
            struct stat there;
            char file[1400];
            snprintf(file, sizeof file, "%s/%s", path, name);
            spare |= stat(file, &there) != 0;
        }
        if (mine && !spare) {
            print_error("not durable: %s %s\n", path, name);
            return 1;
        }
    }
    return 0;
}

static bool durable(const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/repos/%s", folder, name);
    if (nftw(path, durable_one, 16, FTW_PHYS)) return false;
    /* And the way to it. */
    snprintf(path, sizeof path, "%s/repos", folder);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    for (unsigned i = 0; i < pending_count; i++) {
        if (pending[i].folder == st.st_ino && !strcmp(pending[i].name, name))
            return false;
    }
    return true;
}

static int count_fds(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static int count_tmp(void *count, const char *name) {
    *(int *)count += *name == '.';
    return 0;
}

static bool is_unknown(int rc) {
    return rc == E_BLOB_UNKNOWN || rc == E_MANIFEST_UNKNOWN ||
           rc == E_NAME_UNKNOWN;
}

/* The second time, when nothing fails: whoever deletes may be told that it
 * is gone already. */
static void retry(const char *name, int (*act)(const char *),
                  bool (*done)(const char *)) {
    int rc = act(name);
    if (rc && !is_unknown(rc)) fail_msg("%s: the second time %d", name, rc);
    if (!done(name)) fail_msg("%s: not done after a retry", name);
    if (!rc && !durable(name))
        fail_msg("%s: not durable after a retry", name);
}

/* Runs `act` with its first call failing, then with its second, and so on
 * until there is none; each in a repository of its own. */
static void sweep(const char *prefix, int (*before)(const char *),
                  int (*act)(const char *), bool (*done)(const char *)) {
    int fds = count_fds();
    for (unsigned k = 1, end = 0; !end; k++) {
        char name[64];
        int tmp = 0;
        snprintf(name, sizeof name, "%s%u", prefix, k);
        fault_at = 0;
        pending_count = 0;
        if (before) assert_int_equal(before(name), 0);
        assert_true(!before || durable(name));
        calls = 0;
        fault_at = k;
        fault_errno = k % 2 ? EIO : ENOSPC;
        int rc = act(name);
        end = calls < k;
        fault_at = 0;
        if (end) assert_int_equal(rc, 0);
        if (is_unknown(rc)) fail_msg("%s: said to be unknown", name);
        if (!rc && !done(name)) fail_msg("%s: success, not done", name);
        if (!rc && !durable(name)) fail_msg("%s: not durable", name);
        if (rc) retry(name, act, done);
        fs_list("uploads", count_tmp, &tmp);
        if (tmp > 1) fail_msg("%s: left %d behind", name, tmp);
        fs_list("uploads", store_clean_one, 0);
        assert_int_equal(count_fds(), fds);
        arena_reset(&arena);
        log_state.n = 0;
        assert_true(k < 500);
    }
    assert_int_equal(atomic_load(&shared.upload_bytes), 0);
}

static void blobs_survive_faults(void **state) {
    (void)state;
    sweep("blob", 0, push_blob, blob_is_there);
}

static void blobs_that_are_there_survive_faults(void **state) {
    (void)state;
    sweep("again", push_blob, push_blob, blob_is_there);
}

static void manifests_survive_faults(void **state) {
    (void)state;
    sweep("put", 0, put_manifest, manifest_is_there);
    sweep("reput", put_manifest, put_manifest, manifest_is_there);
}

static void mounts_survive_faults(void **state) {
    (void)state;
    assert_int_equal(push_blob("source"), 0);
    sweep("mount", 0, mount_blob, blob_is_there);
}

static void deletes_of_tags_survive_faults(void **state) {
    (void)state;
    sweep("untag", put_manifest, delete_tag, tag_is_gone);
}

static void deletes_of_manifests_survive_faults(void **state) {
    (void)state;
    sweep("unput", put_manifest, delete_manifest, manifest_is_gone);
}

static void deletes_of_blobs_survive_faults(void **state) {
    (void)state;
    sweep("unblob", push_blob, delete_blob, blob_is_gone);
}

/* ext4 gives a file 65,000 links; then the pool gets a second copy. */
static void the_last_link_is_not_the_end(void **state) {
    (void)state;
    struct digest d;
    struct stat first, last;
    struct path p;
    digest_of(&d, DIGEST_SHA256, blob);
    assert_int_equal(push_blob("links/0"), 0);
    no_more_links = true;
    for (int i = 1; i < 6; i++) {
        char name[32];
        snprintf(name, sizeof name, "links/%d", i);
        assert_int_equal(i % 2 ? push_blob(name) :
                         store_blob_mount(name, "links/0", &d), 0);
        assert_true(blob_is_there(name));
    }
    store_blob_path(&p, "links/0", &d);
    assert_int_equal(fs_stat(p.s, &first), 0);
    store_blob_path(&p, "links/5", &d);
    assert_int_equal(fs_stat(p.s, &last), 0);
    assert_true(first.st_ino != last.st_ino);
}

#define TEST(name) cmocka_unit_test_teardown(name, reset)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(blobs_survive_faults),
        TEST(blobs_that_are_there_survive_faults),
        TEST(manifests_survive_faults),
        TEST(mounts_survive_faults),
        TEST(deletes_of_tags_survive_faults),
        TEST(deletes_of_manifests_survive_faults),
        TEST(deletes_of_blobs_survive_faults),
        TEST(the_last_link_is_not_the_end),
    };
    return cmocka_run_group_tests(tests, setup, folder_remove);
}

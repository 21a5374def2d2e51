/* The disk below one folder, and the threads that use it. */
#include "unit.h"

static int setup(void **state) {
    if (folder_make(state)) return -1;
    fs_open_root(folder);
    return 0;
}

static int count_one(void *count, const char *name) {
    (void)name;
    return ++*(int *)count == 3 ? 7 : 0;
}

static int entries(const char *path) {
    int n = -100;
    assert_int_equal(fs_list(path, count_one, &n), 0);
    return n + 100;
}

static void saving_replaces_as_a_whole(void **state) {
    (void)state;
    char text[16];
    int before = entries("uploads");
    assert_int_equal(fs_save("a", S("one")), 0);
    assert_int_equal(fs_save("a", S("two\0x")), 0);
    assert_int_equal(fs_load("a", text, sizeof text), 5);
    assert_memory_equal(text, "two\0x", 6);
    assert_int_equal(fs_save_quick("a", S("")), 0);
    assert_int_equal(fs_load("a", text, sizeof text), 0);
    assert_int_equal(fs_save("none/a", S("x")), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(fs_load("none", text, sizeof text), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(entries("uploads"), before);
}

static void loading_stops_at_the_buffer(void **state) {
    (void)state;
    char text[4];
    assert_int_equal(fs_save_quick("long", S("12345")), 0);
    assert_int_equal(fs_load("long", text, sizeof text), 3);
    assert_string_equal(text, "123");
    char *outside = malloc(6);
    char name[128];
    snprintf(name, sizeof name, "%s/long", folder);
    assert_int_equal(base_read_file(name, outside, 6), 5);
    assert_string_equal(outside, "12345");
    assert_int_equal(base_read_file(name, outside, 5), -1);
    assert_int_equal(errno, EFBIG);
    assert_int_equal(base_read_file("/nonexistent", outside, 6), -1);
    assert_int_equal(errno, ENOENT);
    free(outside);
}

static void links_lead_nowhere(void **state) {
    (void)state;
    char text[64];
    struct stat st;
    assert_int_equal(symlinkat("/etc/hostname", fs_root, "link"), 0);
    assert_int_equal(fs_load("link", text, sizeof text), -1);
    assert_int_equal(errno, ELOOP);
    assert_int_equal(fs_stat("link", &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(fs_unlink("link"), 0);
}

static void lists_can_be_left_early(void **state) {
    (void)state;
    int n = 0;
    assert_int_equal(fs_mkdir("list"), 0);
    assert_int_equal(fs_mkdir("list"), 0);
    assert_int_equal(entries("list"), 0);
    const char *const names[] = {"list/a", "list/.b", "list/..c", "list/d"};
    for (size_t i = 0; i < COUNT(names); i++)
        assert_int_equal(fs_save_quick(names[i], S("")), 0);
    assert_int_equal(entries("list"), 4);
    assert_int_equal(fs_list("list", count_one, &n), 7);
    assert_int_equal(n, 3);
    assert_int_equal(fs_list("none", count_one, &n), -1);
    assert_int_equal(errno, ENOENT);
}

static void copies_are_files_of_their_own(void **state) {
    (void)state;
    char text[16];
    struct stat from, to;
    assert_int_equal(fs_save_quick("from", S("bytes")), 0);
    assert_int_equal(fs_copy("from", "to"), 0);
    assert_int_equal(fs_load("to", text, sizeof text), 5);
    assert_int_equal(fs_stat("from", &from), 0);
    assert_int_equal(fs_stat("to", &to), 0);
    assert_true(from.st_ino != to.st_ino);
    assert_int_equal(fs_copy("to", "to"), 0);
    assert_int_equal(fs_load("to", text, sizeof text), 5);
    assert_int_equal(fs_copy("none", "to"), -1);
    assert_int_equal(errno, ENOENT);
    assert_int_equal(fs_load("to", text, sizeof text), 5);
}

static void locks_have_one_holder(void **state) {
    (void)state;
    int fd = fs_lock("a.lock", true);
    assert_true(fd >= 0);
    assert_int_equal(fs_lock("a.lock", true), -1);
    assert_int_equal(errno, EWOULDBLOCK);
    fs_close(fd);
    fd = fs_lock("a.lock", true);
    assert_true(fd >= 0);
    fs_close(fd);
}

static void cutting_leaves_the_rest(void **state) {
    (void)state;
    char text[16];
    assert_int_equal(fs_save_quick("cut", S("12345")), 0);
    int fd = fs_open("cut", O_RDWR);
    assert_int_equal(fs_truncate(fd, 3), 0);
    assert_int_equal(fs_write(fd, "x", 1), 0);
    assert_int_equal(fs_truncate(fd, 4), 0);
    assert_int_equal(fs_read_at(fd, text, sizeof text, 1), 3);
    assert_memory_equal(text, "23x", 3);
    fs_close(fd);
    errno = E2BIG;
    fs_close(-1);
    assert_int_equal(errno, E2BIG);
}

/* A blob knows how long it was, where the file system lets it. */
static void sealed_files_notice_a_cut(void **state) {
    (void)state;
    int fd = fs_create("sealed");
    assert_true(fs_is_sealed(fd, 5));
    assert_int_equal(fs_write(fd, "12345", 5), 0);
    fs_seal(fd, 5);
    assert_true(fs_is_sealed(fd, 5));
    if (fgetxattr(fd, FS_SEAL, 0, 0) > 0) assert_false(fs_is_sealed(fd, 4));
    fs_close(fd);
}

/* What ends the process, in a child: its exit status. */
static int status_of(void (*fn)(void)) {
    pid_t child = fork();
    if (!child) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 2);
        fn();
        _exit(99);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void open_again(void) {
    fs_open_root(folder);
}

static void open_below_a_file(void) {
    char name[128];
    snprintf(name, sizeof name, "%s/from/x", folder);
    fs_open_root(name);
}

static void open_with_a_long_name(void) {
    char name[2 * PATH_MAX_LEN];
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = 0;
    fs_open_root(name);
}

static void bad_folders_end_the_start(void **state) {
    (void)state;
    assert_int_equal(status_of(open_again), 1);
    assert_int_equal(status_of(open_below_a_file), 1);
    assert_int_equal(status_of(open_with_a_long_name), 1);
}

/* ---- threads */

enum { JOBS = 500 };

static struct work {
    struct pool_job job;
    int ran, done;
} work[JOBS];

static void work_run(struct pool_job *job) {
    ((struct work *)job)->ran++;
}

/* Each comes three times. */
static void work_done(struct pool_job *job) {
    struct work *w = (struct work *)job;
    if (++w->done < 3) pool_submit(job);
}

static void jobs_come_back(void **state) {
    (void)state;
    int fd = pool_start(), left = JOBS;
    for (int i = 0; i < JOBS; i++) {
        work[i].job = (struct pool_job){.run = work_run, .done = work_done};
        pool_submit(&work[i].job);
    }
    for (int turns = 0; left && turns < 100000; turns++) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&p, 1, 5000), 1);
        pool_finish();
        left = 0;
        for (int i = 0; i < JOBS; i++) left += work[i].done < 3;
    }
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(work[i].ran, 3);
        assert_int_equal(work[i].done, 3);
        assert_int_equal(work[i].job.state, POOL_FREE);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saving_replaces_as_a_whole),
        cmocka_unit_test(loading_stops_at_the_buffer),
        cmocka_unit_test(links_lead_nowhere),
        cmocka_unit_test(lists_can_be_left_early),
        cmocka_unit_test(copies_are_files_of_their_own),
        cmocka_unit_test(locks_have_one_holder),
        cmocka_unit_test(cutting_leaves_the_rest),
        cmocka_unit_test(sealed_files_notice_a_cut),
        cmocka_unit_test(bad_folders_end_the_start),
        cmocka_unit_test(jobs_come_back),
    };
    return cmocka_run_group_tests(tests, setup, folder_remove);
}

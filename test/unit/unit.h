/* What the unit tests share: dims.c as it is, cmocka, input that ends at an
 * unmapped page, and a folder that goes with the test. */
#ifndef UNIT_H
#define UNIT_H

#include "../../dims.c"
#include <ftw.h>
#include <setjmp.h>
#include <cmocka.h>

/* A literal as a span: NULs in it count. */
#define S(text) ((struct span){text, sizeof(text) - 1})
#define COUNT(table) (sizeof(table) / sizeof *(table))

#define assert_span(s, text) do { \
        struct span got_ = (s); \
        if (got_.n != strlen(text) || memcmp(got_.p, text, got_.n)) \
            fail_msg("'%.*s' is not '%s'", (int)got_.n, got_.p, text); \
    } while (0)

/* For the rows of tables: says which one it was. */
#define assert_row(good, row) do { \
        if (!(good)) fail_msg("%s: row %zu", #good, (size_t)(row)); \
    } while (0)

enum { GUARD_SIZE = 512 << 10 };

/* A copy of `s` whose last byte is the last of its page: one step further
 * crashes, also in code that no sanitizer looks at. Valid until the next. */
__attribute__((unused))
static struct span guarded(struct span s) {
    static char *end;
    if (!end) {
        char *p = mmap(0, GUARD_SIZE + 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(p != MAP_FAILED);
        end = p + GUARD_SIZE;
        assert_int_equal(mprotect(end, 4096, PROT_NONE), 0);
    }
    assert_true(s.n <= GUARD_SIZE);
    if (s.n) memcpy(end - s.n, s.p, s.n);
    return (struct span){end - s.n, s.n};
}

static char folder[] = "/tmp/dims-unit-XXXXXX";

__attribute__((unused))
static int folder_make(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int folder_remove_one(const char *path, const struct stat *st,
                             int type, struct FTW *ftw) {
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

__attribute__((unused))
static int folder_remove(void **state) {
    (void)state;
    return nftw(folder, folder_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#endif

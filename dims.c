/* dims: a container registry for the box that is there already.
 *
 * One process tree, started by one command:
 *
 *   supervisor    owns configuration, listeners and signals; forks workers,
 *     |           replaces one that dies, starts jobs
 *     +- worker   one poll() loop: HTTP and answers; four disk threads for
 *     |           everything that writes to or lists a disk
 *     +- job      a niced child with one task, such as sweeping uploads
 *
 * The life of a request:
 *
 *   conn_read      bytes arrive; http_head_end says when a head is whole
 *   http_parse     the head becomes a struct request, in its own arena
 *   routes_find    route, repository name and reference, or an error answer
 *   conn_step      for an upload: 256 KiB go to a disk thread, which hashes
 *                  and writes them while the next 256 KiB arrive
 *   v2_*           the handler; in a disk thread where the route says DISK
 *   store_*        files below DIR; durable before it returns
 *   conn_send      head and memory by sendmsg, files by sendfile
 *
 * Rooms, each using only those above it:
 *
 *   1  base        time, chance, memory, the end
 *   2  text        borrowed spans, owned buffers, an arena, paths
 *   3  codec       hex, numbers, percent, time, JSON strings
 *   4  log         tagged lines through a bounded ring
 *   5  json        a strict reader that allocates nothing
 *   6  digest      sha256 and sha512, by the CPU's instructions
 *   7  fs          the disk, below one folder
 *   8  pool        disk threads
 *   9  conf        one table, three sources
 *  10  name        the grammars
 *  11  http        requests in, answers out; no descriptors
 *  12  manifest    what a manifest says
 *  13  store       repositories on the disk
 *  14  gc          what nobody names any more
 *  15  fsck        is everything what its name says?
 *  16  v2          the OCI distribution API
 *  17  api         the server itself
 *  18  routes      which handler
 *  19  conn        one connection's life
 *  20  job         short-lived children
 *  21  worker      the loop
 *  22  supervisor  listeners, workers, signals
 *  23  cli         what a person types
 *  24  main        the door
 *
 * Invariants of the whole:
 *
 *   1. The file system is the truth; memory only remembers what a stat can
 *      confirm.
 *   2. 201 means durable: data synced, name in its folder, folder synced.
 *   3. The loop never writes to or lists a disk, and never waits.
 *   4. A request belongs to one thread at a time: the loop hands it to a
 *      disk thread and does not look at it until it comes back.
 *   5. Names are checked by the grammar before they touch a path.
 *   6. Whatever a client drives has a limit in dims.h.
 *
 * Start reading with dims.h, then conn_read_head in room 19, then
 * store_upload_commit in room 13.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <bearssl.h>
#include <arpa/inet.h>
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#include "dims.h"

/* ==== 1. base: time, chance, memory, the end =============================
 *
 * prefix: base_   budget: 80
 */

static _Noreturn void base_die(int code, const char *fmt, ...) {
    char line[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    fprintf(stderr, "dims: %s\n", line);
    /* Not exit(): a worker must not run its parent's handlers. */
    _exit(code);
}

static void *base_alloc(size_t n) {
    void *p = calloc(1, n ? n : 1);
    if (!p) base_die(1, "out of memory (%zu bytes)", n);
    return p;
}

static void *base_realloc(void *p, size_t n) {
    p = realloc(p, n ? n : 1);
    if (!p) base_die(1, "out of memory (%zu bytes)", n);
    return p;
}

static uint64_t base_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t base_now_ms(void) {
    return base_now_us() / 1000;
}

static int64_t base_wall_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static unsigned base_descriptors(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files)) return 1024;
    if (files.rlim_cur > DESCRIPTORS_MAX) return DESCRIPTORS_MAX;
    return files.rlim_cur < 64 ? 64 : (unsigned)files.rlim_cur;
}

static void base_random(void *p, size_t n) {
    size_t got = 0;
    while (got < n) {
        ssize_t k = getrandom((char *)p + got, n - got, 0);
        if (k < 0 && errno != EINTR) base_die(1, "no random numbers");
        if (k > 0) got += (size_t)k;
    }
}

static ssize_t base_read_file(const char *name, char *out, size_t cap) {
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    size_t n = 0;
    ssize_t k = 0;
    while (n < cap && (k = read(fd, out + n, cap - n)) != 0) {
        if (k < 0 && errno != EINTR) break;
        if (k > 0) n += (size_t)k;
    }
    int keep = k < 0 ? errno : EFBIG;
    close(fd);
    errno = keep;
    if (k < 0 || n == cap) return -1;
    out[n] = 0;
    return (ssize_t)n;
}

/* ==== 2. text: borrowed spans, owned buffers, an arena, paths ============
 *
 * prefix: span_ arena_ buf_ path_   budget: 230
 *
 * Pointer arithmetic lives here, in codec, json and http, so that nothing
 * above has to be trusted with it.
 */

static struct span span_of(const char *s) {
    return (struct span){s, strlen(s)};
}

static bool span_is(struct span s, const char *text) {
    size_t n = strlen(text);
    return s.n == n && !memcmp(s.p, text, n);
}

static bool span_is_nocase(struct span s, const char *text) {
    size_t n = strlen(text);
    if (s.n != n) return false;
    for (size_t i = 0; i < n; i++) {
        char a = s.p[i], b = text[i];
        if (a >= 'A' && a <= 'Z') a = (char)(a + 32);
        if (b >= 'A' && b <= 'Z') b = (char)(b + 32);
        if (a != b) return false;
    }
    return true;
}

static bool span_starts(struct span s, const char *text) {
    size_t n = strlen(text);
    return s.n >= n && !memcmp(s.p, text, n);
}

static int span_compare(struct span a, struct span b) {
    size_t n = a.n < b.n ? a.n : b.n;
    int c = n ? memcmp(a.p, b.p, n) : 0;
    if (c) return c;
    return a.n < b.n ? -1 : a.n > b.n;
}

static struct span span_cut(struct span *s, char c) {
    const char *at = s->n ? memchr(s->p, c, s->n) : 0;
    struct span head = *s;
    if (!at) {
        if (s->n) s->p += s->n;      /* a span may be of nothing, at 0 */
        s->n = 0;
        return head;
    }
    head.n = (size_t)(at - s->p);
    s->p = at + 1;
    s->n -= head.n + 1;
    return head;
}

static struct span span_trim(struct span s) {
    while (s.n && (*s.p == ' ' || *s.p == '\t')) s.p++, s.n--;
    while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t')) s.n--;
    return s;
}

struct arena_chunk {
    struct arena_chunk *below;
    size_t used, size;
    _Alignas(16) char bytes[];
};

static void *arena_alloc(struct arena *a, size_t n) {
    struct arena_chunk *c = a->top;
    n = (n + 15) & ~(size_t)15;
    if (!c || c->size - c->used < n) {
        size_t size = n > ARENA_CHUNK ? n : ARENA_CHUNK;
        /* The first chunk outlives its contents: see arena_reset. */
        c = base_alloc(sizeof *c + size);
        c->size = size;
        c->below = a->top;
        a->top = c;
        a->total += size;
    }
    void *p = c->bytes + c->used;
    c->used += n;
    return p;
}

static char *arena_text(struct arena *a, struct span s) {
    char *p = arena_alloc(a, s.n + 1);
    if (s.n) memcpy(p, s.p, s.n);
    return p;
}

/* Keeps one chunk of the ordinary size, cleaned as far as it was used. */
static void arena_reset(struct arena *a) {
    struct arena_chunk *c = a->top, *keep = 0;
    while (c) {
        struct arena_chunk *below = c->below;
        if (!below && c->size == ARENA_CHUNK) keep = c;
        else free(c);
        c = below;
    }
    if (keep) {
        memset(keep->bytes, 0, keep->used);
        keep->used = 0;
    }
    a->top = keep;
    a->total = 0;
}

static void arena_free(struct arena *a) {
    arena_reset(a);
    free(a->top);
    a->top = 0;
}

static void buf_init(struct buf *b, struct arena *a, size_t max) {
    *b = (struct buf){.arena = a, .max = max};
}

static void buf_free(struct buf *b) {
    if (!b->arena) free(b->p);
    b->p = 0;
    b->n = b->cap = 0;
}

static bool buf_reserve(struct buf *b, size_t n) {
    if (b->failed || n > b->max || b->n > b->max - n) {
        b->failed = true;
        return false;
    }
    if (b->cap - b->n >= n) return true;
#ifdef DIMS_TEST_TINY_BUF
    size_t cap = b->n + n;       /* every append moves the bytes */
#else
    size_t cap = b->cap ? b->cap : 256;
    while (cap < b->n + n) cap *= 2;
    if (cap > b->max) cap = b->max;
#endif
    if (b->arena) {
        char *p = arena_alloc(b->arena, cap);
        if (b->n) memcpy(p, b->p, b->n);
        b->p = p;
    } else {
        b->p = base_realloc(b->p, cap);
    }
    b->cap = cap;
    return true;
}

static void buf_put(struct buf *b, const void *p, size_t n) {
    if (!n || !buf_reserve(b, n)) return;
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void buf_text(struct buf *b, const char *s) {
    buf_put(b, s, strlen(s));
}

static void buf_span(struct buf *b, struct span s) {
    buf_put(b, s.p, s.n);
}

static void buf_number(struct buf *b, uint64_t n) {
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    buf_put(b, digits + at, sizeof digits - at);
}

static void buf_printf(struct buf *b, const char *fmt, ...) {
    char line[2048];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof line) b->failed = true;
    else buf_put(b, line, (size_t)n);
}

static struct span buf_view(const struct buf *b) {
    return (struct span){b->p ? b->p : "", b->n};
}

static void path_join(struct path *p, const char *first, ...) {
    va_list ap;
    size_t used = 0;
    va_start(ap, first);
    for (const char *s = first; s; s = va_arg(ap, const char *)) {
        size_t n = strlen(s);
        if (n >= sizeof p->s - used) {
            used = 0;
            break;
        }
        memcpy(p->s + used, s, n);
        used += n;
    }
    va_end(ap);
    p->s[used] = 0;
}

/* ==== 3. codec: hex, numbers, percent, time, JSON strings ================
 *
 * prefix: codec_   budget: 220
 */

static void codec_hex(char *out, const uint8_t *p, size_t n) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[p[i] >> 4];
        out[2 * i + 1] = digits[p[i] & 15];
    }
    out[2 * n] = 0;
}

static int codec_nibble(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static int codec_unhex(uint8_t *out, struct span s) {
    if (s.n % 2) return -1;
    for (size_t i = 0; i < s.n / 2; i++) {
        int hi = codec_nibble(s.p[2 * i]);
        int lo = codec_nibble(s.p[2 * i + 1]);
        if (hi < 0 || lo < 0) return -1;
        out[i] = (uint8_t)(hi << 4 | lo);
    }
    return 0;
}

static int codec_number(struct span s, uint64_t *out) {
    uint64_t n = 0;
    if (!s.n) return -1;
    for (size_t i = 0; i < s.n; i++) {
        unsigned digit = (unsigned)(s.p[i] - '0');
        if (digit > 9 || n > (UINT64_MAX - digit) / 10) return -1;
        n = n * 10 + digit;
    }
    *out = n;
    return 0;
}

static int codec_scaled(struct span s, uint64_t factor, uint64_t *out) {
    uint64_t n;
    if (codec_number(s, &n) || (factor && n > INT64_MAX / factor)) return -1;
    *out = n * factor;
    return 0;
}

static int codec_size(struct span s, uint64_t *out) {
    static const char units[] = "KMGT";
    if (s.n && (s.p[s.n - 1] == 'B' || s.p[s.n - 1] == 'b')) s.n--;
    bool binary = s.n && s.p[s.n - 1] == 'i';
    s.n -= binary;
    if (!s.n) return -1;
    char last = s.p[s.n - 1];
    if (last >= 'a' && last <= 'z') last = (char)(last - 32);
    const char *unit = last ? strchr(units, last) : 0;
    if (!unit) return binary ? -1 : codec_scaled(s, 1, out);
    s.n--;
    return codec_scaled(s, 1ull << (10 * (unit - units + 1)), out);
}

static int codec_duration(struct span s, uint64_t *out) {
    static const struct {
        const char *unit;
        uint64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000},
                 {"d", 86400000}, {"", 1000}};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t n = strlen(units[i].unit);
        if (s.n < n || memcmp(s.p + s.n - n, units[i].unit, n)) continue;
        return codec_scaled((struct span){s.p, s.n - n}, units[i].ms, out);
    }
    return -1;
}

static int codec_percent(struct span s, char *out, size_t *n) {
    size_t k = 0;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        if (c == '%') {
            uint8_t byte;
            if (s.n - i < 3) return -1;
            if (codec_unhex(&byte, (struct span){s.p + i + 1, 2})) return -1;
            c = (char)byte;
            i += 2;
        }
        if (!c) return -1;
        out[k++] = c;
    }
    *n = k;
    return 0;
}

static void codec_put_percent(struct buf *b, struct span s) {
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
                     (c >= 'a' && c <= 'z') || strchr("-._~:/@", c);
        if (c && plain) buf_put(b, &c, 1);
        else buf_printf(b, "%%%02X", c);
    }
}

/* Length of the UTF-8 sequence at p, 0 where it is none (RFC 3629, 4). */
static size_t codec_utf8(const char *s, size_t n) {
    const unsigned char *p = (const unsigned char *)s;
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (!n) return 0;
    if (p[0] < 0x80) return 1;
    size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n < len) return 0;
    uint32_t code = p[0] & (0xffu >> (len + 1));
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        code = code << 6 | (p[i] & 0x3f);
    }
    bool surrogate = code >= 0xd800 && code <= 0xdfff;
    return code < least[len] || code > 0x10ffff || surrogate ? 0 : len;
}

static void codec_put_json(struct buf *b, struct span s) {
    buf_put(b, "\"", 1);
    for (size_t i = 0; i < s.n;) {
        unsigned char c = (unsigned char)s.p[i];
        size_t len = codec_utf8(s.p + i, s.n - i);
        if (c == '"' || c == '\\') {
            buf_put(b, "\\", 1);
            buf_put(b, &c, 1);
        } else if (c < 0x20 || c == 0x7f) {
            buf_printf(b, "\\u%04x", c);
        } else if (!len) {
            buf_text(b, "\xef\xbf\xbd");
        } else {
            buf_put(b, s.p + i, len);
        }
        i += len ? len : 1;
    }
    buf_put(b, "\"", 1);
}

static void codec_time(char out[25], int64_t wall_ms) {
    time_t s = (time_t)(wall_ms / 1000);
    struct tm t;
    gmtime_r(&s, &t);
    char day[20];
    strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &t);
    snprintf(out, 25, "%s.%03uZ", day, (unsigned)(wall_ms % 1000) % 1000);
}

static void codec_http_date(char out[30], int64_t wall_ms) {
    static const char days[] = "SunMonTueWedThuFriSat";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    time_t s = (time_t)(wall_ms / 1000);
    struct tm t;
    gmtime_r(&s, &t);
    snprintf(out, 30, "%.3s, %02u %.3s %04u %02u:%02u:%02u GMT",
             days + 3 * t.tm_wday, (unsigned)t.tm_mday % 100,
             months + 3 * t.tm_mon, (unsigned)(t.tm_year + 1900) % 10000,
             (unsigned)t.tm_hour % 100, (unsigned)t.tm_min % 100,
             (unsigned)t.tm_sec % 100);
}

/* ==== 4. log: tagged lines through a bounded ring ========================
 *
 * prefix: log_   budget: 140
 *
 * A line is formatted whole, then put into a ring. The ring is written when
 * stderr takes it: nobody who does not read a log can stop the server. What
 * finds no room is dropped and counted in a later line.
 * Format, plain: TIME LEVEL TAG key=value ...; a value with blanks or
 * controls is quoted as a JSON string. Format, json: one object a line.
 */

static struct {
    pthread_mutex_t lock;
    enum log_level level;
    bool json, is_socket;
    int fd;
    size_t n;
    uint64_t dropped;
    char ring[LOG_RING];
} log_state = {.lock = PTHREAD_MUTEX_INITIALIZER, .level = LOG_INFO, .fd = 2};

static const char *const log_names[] = {"error", "warn", "info", "debug"};

static void log_init(enum log_level level, bool json) {
    struct stat st;
    log_state.level = level;
    log_state.json = json;
    log_state.is_socket = !fstat(2, &st) && S_ISSOCK(st.st_mode);
    if (log_state.fd != 2) return;
    /* A description of our own, so that O_NONBLOCK is nobody else's. */
    int fd = open("/proc/self/fd/2", O_WRONLY | O_APPEND | O_NONBLOCK |
                                     O_NOCTTY | O_CLOEXEC);
    if (fd >= 0) log_state.fd = fd;
}

static bool log_is(enum log_level level) {
    return level <= log_state.level;
}

static void log_value(struct buf *b, const char *s) {
    bool plain = *s != 0;
    for (const char *p = s; *p && plain; p++) {
        plain = *p > ' ' && *p < 127 && *p != '"' && *p != '=';
    }
    if (plain) buf_text(b, s);
    else codec_put_json(b, span_of(s));
}

/* The beginning of a line; its pairs and its end follow. */
static void log_begin(struct buf *b, enum log_level level, const char *tag) {
    char when[25];
    codec_time(when, base_wall_ms());
    if (log_state.json) {
        buf_printf(b, "{\"time\":\"%s\",\"level\":\"%s\",\"event\":\"%s\"",
                   when, log_names[level], tag);
    } else {
        buf_printf(b, "%s %s %s", when, log_names[level], tag);
    }
}

static void log_pair(struct buf *b, const char *key, const char *value) {
    size_t before = b->n;
    bool number = *key == '#';
    key += number;
    buf_text(b, log_state.json ? "," : " ");
    if (log_state.json) {
        codec_put_json(b, span_of(key));
        buf_text(b, ":");
        if (number) buf_text(b, value);
        else codec_put_json(b, span_of(value));
    } else {
        buf_text(b, key);
        buf_text(b, "=");
        log_value(b, value);
    }
    if (!b->failed) return;
    /* Too long: the line goes without this pair. */
    b->n = before;
    b->failed = false;
}

static void log_append(const char *p, size_t n) {
    if (LOG_RING - log_state.n < n) {
        log_state.dropped++;
        return;
    }
    memcpy(log_state.ring + log_state.n, p, n);
    log_state.n += n;
}

static void log_event(enum log_level level, const char *tag, ...) {
    if (!log_is(level)) return;
    char room[LOG_LINE_MAX];
    struct buf b = {.p = room, .cap = sizeof room, .max = sizeof room - 2};
    log_begin(&b, level, tag);
    va_list ap;
    va_start(ap, tag);
    for (const char *k; (k = va_arg(ap, const char *));) {
        log_pair(&b, k, va_arg(ap, const char *));
    }
    va_end(ap);
    b.max = sizeof room;
    buf_text(&b, log_state.json ? "}\n" : "\n");
    pthread_mutex_lock(&log_state.lock);
    log_append(b.p, b.n);
    pthread_mutex_unlock(&log_state.lock);
}

static ssize_t log_write(const char *p, size_t n) {
    if (log_state.is_socket) return send(2, p, n, MSG_DONTWAIT);
    if (log_state.fd == 2) {
        struct pollfd ready = {.fd = 2, .events = POLLOUT};
        if (poll(&ready, 1, 0) != 1) {
            errno = EAGAIN;
            return -1;
        }
    }
    return write(log_state.fd, p, n);
}

/* Whole lines, each short enough for a pipe to take it in one piece. */
static void log_flush(void) {
    pthread_mutex_lock(&log_state.lock);
    size_t at = 0;
    while (at < log_state.n) {
        size_t n = log_state.n - at;
        if (n > LOG_LINE_MAX) n = LOG_LINE_MAX;
        const char *end = memrchr(log_state.ring + at, '\n', n);
        if (end) n = (size_t)(end + 1 - (log_state.ring + at));
        ssize_t k = log_write(log_state.ring + at, n);
        if (k < 0 && errno == EAGAIN) break;
        /* Nobody will ever take it (EPIPE and the like): let it go. */
        at += k < 0 ? n : (size_t)k;
    }
    log_state.n -= at;
    memmove(log_state.ring, log_state.ring + at, log_state.n);
    uint64_t dropped = log_state.n ? 0 : log_state.dropped;
    if (dropped) log_state.dropped = 0;
    pthread_mutex_unlock(&log_state.lock);
    if (dropped) {
        char count[21];
        snprintf(count, sizeof count, "%llu", (unsigned long long)dropped);
        log_event(LOG_WARN, "log.dropped", "#lines", count, (char *)0);
    }
}

static void log_forget(void) {
    log_state.n = 0;
}

static bool log_pending(void) {
    return log_state.n > 0;
}

/* ==== 5. json: a strict reader that allocates nothing ====================
 *
 * prefix: json_   budget: 230
 *
 * RFC 8259: UTF-8 only, no trailing commas, no comments. The caller walks
 * the text; what it does not ask for it skips, and skipping checks. The
 * first failure sticks and every later call is inert. Depth is a counter
 * and a bit a level, never recursion.
 */

static void json_init(struct json *j, struct span text, struct arena *a) {
    *j = (struct json){.p = text.p, .end = text.p + text.n, .arena = a};
}

static void json_fail(struct json *j) {
    j->failed = true;
    j->p = j->end;
}

static void json_blank(struct json *j) {
    while (j->p < j->end && (*j->p == ' ' || *j->p == '\t' ||
                             *j->p == '\n' || *j->p == '\r')) j->p++;
}

static char json_peek(struct json *j) {
    json_blank(j);
    if (j->p == j->end) return 0;
    if (*j->p == '-' || (*j->p >= '0' && *j->p <= '9')) return '0';
    return *j->p && strchr("{[\"tfn", *j->p) ? *j->p : 0;
}

static bool json_take(struct json *j, char c) {
    json_blank(j);
    if (j->p == j->end || *j->p != c) return false;
    j->p++;
    return true;
}

static bool json_enter(struct json *j, char open) {
    if (!json_take(j, open) || j->depth >= JSON_DEPTH_MAX) {
        json_fail(j);
        return false;
    }
    j->depth++;
    j->first = true;
    return true;
}

static bool json_object(struct json *j) {
    return json_enter(j, '{');
}

static bool json_array(struct json *j) {
    return json_enter(j, '[');
}

/* Whether another member follows; else the container is left. */
static bool json_more(struct json *j, char close) {
    if (j->failed) return false;
    bool first = j->first;
    j->first = false;
    if (json_take(j, close)) {
        j->depth--;
        return false;
    }
    if (first || json_take(j, ',')) return true;
    json_fail(j);
    return false;
}

static bool json_key(struct json *j, struct span *key) {
    if (!json_more(j, '}')) return false;
    if (json_string(j, key) && json_take(j, ':')) return true;
    json_fail(j);
    return false;
}

static bool json_item(struct json *j) {
    return json_more(j, ']');
}

static int json_unicode(const char *p, const char *end, uint32_t *out) {
    uint8_t b[2];
    if (end - p < 4 || codec_unhex(b, (struct span){p, 4})) return -1;
    *out = (uint32_t)b[0] << 8 | b[1];
    return 0;
}

/* Writes a code point as UTF-8, returns its length. */
static size_t json_utf8(char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = n; i-- > 1; c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[n] | c);
    return n;
}

/* One escape at p, behind its backslash; how many characters it has, 0 if
 * it is none. */
static size_t json_escape(const char *p, const char *end, char *out,
                          size_t *n) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    uint32_t c, low;
    if (p == end || !*p) return 0;
    const char *at = strchr(from, *p);
    if (at) {
        out[0] = to[at - from];
        *n = 1;
        return 1;
    }
    if (*p != 'u' || json_unicode(p + 1, end, &c)) return 0;
    size_t used = 5;
    if (c >= 0xd800 && c <= 0xdbff) {
        if (end - p < 11 || p[5] != '\\' || p[6] != 'u') return 0;
        if (json_unicode(p + 7, end, &low)) return 0;
        if (low < 0xdc00 || low > 0xdfff) return 0;
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        used = 11;
    } else if (c >= 0xdc00 && c <= 0xdfff) {
        return 0;
    }
    *n = json_utf8(out, c);
    return used;
}

/* The end of the string that starts at p (behind its quote), 0 if bad. */
static const char *json_scan(struct json *j, const char *p, bool *escaped) {
    char room[4];
    while (p < j->end && *p != '"') {
        size_t n, step = codec_utf8(p, (size_t)(j->end - p));
        if (!step || (unsigned char)*p < 0x20) return 0;
        if (*p == '\\') {
            *escaped = true;
            step = json_escape(p + 1, j->end, room, &n);
            if (!step++) return 0;
        }
        p += step;
    }
    return p < j->end ? p : 0;
}

static bool json_string(struct json *j, struct span *out) {
    bool escaped = false;
    if (!json_take(j, '"')) {
        json_fail(j);
        return false;
    }
    const char *p = j->p, *end = json_scan(j, p, &escaped);
    if (!end) {
        json_fail(j);
        return false;
    }
    *out = (struct span){p, (size_t)(end - p)};
    j->p = end + 1;
    if (!escaped || !j->arena) return true;
    char *text = arena_alloc(j->arena, out->n + 1);
    size_t n = 0, k;
    while (p < end) {
        if (*p != '\\') {
            text[n++] = *p++;
            continue;
        }
        p += 1 + json_escape(p + 1, end, text + n, &k);
        n += k;
    }
    *out = (struct span){text, n};
    return true;
}

static bool json_is_digit(struct json *j) {
    return j->p < j->end && *j->p >= '0' && *j->p <= '9';
}

/* RFC 8259, 6: -? int frac? exp? */
static void json_number(struct json *j) {
    json_take(j, '-');
    bool zero = j->p < j->end && *j->p == '0', good = json_is_digit(j);
    if (zero) j->p++;
    else while (json_is_digit(j)) j->p++;
    if (j->p < j->end && *j->p == '.') {
        j->p++;
        good = good && json_is_digit(j);
        while (json_is_digit(j)) j->p++;
    }
    if (j->p < j->end && (*j->p == 'e' || *j->p == 'E')) {
        j->p++;
        if (j->p < j->end && (*j->p == '+' || *j->p == '-')) j->p++;
        good = good && json_is_digit(j);
        while (json_is_digit(j)) j->p++;
    }
    if (!good) json_fail(j);
}

static bool json_integer(struct json *j, uint64_t *out) {
    json_blank(j);
    const char *from = j->p;
    if (json_peek(j) == '0') json_number(j);
    else json_fail(j);
    if (j->failed) return false;
    return !codec_number((struct span){from, (size_t)(j->p - from)}, out);
}

static void json_word(struct json *j, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(j->end - j->p) < n || memcmp(j->p, word, n)) json_fail(j);
    else j->p += n;
}

static void json_scalar(struct json *j) {
    struct span s;
    struct arena *a = j->arena;
    switch (json_peek(j)) {
    case '"':
        j->arena = 0;      /* nobody reads it: do not decode it */
        json_string(j, &s);
        j->arena = a;
        break;
    case '0': json_number(j); break;
    case 't': json_word(j, "true"); break;
    case 'f': json_word(j, "false"); break;
    case 'n': json_word(j, "null"); break;
    default: json_fail(j);
    }
}

static void json_skip(struct json *j) {
    uint64_t objects[(JSON_DEPTH_MAX + 64) / 64] = {0};
    unsigned base = j->depth;
    struct span key;
    struct arena *a = j->arena;
    j->arena = 0;
    do {
        char c = json_peek(j);
        if (c == '{' || c == '[') {
            if (!json_enter(j, c)) break;
            uint64_t bit = 1ull << (j->depth % 64);
            if (c == '{') objects[j->depth / 64] |= bit;
            else objects[j->depth / 64] &= ~bit;
        } else {
            json_scalar(j);
        }
        /* To the next value, leaving what is closed on the way. */
        while (!j->failed && j->depth > base) {
            bool object = objects[j->depth / 64] >> (j->depth % 64) & 1;
            if (object ? json_key(j, &key) : json_item(j)) break;
        }
    } while (!j->failed && j->depth > base);
    j->arena = a;
}

static struct span json_raw(struct json *j) {
    json_blank(j);
    const char *from = j->p;
    json_skip(j);
    if (j->failed) return (struct span){"", 0};
    return (struct span){from, (size_t)(j->p - from)};
}

static bool json_end(struct json *j) {
    json_blank(j);
    return !j->failed && j->p == j->end && !j->depth;
}

/* ==== 6. digest: sha256 and sha512, by the CPU's instructions ============
 *
 * prefix: digest_   budget: 330
 *
 * BearSSL hashes at 230 MB/s, SHA-NI and ARMv8's instructions at 1,400 and
 * more; chosen once at the start. Backends take whole blocks and the plain
 * state, so a hash that was saved by one goes on in another.
 * A saved state is one line: ALGO TOTAL STATE-HEX REST-HEX.
 */

static const struct {
    const char *name;
    size_t hex, block;
} digest_algos[DIGEST_ALGOS] = {
    {"sha256", 64, 64},
    {"sha512", 128, 128},
};

/* BearSSL for what has no instructions; its state is set and read back. */
static void digest_blocks_256(struct digest_ctx *c, const uint8_t *p,
                              size_t blocks) {
    br_sha256_context b;
    uint8_t state[32];
    for (int i = 0; i < 8; i++) {
        for (int k = 0; k < 4; k++) {
            state[4 * i + k] = (uint8_t)(c->h.w32[i] >> (24 - 8 * k));
        }
    }
    br_sha256_init(&b);
    br_sha256_set_state(&b, state, 0);
    br_sha256_update(&b, p, blocks * 64);
    br_sha256_state(&b, state);
    for (int i = 0; i < 8; i++) {
        c->h.w32[i] = (uint32_t)state[4 * i] << 24 |
                      (uint32_t)state[4 * i + 1] << 16 |
                      (uint32_t)state[4 * i + 2] << 8 | state[4 * i + 3];
    }
}

static void digest_blocks_512(struct digest_ctx *c, const uint8_t *p,
                              size_t blocks) {
    br_sha512_context b;
    uint8_t state[64];
    for (int i = 0; i < 64; i++) {
        state[i] = (uint8_t)(c->h.w64[i / 8] >> (56 - 8 * (i % 8)));
    }
    br_sha512_init(&b);
    br_sha512_set_state(&b, state, 0);
    br_sha512_update(&b, p, blocks * 128);
    br_sha512_state(&b, state);
    for (int i = 0; i < 8; i++) {
        uint64_t w = 0;
        for (int k = 0; k < 8; k++) w = w << 8 | state[8 * i + k];
        c->h.w64[i] = w;
    }
}

#if defined(__x86_64__) || defined(__aarch64__)
/* FIPS 180-4, 4.2.2 */
static const uint32_t digest_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
    0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
    0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
    0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
    0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
#endif

#if defined(__x86_64__)
/* The instructions hold the state as ABEF and CDGH. Four rounds a step;
 * the message schedule runs in a ring of four vectors. */
__attribute__((target("sha,sse4.1,ssse3")))
static void digest_blocks_shani(struct digest_ctx *c, const uint8_t *p,
                                size_t blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL,
                                        0x0405060700010203LL);
    __m128i dcba = _mm_loadu_si128((const __m128i *)&c->h.w32[0]);
    __m128i hgfe = _mm_loadu_si128((const __m128i *)&c->h.w32[4]);
    __m128i badc = _mm_shuffle_epi32(dcba, 0xb1);
    __m128i efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    __m128i abef = _mm_alignr_epi8(badc, efgh, 8);
    __m128i cdgh = _mm_blend_epi16(efgh, badc, 0xf0);
    for (; blocks; blocks--, p += 64) {
        __m128i abef0 = abef, cdgh0 = cdgh, w[4];
        for (int i = 0; i < 4; i++) {
            w[i] = _mm_shuffle_epi8(
                _mm_loadu_si128((const __m128i *)(p + 16 * i)), swap);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __m128i k = _mm_loadu_si128((const __m128i *)&digest_k[4 * i]);
            __m128i wk = _mm_add_epi32(w[i & 3], k);
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
            abef = _mm_sha256rnds2_epu32(abef, cdgh,
                                         _mm_shuffle_epi32(wk, 0x0e));
            __m128i t = _mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]);
            t = _mm_add_epi32(t, _mm_alignr_epi8(w[(i + 3) & 3],
                                                 w[(i + 2) & 3], 4));
            w[i & 3] = _mm_sha256msg2_epu32(t, w[(i + 3) & 3]);
        }
        abef = _mm_add_epi32(abef, abef0);
        cdgh = _mm_add_epi32(cdgh, cdgh0);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
    __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)&c->h.w32[0],
                     _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)&c->h.w32[4],
                     _mm_alignr_epi8(dchg, feba, 8));
}
#elif defined(__aarch64__)
__attribute__((target("+crypto")))
static void digest_blocks_armv8(struct digest_ctx *c, const uint8_t *p,
                                size_t blocks) {
    uint32x4_t abcd = vld1q_u32(&c->h.w32[0]);
    uint32x4_t efgh = vld1q_u32(&c->h.w32[4]);
    for (; blocks; blocks--, p += 64) {
        uint32x4_t abcd0 = abcd, efgh0 = efgh, w[4];
        for (int i = 0; i < 4; i++) {
            w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(p + 16 * i)));
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            uint32x4_t wk = vaddq_u32(w[i & 3], vld1q_u32(&digest_k[4 * i]));
            uint32x4_t before = abcd;
            abcd = vsha256hq_u32(abcd, efgh, wk);
            efgh = vsha256h2q_u32(efgh, before, wk);
            w[i & 3] = vsha256su1q_u32(
                vsha256su0q_u32(w[i & 3], w[(i + 1) & 3]),
                w[(i + 2) & 3], w[(i + 3) & 3]);
        }
        abcd = vaddq_u32(abcd, abcd0);
        efgh = vaddq_u32(efgh, efgh0);
    }
    vst1q_u32(&c->h.w32[0], abcd);
    vst1q_u32(&c->h.w32[4], efgh);
}
#endif

static void (*digest_blocks[DIGEST_ALGOS])(struct digest_ctx *,
                                            const uint8_t *, size_t) = {
    digest_blocks_256, digest_blocks_512};

static void digest_setup(void) {
#if defined(__x86_64__)
    unsigned a = 7, b, c = 0, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (b >> 29 & 1) digest_blocks[DIGEST_SHA256] = digest_blocks_shani;
#elif defined(__aarch64__)
    enum { HAS_SHA2 = 1 << 6 };
    if (getauxval(AT_HWCAP) & HAS_SHA2) {
        digest_blocks[DIGEST_SHA256] = digest_blocks_armv8;
    }
#endif
}

static void digest_init(struct digest_ctx *c, enum digest_algo algo) {
    /* FIPS 180-4, 5.3.3 and 5.3.5 */
    static const uint64_t start[8] = {
        0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
        0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
        0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
    *c = (struct digest_ctx){.algo = algo};
    for (int i = 0; i < 8; i++) {
        if (algo == DIGEST_SHA256) c->h.w32[i] = (uint32_t)(start[i] >> 32);
        else c->h.w64[i] = start[i];
    }
}

static void digest_update(struct digest_ctx *c, const void *data, size_t n) {
    const uint8_t *p = data;
    size_t block = digest_algos[c->algo].block;
    size_t have = (size_t)(c->total % block);
    c->total += n;
    if (have) {
        size_t take = block - have < n ? block - have : n;
        memcpy(c->block + have, p, take);
        p += take;
        n -= take;
        if (have + take < block) return;
        digest_blocks[c->algo](c, c->block, 1);
    }
    if (n >= block) digest_blocks[c->algo](c, p, n / block);
    p += n - n % block;
    if (n % block) memcpy(c->block, p, n % block);
}

static void digest_final(const struct digest_ctx *from, struct digest *out) {
    struct digest_ctx c = *from;
    size_t block = digest_algos[c.algo].block;
    uint8_t pad[256] = {0x80}, bytes[64];
    size_t have = (size_t)(c.total % block), tail = block / 8;
    size_t n = (have < block - tail ? block : 2 * block) - have;
    uint64_t bits = c.total * 8;
    for (int i = 0; i < 8; i++) pad[n - 1 - i] = (uint8_t)(bits >> (8 * i));
    digest_update(&c, pad, n);
    size_t size = digest_algos[c.algo].hex / 2;
    for (size_t i = 0; i < size; i++) {
        bytes[i] = c.algo == DIGEST_SHA256
            ? (uint8_t)(c.h.w32[i / 4] >> (24 - 8 * (i % 4)))
            : (uint8_t)(c.h.w64[i / 8] >> (56 - 8 * (i % 8)));
    }
    out->algo = c.algo;
    codec_hex(out->hex, bytes, size);
}

static void digest_of(struct digest *d, enum digest_algo a, struct span s) {
    struct digest_ctx c;
    digest_init(&c, a);
    digest_update(&c, s.p, s.n);
    digest_final(&c, d);
}

static const char *digest_algo_name(enum digest_algo a) {
    return digest_algos[a].name;
}

static int digest_algo_parse(struct span s, enum digest_algo *out) {
    for (int i = 0; i < DIGEST_ALGOS; i++) {
        if (!span_is(s, digest_algos[i].name)) continue;
        *out = (enum digest_algo)i;
        return 0;
    }
    return -1;
}

static bool digest_is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

/* algorithm ::= component (separator component)*, separator ::= [+._-] */
static bool digest_is(struct span s) {
    struct span rest = s, algo = span_cut(&rest, ':');
    if (!rest.n || !algo.n) return false;
    for (size_t i = 0; i < algo.n; i++) {
        bool word = digest_is_word(algo.p[i]);
        bool inside = i && i + 1 < algo.n && digest_is_word(algo.p[i - 1]);
        bool mark = algo.p[i] && strchr("+._-", algo.p[i]);
        if (!word && !(inside && mark)) return false;
    }
    for (size_t i = 0; i < rest.n; i++) {
        char c = rest.p[i];
        bool upper = c >= 'A' && c <= 'Z';
        if (!digest_is_word(c) && !upper && c != '=' && c != '_' && c != '-')
            return false;
    }
    return true;
}

static int digest_parse(struct span s, struct digest *out) {
    if (!digest_is(s)) return E_DIGEST_BAD;
    struct span hex = s, algo = span_cut(&hex, ':');
    if (digest_algo_parse(algo, &out->algo)) return E_DIGEST_ALGO;
    if (hex.n != digest_algos[out->algo].hex) return E_DIGEST_BAD;
    for (size_t i = 0; i < hex.n; i++) {
        char c = hex.p[i];
        if (!(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'f'))
            return E_DIGEST_BAD;
    }
    memcpy(out->hex, hex.p, hex.n);
    out->hex[hex.n] = 0;
    return 0;
}

static bool digest_equal(const struct digest *a, const struct digest *b) {
    return a->algo == b->algo && !strcmp(a->hex, b->hex);
}

static void digest_text(const struct digest *d, char out[DIGEST_TEXT_MAX]) {
    const char *name = digest_algo_name(d->algo);
    size_t n = strlen(name), hex = digest_algos[d->algo].hex;
    memcpy(out, name, n);
    out[n] = ':';
    memcpy(out + n + 1, d->hex, hex);
    out[n + 1 + hex] = 0;
}

static void digest_save(const struct digest_ctx *c, struct buf *out) {
    char hex[257];
    buf_printf(out, "%s %llu ", digest_algo_name(c->algo),
               (unsigned long long)c->total);
    for (int i = 0; i < 8; i++) {
        if (c->algo == DIGEST_SHA256) buf_printf(out, "%08x", c->h.w32[i]);
        else buf_printf(out, "%016llx", (unsigned long long)c->h.w64[i]);
    }
    size_t rest = (size_t)(c->total % digest_algos[c->algo].block);
    codec_hex(hex, c->block, rest);
    buf_printf(out, " %s\n", hex);
}

static int digest_load(struct digest_ctx *c, struct span line) {
    uint8_t state[64];
    enum digest_algo algo;
    if (digest_algo_parse(span_cut(&line, ' '), &algo)) return -1;
    digest_init(c, algo);
    if (codec_number(span_cut(&line, ' '), &c->total)) return -1;
    struct span hex = span_cut(&line, ' '), rest = span_cut(&line, '\n');
    if (hex.n != digest_algos[algo].hex || codec_unhex(state, hex)) return -1;
    if (rest.n != c->total % digest_algos[algo].block * 2) return -1;
    if (codec_unhex(c->block, rest)) return -1;
    size_t width = algo == DIGEST_SHA256 ? 4 : 8;
    for (size_t i = 0; i < 8; i++) {
        uint64_t w = 0;
        for (size_t k = 0; k < width; k++) w = w << 8 | state[width * i + k];
        if (algo == DIGEST_SHA256) c->h.w32[i] = (uint32_t)w;
        else c->h.w64[i] = w;
    }
    return 0;
}

/* ==== 7. fs: the disk, below one folder ==================================
 *
 * prefix: fs_   budget: 330
 *
 * Every path is relative to DIR, opened once. Temporary names live in
 * uploads/ with a leading dot; they are removed at the next start.
 */

static int fs_root = -1;

static int fs_open(const char *path, int flags) {
    return openat(fs_root, path, flags | O_CLOEXEC | O_NOFOLLOW, 0644);
}

static int fs_create(const char *path) {
    return fs_open(path, O_RDWR | O_CREAT | O_EXCL);
}

static ssize_t fs_load(const char *path, char *out, size_t cap) {
    int fd = fs_open(path, O_RDONLY);
    if (fd < 0) return -1;
    size_t n = 0;
    ssize_t k = 0;
    while (n < cap - 1 && (k = read(fd, out + n, cap - 1 - n)) != 0) {
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) break;
        n += (size_t)k;
    }
    int keep = errno;
    close(fd);
    errno = keep;
    if (k < 0) return -1;
    out[n] = 0;
    return (ssize_t)n;
}

static void fs_close(int fd) {
    int keep = errno;
    close(fd);
    errno = keep;
}

static ssize_t fs_read_at(int fd, void *p, size_t n, uint64_t at) {
    ssize_t k;
    do {
        k = pread(fd, p, n, (off_t)at);
    } while (k < 0 && errno == EINTR);
    return k;
}

static int fs_truncate(int fd, uint64_t size) {
    /* Cutting nothing off would still change the file's time. */
    off_t end = lseek(fd, 0, SEEK_END);
    if (end < 0 || ((uint64_t)end != size && ftruncate(fd, (off_t)size)))
        return -1;
    return lseek(fd, (off_t)size, SEEK_SET) < 0 ? -1 : 0;
}

static int fs_sync(int fd) {
    return fdatasync(fd);
}

static void fs_write_back(int fd, uint64_t from, uint64_t n) {
    sync_file_range(fd, (off_t)from, (off_t)n, SYNC_FILE_RANGE_WRITE);
}

#define FS_SEAL "user.dims.size"

static void fs_seal(int fd, uint64_t size) {
    char text[24];
    int n = snprintf(text, sizeof text, "%llu", (unsigned long long)size);
    /* Without attributes there is no check: nothing is lost by that. */
    fsetxattr(fd, FS_SEAL, text, (size_t)n, 0);
}

static bool fs_is_sealed(int fd, uint64_t size) {
    char text[24];
    uint64_t sealed;
    ssize_t n = fgetxattr(fd, FS_SEAL, text, sizeof text);
    if (n <= 0 || codec_number((struct span){text, (size_t)n}, &sealed))
        return true;
    return sealed == size;
}

static int fs_stat_fd(int fd, struct stat *st) {
    return fstat(fd, st);
}

static int fs_write(int fd, const void *data, size_t n) {
    const char *p = data;
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return -1;
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

static void fs_tmp_name(struct path *out) {
    uint8_t random[12];
    char hex[25];
    base_random(random, sizeof random);
    codec_hex(hex, random, sizeof random);
    path_join(out, "uploads/.", hex, (char *)0);
}

static int fs_rename(const char *from, const char *to) {
    return renameat(fs_root, from, fs_root, to);
}

static int fs_unlink(const char *path) {
    return unlinkat(fs_root, path, 0);
}

static int fs_sync_dir(const char *path) {
    int fd = fs_open(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0) return -1;
    int rc = fsync(fd), keep = errno;
    close(fd);
    errno = keep;
    return rc;
}

static int fs_put(const char *path, struct span bytes, bool sync) {
    struct path tmp;
    fs_tmp_name(&tmp);
    int fd = fs_create(tmp.s);
    if (fd < 0) return -1;
    int rc = fs_write(fd, bytes.p, bytes.n);
    if (!rc && sync) rc = fdatasync(fd);
    int keep = errno;
    close(fd);
    if (!rc) {
        rc = fs_rename(tmp.s, path);
        keep = errno;
    }
    if (rc) fs_unlink(tmp.s);
    errno = keep;
    return rc;
}

static int fs_save(const char *path, struct span bytes) {
    struct path dir;
    if (fs_put(path, bytes, true)) return -1;
    path_join(&dir, path, (char *)0);
    char *slash = strrchr(dir.s, '/');
    if (slash) *slash = 0;
    return fs_sync_dir(slash ? dir.s : ".");
}

static int fs_save_quick(const char *path, struct span bytes) {
    return fs_put(path, bytes, false);
}

static int fs_link(const char *from, const char *to) {
    return linkat(fs_root, from, fs_root, to, 0);
}

/* A second file with the same bytes, synced, in the place of `to`. */
static int fs_copy(const char *from, const char *to) {
    struct path tmp;
    fs_tmp_name(&tmp);
    int in = fs_open(from, O_RDONLY), out = in < 0 ? -1 : fs_create(tmp.s);
    ssize_t k = -1;
    if (out >= 0) {
        while ((k = sendfile(out, in, 0, 1 << 20)) > 0) continue;
        if (!k) k = fdatasync(out);
        if (!k) k = fs_rename(tmp.s, to);
    }
    int keep = errno;
    if (k && out >= 0) fs_unlink(tmp.s);
    if (out >= 0) close(out);
    if (in >= 0) close(in);
    errno = keep;
    return k ? -1 : 0;
}

static int fs_mkdir(const char *path) {
    if (!mkdirat(fs_root, path, 0755) || errno == EEXIST) return 0;
    return -1;
}

static int fs_stat(const char *path, struct stat *st) {
    return fstatat(fs_root, path, st, AT_SYMLINK_NOFOLLOW);
}

static int fs_touch(const char *path) {
    return utimensat(fs_root, path, 0, AT_SYMLINK_NOFOLLOW);
}

static int fs_set_time(const char *path, int64_t wall_ms) {
    struct timespec at = {.tv_sec = (time_t)(wall_ms / 1000),
                          .tv_nsec = (long)(wall_ms % 1000) * 1000000};
    struct timespec both[2] = {at, at};
    return utimensat(fs_root, path, both, AT_SYMLINK_NOFOLLOW);
}

static int fs_rmdir(const char *path) {
    return unlinkat(fs_root, path, AT_REMOVEDIR);
}

static int fs_lock_fd(int fd, bool try) {
    int rc;
    do {
        rc = flock(fd, LOCK_EX | (try ? LOCK_NB : 0));
    } while (rc && errno == EINTR);
    return rc;
}

static int fs_lock(const char *path, bool try) {
    int fd = fs_open(path, O_RDWR | O_CREAT);
    if (fd < 0) return -1;
    if (!fs_lock_fd(fd, try)) return fd;
    int keep = errno;
    close(fd);
    errno = keep;
    return -1;
}

static int fs_list(const char *path, int (*fn)(void *, const char *),
                   void *arg) {
    int fd = fs_open(path, O_RDONLY | O_DIRECTORY);
    DIR *d = fd < 0 ? 0 : fdopendir(fd);
    if (!d) {
        if (fd >= 0) close(fd);
        return -1;
    }
    int rc = 0;
    struct dirent *e;
    while (!rc && (errno = 0, e = readdir(d))) {
        bool dots = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
        if (!dots) rc = fn(arg, e->d_name);
    }
    int keep = errno;
    closedir(d);
    errno = keep;
    return !rc && keep ? -1 : rc;
}

static uint64_t fs_free_bytes(void) {
    struct statvfs v;
    if (fstatvfs(fs_root, &v)) return UINT64_MAX;
    return (uint64_t)v.f_bavail * v.f_frsize;
}

/* A folder that may be there; a new one is synced into its parent. */
static int fs_make_folder(char *path) {
    if (mkdir(path, 0755)) return errno == EEXIST ? 0 : -1;
    char *slash = strrchr(path, '/');
    char keep = slash ? slash[1] : 0;
    if (slash) slash[1] = 0;
    int fd = open(slash ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (slash) slash[1] = keep;
    int rc = fd < 0 ? -1 : fsync(fd);
    if (fd >= 0) fs_close(fd);
    return rc;
}

/* Made with its parents, as `mkdir -p` would. */
static int fs_make_root(const char *dir) {
    struct path p;
    path_join(&p, dir, (char *)0);
    size_t n = strlen(p.s);
    while (n > 1 && p.s[n - 1] == '/') p.s[--n] = 0;
    if (!n) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (char *s = p.s + 1; *s; s++) {
        if (*s != '/') continue;
        *s = 0;
        if (fs_make_folder(p.s)) return -1;
        *s = '/';
    }
    return fs_make_folder(p.s);
}

/* What dims stands on: hard links, case, renaming over a file. */
static const char *fs_probe(void) {
    struct stat st;
    int fd = fs_open("uploads/.probe-a", O_RDWR | O_CREAT | O_TRUNC);
    if (fd < 0) return "cannot be written to";
    close(fd);
    fs_unlink("uploads/.probe-b");
    const char *bad = 0;
    if (fs_link("uploads/.probe-a", "uploads/.probe-b"))
        bad = "has no hard links";
    else if (!fs_stat("uploads/.PROBE-A", &st))
        bad = "takes upper and lower case for the same";
    else if (fs_save_quick("uploads/.probe-b", span_of("x")))
        bad = "cannot rename over a file";
    fs_unlink("uploads/.probe-a");
    fs_unlink("uploads/.probe-b");
    return bad;
}

static void fs_warn_remote(const char *dir) {
    static const struct {
        unsigned long magic;
        const char *name;
    } remote[] = {{0x6969, "NFS"}, {0xff534d42, "CIFS"}, {0xfe534d42, "SMB"},
                  {0x65735546, "FUSE"}, {0x517b, "SMB"}};
    struct statfs v;
    if (fstatfs(fs_root, &v)) return;
    for (size_t i = 0; i < sizeof remote / sizeof *remote; i++) {
        if (((unsigned long)v.f_type & 0xffffffff) != remote[i].magic)
            continue;
        log_event(LOG_WARN, "store.remote", "dir", dir, "type",
                  remote[i].name, "why",
                  "locks and syncs may not mean what they say here",
                  (char *)0);
    }
}

static void fs_enter_root(const char *dir) {
    char format[64];
    fs_root = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fs_root < 0)
        base_die(1, "cannot open %s: %s", dir, strerror(errno));
    if (fs_load("format", format, sizeof format) < 0)
        base_die(1, "%s is no folder of dims", dir);
}

static void fs_open_root(const char *dir) {
    if (fs_make_root(dir))
        base_die(1, "cannot make %s: %s", dir, strerror(errno));
    fs_root = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fs_root < 0)
        base_die(1, "cannot open %s: %s", dir, strerror(errno));
    /* The workers of one that was killed may need a moment to die. */
    int lock = -1;
    for (int i = 0; i < 10 && (lock = fs_lock("lock", true)) < 0; i++) {
        if (errno != EWOULDBLOCK) break;
        poll(0, 0, 10);
    }
    if (lock < 0) {
        if (errno == EWOULDBLOCK)
            base_die(1, "%s is in use by another dims", dir);
        base_die(1, "cannot lock %s: %s", dir, strerror(errno));
    }
    if (fs_mkdir("uploads"))
        base_die(1, "cannot write to %s: %s", dir, strerror(errno));
    const char *bad = fs_probe();
    if (bad) base_die(1, "%s: the file system %s", dir, bad);
    fs_warn_remote(dir);
}

/* ==== 8. pool: disk threads ==============================================
 *
 * prefix: pool_   budget: 90
 *
 * First come, first served, by POOL_THREADS threads. A job comes back to
 * the loop through a list and an eventfd.
 */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct pool_job *first, **last;
    struct pool_job *finished, **finished_last;
    int event;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER, .event = -1};

static _Noreturn void *pool_main(void *unused) {
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&pool.lock);
        while (!pool.first) pthread_cond_wait(&pool.work, &pool.lock);
        struct pool_job *job = pool.first;
        pool.first = job->next;
        if (!pool.first) pool.last = &pool.first;
        pthread_mutex_unlock(&pool.lock);
        job->run(job);
        pthread_mutex_lock(&pool.lock);
        bool wake = !pool.finished;
        job->next = 0;
        *pool.finished_last = job;
        pool.finished_last = &job->next;
        pthread_mutex_unlock(&pool.lock);
        if (wake) eventfd_write(pool.event, 1);
    }
}

static int pool_start(void) {
    pthread_attr_t attr;
    pthread_t thread;
    pool.last = &pool.first;
    pool.finished_last = &pool.finished;
    pool.event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (pool.event < 0) base_die(1, "no eventfd: %s", strerror(errno));
    pthread_attr_init(&attr);
#ifndef __SANITIZE_ADDRESS__
    pthread_attr_setstacksize(&attr, POOL_STACK);
#endif
    for (int i = 0; i < POOL_THREADS; i++) {
        int rc = pthread_create(&thread, &attr, pool_main, 0);
        if (rc) base_die(1, "no thread: %s", strerror(rc));
    }
    pthread_attr_destroy(&attr);
    return pool.event;
}

static void pool_submit(struct pool_job *job) {
    assert(job->state == POOL_FREE);
    job->state = POOL_QUEUED;
    job->next = 0;
    pthread_mutex_lock(&pool.lock);
    *pool.last = job;
    pool.last = &job->next;
    pthread_cond_signal(&pool.work);
    pthread_mutex_unlock(&pool.lock);
}

static void pool_finish(void) {
    eventfd_t count;
    eventfd_read(pool.event, &count);
    pthread_mutex_lock(&pool.lock);
    struct pool_job *job = pool.finished;
    pool.finished = 0;
    pool.finished_last = &pool.finished;
    pthread_mutex_unlock(&pool.lock);
    while (job) {
        struct pool_job *next = job->next;
        job->state = POOL_FREE;
        job->done(job);
        job = next;
    }
}

/* ==== 9. conf: one table, three sources ==================================
 *
 * prefix: conf_   budget: 380
 *
 * The rows are CONF_OPTIONS in dims.h. Sources are read from the strongest
 * to the weakest, and each leaves alone what a stronger one has set, so a
 * higher source replaces a repeated option's whole list.
 */

enum conf_type {
    CONF_IS_TEXT, CONF_IS_NUMBER, CONF_IS_SIZE, CONF_IS_SPAN,
    CONF_IS_BOOL, CONF_IS_CHOICE,
    CONF_IS_PORT, CONF_IS_LISTEN     /* from here on: repeatable */
};

#define CONF_TYPE_PORT CONF_IS_PORT, 0
#define CONF_TYPE_LISTEN CONF_IS_LISTEN, 0
#define CONF_TYPE_TEXT CONF_IS_TEXT, 0
#define CONF_TYPE_NUMBER(max) CONF_IS_NUMBER, #max
#define CONF_TYPE_SIZE CONF_IS_SIZE, 0
#define CONF_TYPE_SPAN CONF_IS_SPAN, 0
#define CONF_TYPE_BOOL CONF_IS_BOOL, 0
#define CONF_TYPE_CHOICE(words) CONF_IS_CHOICE, words

static const struct {
    const char *name;
    char letter;
    const char *arg;
    enum conf_type type;
    const char *words, *value, *help;
} conf_table[CONF_COUNT] = {
#define X(name, letter, arg, type, value, help) \
    {#name, letter, arg, CONF_TYPE_##type, value, help},
    CONF_OPTIONS(X)
#undef X
};

/* The name as a flag and a key has it, with dashes. */
static void conf_name(int option, char out[32]) {
    snprintf(out, 32, "%s", conf_table[option].name);
    for (char *p = out; *p; p++) {
        if (*p == '_') *p = '-';
    }
}

static int conf_find(struct span name) {
    char known[32];
    for (int i = 0; i < CONF_COUNT; i++) {
        conf_name(i, known);
        if (span_is(name, known)) return i;
    }
    return -1;
}

static int conf_choice(const char *words, struct span value, uint64_t *out) {
    struct span rest = span_of(words);
    for (*out = 0; rest.n; ++*out) {
        struct span word = span_cut(&rest, '|');
        if (!span_compare(word, value)) return 0;
    }
    return -1;
}

static int conf_bool(struct span s, uint64_t *out) {
    static const char *const yes[] = {"on", "yes", "true", "1"};
    static const char *const no[] = {"off", "no", "false", "0"};
    for (int i = 0; i < 4; i++) {
        if (span_is_nocase(s, yes[i]) || span_is_nocase(s, no[i])) {
            *out = span_is_nocase(s, yes[i]);
            return 0;
        }
    }
    return -1;
}

static int conf_port_parse(struct span s, uint16_t *out) {
    uint64_t port;
    if (codec_number(s, &port) || port > 65535) return -1;
    *out = (uint16_t)port;
    return 0;
}

/* ADDR, ADDR:PORT, [V6], [V6]:PORT, V6 or unix:PATH. */
static int conf_listen_parse(const char *value, struct conf_listen *out) {
    struct span rest = span_of(value), ip;
    struct in6_addr address;
    memset(out, 0, sizeof *out);
    if (span_starts(rest, "unix:")) {
        out->path = value + strlen("unix:");
        size_t n = strlen(out->path);
        return n && n < sizeof ((struct sockaddr_un *)0)->sun_path ? 0 : -1;
    }
    const char *colon = strchr(value, ':');
    if (*value == '[') {
        rest.p++, rest.n--;
        if (!memchr(rest.p, ']', rest.n)) return -1;
        ip = span_cut(&rest, ']');
        if (rest.n && *rest.p != ':') return -1;
        out->has_port = rest.n;
        span_cut(&rest, ':');
    } else if (colon && strchr(colon + 1, ':')) {
        ip = rest;
    } else {
        out->has_port = colon;
        ip = span_cut(&rest, ':');
    }
    if (ip.n >= sizeof out->ip) return -1;
    memcpy(out->ip, ip.p, ip.n);
    if (out->has_port && conf_port_parse(rest, &out->port)) return -1;
    int family = strchr(out->ip, ':') ? AF_INET6 : AF_INET;
    return inet_pton(family, out->ip, &address) == 1 ? 0 : -1;
}

static bool conf_is_list(int option) {
    return conf_table[option].type >= CONF_IS_PORT;
}

static int conf_number(int option, struct span s, uint64_t *out) {
    uint64_t max;
    if (codec_number(span_of(conf_table[option].words), &max)) return -1;
    return codec_number(s, out) || *out > max ? -1 : 0;
}

/* `text` is `s` terminated. */
static int conf_convert(int option, struct span s, const char *text,
                        uint64_t *out) {
    struct conf_listen listen;
    uint16_t port;
    switch (conf_table[option].type) {
    case CONF_IS_NUMBER: return conf_number(option, s, out);
    case CONF_IS_PORT: return conf_port_parse(s, &port);
    case CONF_IS_LISTEN: return conf_listen_parse(text, &listen);
    case CONF_IS_SIZE: return codec_size(s, out);
    case CONF_IS_SPAN: return codec_duration(s, out);
    case CONF_IS_BOOL: return conf_bool(s, out);
    case CONF_IS_CHOICE:
        return conf_choice(conf_table[option].words, s, out);
    default: return 0;
    }
}

static int conf_bad(int option, struct span value, struct buf *err) {
    static const char *const wanted[] = {
        [CONF_IS_TEXT] = "a text", [CONF_IS_NUMBER] = "a number up to ",
        [CONF_IS_SIZE] = "a size like 500M", [CONF_IS_SPAN] =
        "a time like 90s", [CONF_IS_BOOL] = "on or off",
        [CONF_IS_CHOICE] = "one of ", [CONF_IS_PORT] = "a port",
        [CONF_IS_LISTEN] = "ADDR, ADDR:PORT, [V6]:PORT or unix:PATH"};
    char name[32];
    const char *words = conf_table[option].words;
    conf_name(option, name);
    buf_printf(err, "%s: '%.*s' is not %s%s", name,
               (int)(value.n < 99 ? value.n : 99), value.p,
               wanted[conf_table[option].type], words ? words : "");
    return -1;
}

static int conf_add(struct conf *c, int option, struct span value,
                    struct buf *err) {
    int at = conf_is_list(option) ? c->count[option] : 0;
    if (at == CONF_LIST_MAX) {
        buf_printf(err, "more than %d values", CONF_LIST_MAX);
        return -1;
    }
    char *text = base_alloc(value.n + 1);
    memcpy(text, value.p, value.n);
    if (conf_convert(option, value, text, &c->number[option]) ||
        strlen(text) != value.n) {
        free(text);
        return conf_bad(option, value, err);
    }
    free(c->text[option][at]);
    c->text[option][at] = text;
    c->count[option] = at + 1;
    return 0;
}

static void conf_free(struct conf *c) {
    for (int i = 0; i < CONF_COUNT; i++) {
        for (int k = 0; k < c->count[i]; k++) free(c->text[i][k]);
    }
    memset(c, 0, sizeof *c);
}

struct conf_args {
    int argc, at;
    char **argv;
    char letter[2];     /* a -x, as text */
};

/* The option that argv[at] names; its value, if it came with one. */
static int conf_flag(struct conf_args *a, struct span *value) {
    struct span name = span_of(a->argv[a->at]);
    value->p = 0;
    if (name.n >= 2 && name.p[0] == '-' && name.p[1] != '-') {
        for (int i = 0; i < CONF_COUNT; i++) {
            if (name.p[1] != conf_table[i].letter) continue;
            *value = (struct span){name.n > 2 ? name.p + 2 : 0, name.n - 2};
            return i;
        }
        return -1;
    }
    if (!span_starts(name, "--")) return -1;
    struct span rest = {name.p + 2, name.n - 2};
    bool has_value = memchr(rest.p, '=', rest.n);
    name = span_cut(&rest, '=');
    if (has_value) *value = rest;
    return conf_find(name);
}

static int conf_parse_args(struct conf *c, int argc, char **argv,
                           struct buf *err) {
    struct conf_args a = {.argc = argc, .argv = argv};
    for (a.at = 1; a.at < argc; a.at++) {
        struct span value;
        if (!strcmp(argv[a.at], "--config") && a.at + 1 < argc) {
            a.at++;
            continue;
        }
        if (!strncmp(argv[a.at], "--config=", 9)) continue;
        int option = conf_flag(&a, &value);
        if (option < 0) {
            buf_printf(err, "unknown option '%.99s' (see dims --help)",
                       argv[a.at]);
            return -1;
        }
        if (!value.p && !conf_table[option].arg) value = span_of("on");
        if (!value.p && a.at + 1 == argc) {
            buf_printf(err, "%.99s needs a value: %s", argv[a.at],
                       conf_table[option].arg);
            return -1;
        }
        if (!value.p) value = span_of(argv[++a.at]);
        if (conf_add(c, option, value, err)) return -1;
    }
    return 0;
}

static int conf_parse_env(struct conf *c, struct buf *err) {
    for (int i = 0; i < CONF_COUNT; i++) {
        char name[40];
        snprintf(name, sizeof name, "DIMS_%s", conf_table[i].name);
        for (char *p = name; *p; p++) {
            if (*p >= 'a' && *p <= 'z') *p = (char)(*p - 32);
        }
        const char *value = getenv(name);
        if (!value || c->count[i]) continue;
        /* Kubernetes' word for a service that is called dims. */
        if (i == CONF_port && !strncmp(value, "tcp://", 6)) continue;
        struct span rest = span_of(value);
        bool list = conf_is_list(i);
        if (!list && conf_add(c, i, rest, err)) return -1;
        while (list && rest.n) {
            struct span one = span_cut(&rest, ' ');
            if (one.n && conf_add(c, i, one, err)) return -1;
        }
    }
    return 0;
}

static int conf_parse_file(struct conf *c, struct span text,
                           struct buf *err) {
    bool had[CONF_COUNT];
    for (int i = 0; i < CONF_COUNT; i++) had[i] = c->count[i] > 0;
    for (unsigned line = 1; text.n; line++) {
        struct span value = span_cut(&text, '\n');
        if (value.n && value.p[value.n - 1] == '\r') value.n--;
        value = span_trim(value);
        if (!value.n || *value.p == '#') continue;
        bool pair = memchr(value.p, '=', value.n);
        struct span key = span_trim(span_cut(&value, '='));
        int option = pair ? conf_find(key) : -1;
        if (option < 0) {
            buf_printf(err, "line %u: ", line);
            if (pair) buf_printf(err, "unknown key '%.*s'",
                                 (int)(key.n < 99 ? key.n : 99), key.p);
            else buf_text(err, "not 'key = value'");
            return -1;
        }
        if (had[option]) continue;
        size_t before = err->n;
        buf_printf(err, "line %u: ", line);
        if (conf_add(c, option, span_trim(value), err)) return -1;
        err->n = before;
    }
    return 0;
}

/* The file that --config names, $DIMS_CONFIG, else the usual one. */
static const char *conf_file_name(int argc, char **argv, bool *named) {
    *named = true;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--config") && i + 1 < argc) return argv[i + 1];
        if (!strncmp(argv[i], "--config=", 9)) return argv[i] + 9;
    }
    const char *name = getenv("DIMS_CONFIG");
    if (name) return name;
    *named = false;
    return "/etc/dims.conf";
}

static int conf_read_file(struct conf *c, const char *name, bool named,
                          struct buf *err) {
    char *text = base_alloc(CONF_FILE_MAX);
    ssize_t n = base_read_file(name, text, CONF_FILE_MAX);
    int rc = n < 0 ? -1 : 0;
    if (n < 0 && errno == ENOENT && !named) {
        rc = 0;
    } else if (n < 0) {
        buf_printf(err, "cannot read %s: %s", name, strerror(errno));
    } else {
        buf_printf(err, "%s: ", name);
        rc = conf_parse_file(c, (struct span){text, (size_t)n}, err);
        if (!rc) err->n = 0;
        c->file = name;
    }
    free(text);
    return rc;
}

static int conf_load(struct conf *c, int argc, char **argv,
                     struct buf *err) {
    bool named;
    memset(c, 0, sizeof *c);
    if (conf_parse_args(c, argc, argv, err)) return -1;
    if (conf_parse_env(c, err)) return -1;
    const char *file = conf_file_name(argc, argv, &named);
    if (conf_read_file(c, file, named, err)) return -1;
    const char *port = getenv("PORT");
    if (!c->count[CONF_port]) {
        buf_text(err, port ? "PORT: " : "");
        if (conf_add(c, CONF_port, span_of(port ? port : "8000"), err))
            return -1;
        err->n = 0;
    }
    for (int i = 0; i < CONF_COUNT; i++) {
        if (c->count[i] || conf_is_list(i)) continue;
        if (conf_add(c, i, span_of(conf_table[i].value), err)) return -1;
    }
    return 0;
}

static bool conf_wants(int argc, char **argv, const char *flag) {
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], flag)) return true;
    }
    return false;
}

/* Help text in lines of at most 79 columns, from column 31 on. */
static void conf_help_text(struct buf *out, const char *text) {
    struct span rest = span_of(text);
    size_t column = 31;
    while (rest.n) {
        struct span word = span_cut(&rest, ' ');
        if (column + word.n > 78) {
            buf_printf(out, "\n%31s", "");
            column = 31;
        }
        buf_span(out, word);
        buf_text(out, rest.n ? " " : "");
        column += word.n + 1;
    }
}

static void conf_help(struct buf *out) {
    buf_text(out,
        "dims " DIMS_VERSION ": a container registry\n\n"
        "usage: dims [options]          serve\n"
        "       dims gc [--dry-run]     remove what no manifest names\n"
        "       dims fsck [--repair]    check every stored byte\n\n"
        "Every option is also a 'key = value' line in the config file and a\n"
        "DIMS_KEY variable (DIMS_LOG_LEVEL); flag before variable before "
        "file.\n\n"
        "      --config FILE            config file; default /etc/dims.conf "
        "if there\n");
    for (int i = 0; i < CONF_COUNT; i++) {
        char name[32], left[64];
        conf_name(i, name);
        snprintf(left, sizeof left, "--%s%s%s", name,
                 conf_table[i].arg ? " " : "",
                 conf_table[i].arg ? conf_table[i].arg : "");
        if (conf_table[i].letter) {
            buf_printf(out, "  -%c, %-25s", conf_table[i].letter, left);
        } else {
            buf_printf(out, "      %-25s", left);
        }
        conf_help_text(out, conf_table[i].help);
        if (*conf_table[i].value)
            buf_printf(out, "\n%31s[%s]", "", conf_table[i].value);
        buf_text(out, "\n");
    }
    buf_text(out, "      --version                print the version\n"
                  "  -h, --help                   print this\n");
}

/* ==== 10. name: the grammars =============================================
 *
 * prefix: name_   budget: 70
 *
 * What passes here may become part of a path: no '..', no empty component,
 * no leading '_', nothing outside [a-z0-9._-/] (distribution-spec,
 * "Pulling manifests").
 */

static bool name_is_alnum(char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

/* [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)* */
static bool name_is_component(struct span s) {
    for (size_t i = 0; i < s.n;) {
        if (!name_is_alnum(s.p[i])) return false;
        while (i < s.n && name_is_alnum(s.p[i])) i++;
        if (i == s.n) return true;
        char c = s.p[i++];
        if (c == '_' && i < s.n && s.p[i] == '_') i++;
        while (c == '-' && i < s.n && s.p[i] == '-') i++;
        if (c != '.' && c != '_' && c != '-') return false;
    }
    return false;
}

static bool name_is_repository(struct span s) {
    if (!s.n || s.n > NAME_MAX_LEN || s.p[s.n - 1] == '/') return false;
    while (s.n) {
        if (!name_is_component(span_cut(&s, '/'))) return false;
    }
    return true;
}

static bool name_is_tag(struct span s) {
    if (!s.n || s.n > TAG_MAX_LEN) return false;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        bool word = name_is_alnum(c) || (c >= 'A' && c <= 'Z') || c == '_';
        if (!word && (!i || (c != '.' && c != '-'))) return false;
    }
    return true;
}

/* type "/" subtype (RFC 6838, 4.2), without parameters. */
static bool name_is_media_type(struct span s) {
    unsigned slashes = 0;
    if (!s.n || s.n > MEDIA_TYPE_MAX) return false;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        bool word = name_is_alnum(c) || (c >= 'A' && c <= 'Z');
        if (c == '/') slashes++;
        else if (!word && (!c || !strchr("!#$&-^_.+", c))) return false;
    }
    return slashes == 1 && s.p[0] != '/' && s.p[s.n - 1] != '/';
}

/* ==== 11. http: requests in, answers out; no descriptors =================
 *
 * prefix: http_   budget: 620
 *
 * HTTP/1.1 as RFC 9110 and 9112 have it. What could be understood in two
 * ways is refused, in http_check: both lengths, two of one, folded lines,
 * bare CR or LF. Every refusal closes the connection, since nobody knows
 * where the next request would begin.
 */

static bool http_is_token(char c) {
    return c > ' ' && c < 127 && !strchr("\"(),/:;<=>?@[\\]{}", c);
}

static enum http_result http_head_end(struct span in, size_t *at,
                                      enum error *error) {
    if (in.n && !http_is_token(in.p[0])) goto bad;
    while (*at < in.n) {
        const char *lf = memchr(in.p + *at, '\n', in.n - *at);
        if (!lf) {
            *at = in.n;
            break;
        }
        size_t i = (size_t)(lf - in.p);
        if (!i || in.p[i - 1] != '\r') goto bad;
        *at = i + 1;
        if (*at > HTTP_HEAD_MAX) break;
        if (i >= 3 && in.p[i - 2] == '\n') return HTTP_OK;
    }
    if (in.n < HTTP_HEAD_MAX) return HTTP_MORE;
    *error = memchr(in.p, '\n', in.n) ? E_HEAD_LARGE : E_URI_LONG;
    return HTTP_BAD;
bad:
    *error = E_BAD_REQUEST;
    return HTTP_BAD;
}

/* method SP target SP HTTP/1.x (RFC 9112, 3). */
static enum error http_parse_line(struct request *r, struct span line) {
    r->method = span_cut(&line, ' ');
    r->target = span_cut(&line, ' ');
    for (size_t i = 0; i < r->method.n; i++) {
        if (!http_is_token(r->method.p[i])) return E_BAD_REQUEST;
    }
    if (!r->method.n || !r->target.n) return E_BAD_REQUEST;
    for (size_t i = 0; i < r->target.n; i++) {
        if (r->target.p[i] <= ' ' || r->target.p[i] >= 127)
            return E_BAD_REQUEST;
    }
    if (span_is(line, "HTTP/1.1")) r->minor = 1;
    else if (span_is(line, "HTTP/1.0")) r->minor = 0;
    else return span_starts(line, "HTTP/") ? E_VERSION : E_BAD_REQUEST;
    r->is_head = span_is(r->method, "HEAD");
    struct span rest = r->target;
    size_t scheme = span_starts(rest, "http://") ? 7
                  : span_starts(rest, "https://") ? 8 : 0;
    if (scheme) {                       /* absolute-form (3.2.2) */
        rest = (struct span){rest.p + scheme, rest.n - scheme};
        while (rest.n && *rest.p != '/') rest.p++, rest.n--;
        if (!rest.n) rest = span_of("/");
    }
    bool all = span_is(rest, "*") && span_is(r->method, "OPTIONS");
    if (*rest.p != '/' && !all) return E_BAD_REQUEST;
    if (memchr(rest.p, '#', rest.n)) return E_BAD_REQUEST;
    r->path = span_cut(&rest, '?');
    r->query = rest;
    return E_NONE;
}

static bool http_has_token(struct span list, const char *token) {
    while (list.n) {
        if (span_is_nocase(span_trim(span_cut(&list, ',')), token))
            return true;
    }
    return false;
}

static enum error http_parse_field(struct request *r, struct span line) {
    static const char *const names[HEADER_COUNT] = {
#define X(name, text) text,
        HEADERS(X)
#undef X
    };
    static const uint8_t lengths[HEADER_COUNT] = {
#define X(name, text) sizeof text - 1,
        HEADERS(X)
#undef X
    };
    /* No colon, a folded line or a blank before the colon (5.1, 5.2). */
    if (!memchr(line.p, ':', line.n)) return E_BAD_REQUEST;
    struct span value = line, name = span_cut(&value, ':');
    if (!name.n) return E_BAD_REQUEST;
    for (size_t i = 0; i < name.n; i++) {
        if (!http_is_token(name.p[i])) return E_BAD_REQUEST;
    }
    value = span_trim(value);
    for (size_t i = 0; i < value.n; i++) {
        unsigned char c = (unsigned char)value.p[i];
        if ((c < ' ' && c != '\t') || c == 127) return E_BAD_REQUEST;
    }
    for (int i = 0; i < HEADER_COUNT; i++) {
        if (name.n != lengths[i] || !span_is_nocase(name, names[i]))
            continue;
        bool single = i == HEADER_HOST || i == HEADER_CONTENT_LENGTH ||
                      i == HEADER_TRANSFER_ENCODING;
        if (r->header[i].p && single) return E_BAD_REQUEST;
        if (i == HEADER_CONNECTION && http_has_token(value, "close"))
            r->closes = true;
        if (!r->header[i].p) r->header[i] = value;
    }
    return E_NONE;
}

/* uri-host [":" port] (RFC 9110, 7.2), as far as it can do harm. */
static bool http_is_host(struct span host) {
    struct span port = host;
    bool v6 = host.n && *host.p == '[';
    struct span name = span_cut(&port, v6 ? ']' : ':');
    for (size_t i = v6; i < name.n; i++) {
        char c = name.p[i];
        bool good = v6 ? codec_nibble(c) >= 0 || c == ':' || c == '.'
                       : http_is_token(c) || (c && strchr("();=", c));
        if (!good) return false;
    }
    if (v6) {
        if (name.n + 1 > host.n) return false;
        if (port.n && *port.p != ':') return false;
        span_cut(&port, ':');
    }
    uint64_t n;
    return !port.n || (!codec_number(port, &n) && n < 65536);
}

/* Framing (RFC 9112, 6): nothing that two readers could read differently. */
static enum error http_check(struct request *r) {
    struct span coding = r->header[HEADER_TRANSFER_ENCODING];
    struct span length = r->header[HEADER_CONTENT_LENGTH];
    struct span expect = r->header[HEADER_EXPECT];
    if (r->minor && !r->header[HEADER_HOST].p) return E_BAD_REQUEST;
    if (!http_is_host(r->header[HEADER_HOST])) return E_BAD_REQUEST;
    if (coding.p) {
        if (length.p || !r->minor) return E_BAD_REQUEST;
        if (!span_is_nocase(coding, "chunked")) return E_NOT_IMPLEMENTED;
        r->is_chunked = true;
    }
    if (length.p) {
        if (codec_number(length, &r->length)) return E_BAD_REQUEST;
        if (r->length > INT64_MAX) return E_TOO_LARGE;
        r->has_length = true;
    }
    if (expect.p && r->minor) {
        if (!span_is_nocase(expect, "100-continue")) return E_EXPECT;
        r->expects = r->is_chunked || r->length;
    }
    struct span connection = r->header[HEADER_CONNECTION];
    r->keep_alive = !r->closes &&
        (r->minor || http_has_token(connection, "keep-alive"));
    return E_NONE;
}

static enum http_result http_parse(struct request *r, struct span head,
                                   enum error *error) {
    unsigned count = 0;
    *error = memchr(head.p, 0, head.n) ? E_BAD_REQUEST : E_NONE;
    for (bool first = true; !*error; first = false) {
        struct span line = span_cut(&head, '\n');
        if (line.n) line.n--;           /* the CR: http_head_end saw it */
        if (!line.n) break;
        if (memchr(line.p, '\r', line.n)) *error = E_BAD_REQUEST;
        else if (first) *error = http_parse_line(r, line);
        else if (++count > HTTP_HEADERS_MAX) *error = E_HEAD_LARGE;
        else *error = http_parse_field(r, line);
    }
    if (!*error) *error = http_check(r);
    return *error ? HTTP_BAD : HTTP_OK;
}

/* A chunk-size line, byte by byte: 0 more, 1 it is complete, -1 bad. */
static int http_chunk_line(struct chunked *c, char byte) {
    unsigned char text = (unsigned char)byte;
    int digit = codec_nibble(byte);
    if (++c->line > HTTP_CHUNK_LINE_MAX) return -1;
    if (c->cr) return byte == '\n' && c->digits ? 1 : -1;
    if (byte == '\r') {
        c->cr = true;
    } else if (c->ext) {
        /* Blanks may only stand before an extension's semicolon. */
        bool blank = byte == ' ' || byte == '\t';
        if (c->blank && !blank && byte != ';') return -1;
        c->blank = c->blank && blank;
        return blank || (text > ' ' && text != 127) ? 0 : -1;
    } else if (digit >= 0) {
        if (c->left >> 58) return -1;
        c->left = c->left << 4 | (unsigned)digit;
        c->digits = true;
    } else if (c->digits && (byte == ';' || byte == ' ' || byte == '\t')) {
        c->ext = true;
        c->blank = byte != ';';
    } else {
        return -1;
    }
    return 0;
}

/* The trailer section, which is read and dropped. */
static int http_chunk_trailer(struct chunked *c, char byte) {
    if (++c->line > HTTP_TRAILER_MAX || !byte) return -1;
    if (c->cr) {
        if (byte != '\n') return -1;
        if (c->blank) return 1;
        c->cr = c->ext = false;
        c->blank = true;
    } else if (byte == '\r') {
        c->cr = true;
        return c->blank || c->ext ? 0 : -1;
    } else if (byte == ':' && !c->blank) {
        c->ext = true;                   /* the name has ended */
    } else if (c->ext) {
        return byte != '\n' ? 0 : -1;
    } else {
        c->blank = false;
        return http_is_token(byte) ? 0 : -1;
    }
    return 0;
}

/* One byte of framing; the state that follows. */
static int http_chunk_byte(struct chunked *c, char byte) {
    int rc = 0;
    switch (c->state) {
    case CHUNK_SIZE:
        rc = http_chunk_line(c, byte);
        if (rc != 1) return rc;
        c->state = c->left ? CHUNK_DATA : CHUNK_TRAILER;
        c->cr = c->ext = false;
        c->blank = true;
        c->line = 0;
        return 0;
    case CHUNK_DATA_END:
        if (byte != (c->cr ? '\n' : '\r')) return -1;
        if (!c->cr) {
            c->cr = true;
            return 0;
        }
        *c = (struct chunked){.state = CHUNK_SIZE};
        return 0;
    case CHUNK_TRAILER:
        rc = http_chunk_trailer(c, byte);
        if (rc == 1) c->state = CHUNK_DONE;
        return rc < 0 ? -1 : 0;
    default:
        return -1;
    }
}

static enum http_result http_dechunk(struct chunked *c, char *p, size_t in,
                                     size_t *out, size_t *used) {
    size_t at = 0, put = 0;
    while (at < in && c->state != CHUNK_DONE) {
        if (c->state == CHUNK_DATA) {
            size_t n = in - at < c->left ? in - at : (size_t)c->left;
            memmove(p + put, p + at, n);
            put += n;
            at += n;
            c->left -= n;
            if (!c->left) *c = (struct chunked){.state = CHUNK_DATA_END};
        } else if (http_chunk_byte(c, p[at++]) < 0) {
            return HTTP_BAD;
        }
    }
    *out = put;
    *used = at;
    return c->state == CHUNK_DONE ? HTTP_OK : HTTP_MORE;
}

static bool http_query_at(struct request *r, const char *key,
                          unsigned index, struct span *out) {
    struct span rest = r->query;
    while (rest.n) {
        struct span value = span_cut(&rest, '&');
        struct span name = span_cut(&value, '=');
        if (!span_is(name, key) || index--) continue;
        char *text = arena_alloc(&r->arena, value.n + 1);
        size_t n;
        /* A bad escape is a value that no grammar takes. */
        if (codec_percent(value, text, &n)) {
            *out = (struct span){"%", 1};
            return true;
        }
        *out = (struct span){text, n};
        return true;
    }
    return false;
}

static bool http_query(struct request *r, const char *key,
                       struct span *out) {
    return http_query_at(r, key, 0, out);
}

/* A position too large for 64 bits is past every end. */
static int http_range_number(struct span s, uint64_t *out) {
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9') return -1;
    }
    if (codec_number(s, out)) *out = UINT64_MAX;
    return s.n ? 0 : -1;
}

/* One range-spec (RFC 9110, 14.1.2): 1 usable, 0 not satisfiable, -1 none. */
static int http_range(struct span spec, uint64_t size,
                      struct http_range *out) {
    uint64_t from, to = UINT64_MAX;
    bool dash = memchr(spec.p, '-', spec.n);
    struct span last = spec, first = span_trim(span_cut(&last, '-'));
    last = span_trim(last);
    if (!dash || (!first.n && !last.n)) return -1;
    if (last.n && http_range_number(last, &to)) return -1;
    if (!first.n) {
        from = to < size ? size - to : 0;
        *out = (struct http_range){from, size - 1};
        return to && size ? 1 : 0;
    }
    if (http_range_number(first, &from)) return -1;
    if (from >= size || to < from) return 0;
    *out = (struct http_range){from, to < size ? to : size - 1};
    return 1;
}

static enum http_result http_ranges(struct request *r, uint64_t size,
                                    struct http_range **out,
                                    unsigned *count) {
    struct span rest = r->header[HEADER_RANGE];
    unsigned commas = 0;
    *count = 0;
    if (!rest.p || !span_is(r->method, "GET")) return HTTP_MORE;
    if (!memchr(rest.p, '=', rest.n)) return HTTP_MORE;
    if (!span_is_nocase(span_trim(span_cut(&rest, '=')), "bytes"))
        return HTTP_MORE;
    for (size_t i = 0; i < rest.n; i++) commas += rest.p[i] == ',';
    if (commas >= HTTP_RANGES_MAX) return HTTP_MORE;
    *out = arena_alloc(&r->arena, (commas + 1) * sizeof **out);
    uint64_t sum = 0;
    while (rest.n) {
        struct span spec = span_trim(span_cut(&rest, ','));
        int rc = spec.n ? http_range(spec, size, *out + *count) : 0;
        if (rc < 0) return HTTP_MORE;
        if (!rc) continue;
        sum += (*out)[*count].to - (*out)[*count].from + 1;
        ++*count;
        /* More than the whole (RFC 9110, 14.2): the whole, then. */
        if (sum > size) return HTTP_MORE;
    }
    return *count ? HTTP_OK : HTTP_BAD;
}

static const char *http_reason(int status) {
    static const struct {
        int status;
        const char *text;
    } reasons[] = {
        {200, "OK"}, {201, "Created"}, {202, "Accepted"},
        {204, "No Content"}, {206, "Partial Content"},
        {304, "Not Modified"}, {400, "Bad Request"}, {403, "Forbidden"},
        {404, "Not Found"}, {405, "Method Not Allowed"},
        {408, "Request Timeout"}, {409, "Conflict"},
        {411, "Length Required"}, {413, "Content Too Large"},
        {414, "URI Too Long"}, {416, "Range Not Satisfiable"},
        {417, "Expectation Failed"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"}, {501, "Not Implemented"},
        {503, "Service Unavailable"}, {505, "HTTP Version Not Supported"},
        {507, "Insufficient Storage"}};
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        if (reasons[i].status == status) return reasons[i].text;
    }
    return "Status";
}

static void http_start(struct request *r, int status) {
    r->status = status;
    r->seg_count = 0;
    r->produce = 0;
    if (!r->head.arena) buf_init(&r->head, &r->arena, HTTP_HEAD_MAX);
    r->head.n = 0;
    r->head.failed = false;
}

static void http_header(struct request *r, const char *name,
                        const char *value) {
    buf_text(&r->head, name);
    buf_text(&r->head, ": ");
    buf_text(&r->head, value);
    buf_text(&r->head, "\r\n");
}

static void http_header_number(struct request *r, const char *name,
                               uint64_t n) {
    buf_text(&r->head, name);
    buf_text(&r->head, ": ");
    buf_number(&r->head, n);
    buf_text(&r->head, "\r\n");
}

static void http_send_empty(struct request *r) {
    bool none = r->status == 204 || r->status == 304;
    if (!none) http_header_number(r, "Content-Length", 0);
}

static void http_send_bytes(struct request *r, const char *type,
                            struct span bytes) {
    http_header(r, "Content-Type", type);
    http_header_number(r, "Content-Length", bytes.n);
    r->segs = arena_alloc(&r->arena, sizeof *r->segs);
    *r->segs = (struct seg){.p = bytes.p, .len = bytes.n};
    r->seg_count = bytes.n ? 1 : 0;
}

/* Several ranges: multipart/byteranges (RFC 9110, 14.6). */
static void http_send_parts(struct request *r, uint64_t size,
                            const struct http_range *range, unsigned count) {
    uint8_t random[12];
    char boundary[25], type[64];
    uint64_t total = 0;
    base_random(random, sizeof random);
    codec_hex(boundary, random, sizeof random);
    r->segs = arena_alloc(&r->arena, (2 * count + 1) * sizeof *r->segs);
    for (unsigned i = 0; i <= count; i++) {
        struct buf part;
        buf_init(&part, &r->arena, 512);
        buf_printf(&part, "%s--%s", i ? "\r\n" : "", boundary);
        if (i == count) {
            buf_text(&part, "--\r\n");
        } else {
            buf_printf(&part,
                       "\r\nContent-Type: application/octet-stream\r\n"
                       "Content-Range: bytes %llu-%llu/%llu\r\n\r\n",
                       (unsigned long long)range[i].from,
                       (unsigned long long)range[i].to,
                       (unsigned long long)size);
        }
        r->segs[2 * i] = (struct seg){.p = part.p, .len = part.n};
        total += part.n;
        if (i == count) continue;
        r->segs[2 * i + 1] = (struct seg){
            .off = range[i].from, .len = range[i].to - range[i].from + 1};
        total += r->segs[2 * i + 1].len;
    }
    r->seg_count = 2 * count + 1;
    snprintf(type, sizeof type, "multipart/byteranges; boundary=%s",
             boundary);
    http_header(r, "Content-Type", type);
    http_header_number(r, "Content-Length", total);
}

static void http_send_file(struct request *r, const char *type, int fd,
                           uint64_t size, bool ranges) {
    struct http_range *range = 0;
    unsigned count = 0;
    enum http_result use = ranges ? http_ranges(r, size, &range, &count)
                                  : HTTP_MORE;
    r->file = fd;
    if (use == HTTP_BAD) {
        http_start(r, 416);
        buf_printf(&r->head, "Content-Range: bytes */%llu\r\n",
                   (unsigned long long)size);
        http_send_empty(r);
        return;
    }
    if (use == HTTP_OK) r->status = 206;
    if (use == HTTP_OK && count > 1) {
        http_send_parts(r, size, range, count);
        return;
    }
    http_header(r, "Content-Type", type);
    struct seg all = {.len = size};
    if (use == HTTP_OK) {
        all = (struct seg){.off = range->from,
                           .len = range->to - range->from + 1};
        buf_printf(&r->head, "Content-Range: bytes %llu-%llu/%llu\r\n",
                   (unsigned long long)range->from,
                   (unsigned long long)range->to, (unsigned long long)size);
    }
    http_header_number(r, "Content-Length", all.len);
    r->segs = arena_alloc(&r->arena, sizeof *r->segs);
    *r->segs = all;
    r->seg_count = all.len ? 1 : 0;
}

static void http_send_stream(struct request *r, const char *type,
                             bool (*produce)(struct request *,
                                             struct buf *)) {
    http_header(r, "Content-Type", type);
    if (r->minor) http_header(r, "Transfer-Encoding", "chunked");
    else r->keep_alive = false;     /* HTTP/1.0: the end is the end */
    r->produce = produce;
}

static const struct {
    int status;
    const char *code, *text;
} http_errors[E_COUNT] = {
#define X(name, status, code, text) {status, code, text},
    ERRORS(X)
#undef X
};

static void http_fail(struct request *r, enum error e, const char *text) {
    struct buf body;
    http_start(r, http_errors[e].status);
    r->error = e;
    buf_init(&body, &r->arena, 8 << 10);
    buf_text(&body, "{\"errors\":[{\"code\":\"");
    buf_text(&body, http_errors[e].code);
    buf_text(&body, "\",\"message\":");
    codec_put_json(&body, span_of(text ? text : http_errors[e].text));
    buf_text(&body, "}]}\n");
    if (r->status == 503) http_header(r, "Retry-After", "1");
    http_send_bytes(r, "application/json", buf_view(&body));
}

/* ==== 12. manifest: what a manifest says =================================
 *
 * prefix: manifest_   budget: 180
 *
 * Any JSON object is a manifest and is stored byte for byte. Of the members
 * that the image-spec defines, the types are checked, so that a client that
 * got 201 was not told nonsense; nothing that they name has to exist.
 */

#define MANIFEST_OCI "application/vnd.oci.image."

/* What a manifest says of itself, as far as it matters here. */
struct manifest_fields {
    struct span media_type, artifact_type, config_type, annotations;
    struct span subject_digest;
    bool config, layers, manifests;
    const char *why;
};

static bool manifest_bad(struct manifest_fields *f, const char *why) {
    if (!f->why) f->why = why;
    return false;
}

/* A descriptor (image-spec, descriptor.md); its type and digest. */
static bool manifest_descriptor(struct json *j, struct manifest_fields *f,
                                struct span *type, struct span *digest) {
    struct span key, d = {0, 0};
    uint64_t size;
    bool sized = false;
    *type = (struct span){"", 0};
    if (json_peek(j) != '{')
        return manifest_bad(f, "a descriptor is no object");
    json_object(j);
    while (json_key(j, &key)) {
        if (span_is(key, "mediaType")) json_string(j, type);
        else if (span_is(key, "digest")) json_string(j, &d);
        else if (span_is(key, "size")) sized = json_integer(j, &size);
        else json_skip(j);
    }
    if (j->failed) return manifest_bad(f, "a descriptor's fields are wrong");
    if (!d.p || !digest_is(d))
        return manifest_bad(f, "a descriptor has no digest");
    if (!sized) return manifest_bad(f, "a descriptor has no size");
    *digest = d;
    return true;
}

static bool manifest_descriptors(struct json *j,
                                 struct manifest_fields *f) {
    struct span type, digest;
    if (json_peek(j) == 'n') {          /* Go writes an empty list so */
        json_skip(j);
        return true;
    }
    if (json_peek(j) != '[') return manifest_bad(f, "a list is no array");
    json_array(j);
    while (json_item(j)) {
        if (!manifest_descriptor(j, f, &type, &digest)) return false;
    }
    return true;
}

static bool manifest_annotations(struct json *j, struct manifest_fields *f) {
    struct json inner;
    struct span key, value;
    if (json_peek(j) == 'n') {
        json_skip(j);
        return true;
    }
    if (json_peek(j) != '{') return manifest_bad(f, "annotations is no object");
    f->annotations = json_raw(j);
    json_init(&inner, f->annotations, j->arena);
    json_object(&inner);
    while (json_key(&inner, &key)) json_string(&inner, &value);
    if (!json_end(&inner)) return manifest_bad(f, "an annotation is no string");
    return true;
}

/* One member of the manifest; false: it is wrong. */
static bool manifest_field(struct json *j, struct span key,
                           struct manifest_fields *f) {
    struct span type, digest;
    uint64_t version = 0;
    if (span_is(key, "schemaVersion")) {
        json_integer(j, &version);
        return version == 2 || manifest_bad(f, "schemaVersion is not 2");
    }
    if (span_is(key, "mediaType")) return json_string(j, &f->media_type);
    if (span_is(key, "artifactType"))
        return json_string(j, &f->artifact_type);
    if (span_is(key, "annotations")) return manifest_annotations(j, f);
    if (span_is(key, "config")) {
        f->config = true;
        return manifest_descriptor(j, f, &f->config_type, &digest);
    }
    if (span_is(key, "subject")) {
        f->subject_digest.n = 0;     /* of two the last one counts */
        if (json_peek(j) == 'n') {
            json_skip(j);
            return true;
        }
        return manifest_descriptor(j, f, &type, &f->subject_digest);
    }
    if (span_is(key, "layers")) {
        f->layers = true;
        return manifest_descriptors(j, f);
    }
    if (span_is(key, "manifests")) {
        f->manifests = true;
        return manifest_descriptors(j, f);
    }
    json_skip(j);
    return true;
}

/* The media type: Content-Type, which must not contradict the manifest's
 * own; without one, what the manifest says or looks like. */
static int manifest_media_type(struct span content_type,
                               struct manifest_fields *f,
                               struct manifest *m) {
    struct span type = span_trim(span_cut(&content_type, ';'));
    bool vague = !type.n || span_is_nocase(type, "application/json") ||
                 span_is_nocase(type, "application/octet-stream");
    if (f->media_type.n && !vague && span_compare(type, f->media_type)) {
        f->why = "mediaType is not the Content-Type";
        return -1;
    }
    if (vague && f->media_type.n) type = f->media_type;
    else if (vague && f->manifests)
        type = span_of(MANIFEST_OCI "index.v1+json");
    else if (vague && f->config)
        type = span_of(MANIFEST_OCI "manifest.v1+json");
    if (!name_is_media_type(type)) {
        f->why = "there is no media type";
        return -1;
    }
    memcpy(m->media_type, type.p, type.n);
    m->media_type[type.n] = 0;
    return 0;
}

/* What the referrers list will show (distribution-spec, "Listing
 * Referrers"): an image without artifactType shows its config's type. */
static void manifest_describe(struct arena *a, struct manifest_fields *f,
                              struct manifest *m) {
    struct buf out;
    char digest[DIGEST_TEXT_MAX];
    struct span type = f->artifact_type;
    if (!type.n && !f->manifests) type = f->config_type;
    buf_init(&out, a, DESCRIPTOR_MAX - 1);
    digest_text(&m->digest, digest);
    buf_printf(&out, "{\"mediaType\":\"%s\",\"size\":%zu,\"digest\":\"%s\"",
               m->media_type, m->bytes.n, digest);
    if (type.n) {
        buf_text(&out, ",\"artifactType\":");
        codec_put_json(&out, type);
    }
    size_t without = out.n;
    if (f->annotations.n) {
        buf_text(&out, ",\"annotations\":");
        buf_span(&out, f->annotations);
    }
    buf_text(&out, "}");
    if (out.failed) {             /* annotations past any use: left out */
        out.failed = false;
        out.n = without;
        buf_text(&out, "}");
    }
    m->descriptor = buf_view(&out);
}

static int manifest_parse(struct arena *a, struct span content_type,
                          struct manifest *m, const char **why) {
    struct manifest_fields f = {.why = 0};
    struct json j;
    struct span key;
    bool good = true;
    *why = "not a JSON object";
    json_init(&j, m->bytes, a);
    if (json_peek(&j) != '{') return E_MANIFEST_INVALID;
    json_object(&j);
    while (good && json_key(&j, &key)) good = manifest_field(&j, key, &f);
    if (f.why) *why = f.why;
    if (!good || !json_end(&j)) return E_MANIFEST_INVALID;
    if (f.artifact_type.n > MEDIA_TYPE_MAX ||
        f.config_type.n > MEDIA_TYPE_MAX) {
        *why = "a media type is too long";
        return E_MANIFEST_INVALID;
    }
    int rc = manifest_media_type(content_type, &f, m);
    *why = f.why;
    if (rc) return E_MANIFEST_INVALID;
    m->has_subject = f.subject_digest.n > 0;
    if (m->has_subject && digest_parse(f.subject_digest, &m->subject)) {
        *why = "the subject's digest is not supported";
        return E_MANIFEST_INVALID;
    }
    if (m->has_subject) manifest_describe(a, &f, m);
    return 0;
}

/* ==== 13. store: repositories on the disk ================================
 *
 * prefix: store_ list_   budget: 1100
 *
 * Owns DIR, whose layout stands in the README. Invariants:
 *
 *   1. A commit is: write in uploads/, fdatasync, rename or link, fsync of
 *      the folder, and only then success. Order: blob, referrer, record,
 *      tag; a manifest exists once its record does.
 *   2. A repository's own link is what is read. The pool (blobs/) saves
 *      room and nothing else: losing it loses no image.
 *   3. Only synced files get a name outside uploads/.
 *   4. Tags, manifests and deletes of a repository change under the flock
 *      of its `lock`. Blobs need none: their names are their contents.
 *   5. An upload is used under the flock of its file, and only while that
 *      file still has its name in uploads/.
 *   6. A hash state is trusted within the boot that wrote it; after that
 *      the bytes are read again.
 *
 * A record (a tag's or manifest's file) is one line of words:
 *   DIGEST MEDIA-TYPE SIZE TIME WHO [SUBJECT]
 * An upload's .state: the line of digest_save, then the boot's id.
 */

static struct {
    struct shared *shared;
    struct store_limits limits;
    char boot[64];
    pthread_mutex_t lock;            /* guards what follows */
    uint64_t seen[REPO_SEEN];        /* hashes of names, durable folders */
    struct {
        char name[NAME_MAX_LEN + 1];
        uint64_t due_ms;
    } views[VIEW_PENDING_MAX];
    unsigned view_count;
    bool views_lost;                 /* markers wait on the disk */
} store = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* What an errno means to a client; what is nobody's fault is logged. */
static int store_error(const char *what, const char *path) {
    int e = errno;
    if (e == ENAMETOOLONG) return E_NAME_INVALID;
    log_event(LOG_ERROR, "store.error", "doing", what, "path", path,
              "error", strerror(e), (char *)0);
    if (e == ENOSPC || e == EDQUOT) return E_FULL;
    return e == EMFILE || e == ENFILE || e == ENOMEM ? E_BUSY : E_STORAGE;
}

static void store_repo_path(struct path *p, const char *name,
                            const char *below) {
    path_join(p, "repos/", name, "/_oci/", below, (char *)0);
}

static void store_blob_path(struct path *p, const char *name,
                            const struct digest *d) {
    path_join(p, "repos/", name, "/_oci/blobs/", digest_algo_name(d->algo),
              "/", d->hex, (char *)0);
}

static void store_pool_path(struct path *p, const struct digest *d) {
    path_join(p, "blobs/", digest_algo_name(d->algo), "/", d->hex,
              (char *)0);
}

/* FNV-1a; a collision costs a retry, see store_place. */
static uint64_t store_hash(const char *name) {
    uint64_t h = 0xcbf29ce484222325;
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3;
    return h ? h : 1;
}

static bool store_seen(const char *name, bool set, bool forget) {
    uint64_t h = store_hash(name), *slot = &store.seen[h % REPO_SEEN];
    pthread_mutex_lock(&store.lock);
    bool seen = *slot == h;
    if (set) *slot = h;
    if (forget && seen) *slot = 0;
    pthread_mutex_unlock(&store.lock);
    return seen;
}

/* Every folder on the way to the repository; with `sync` each is synced,
 * so that its entries are there after a power cut. */
static int store_repo_walk(const char *name, bool sync) {
    struct path p;
    struct span rest = span_of(name);
    const char *const below[] = {"/_oci", "/_oci/blobs"};
    size_t n = strlen("repos");
    path_join(&p, "repos", (char *)0);
    if (sync && fs_sync_dir(p.s)) return -1;
    while (rest.n) {
        struct span part = span_cut(&rest, '/');
        p.s[n++] = '/';
        memcpy(p.s + n, part.p, part.n);
        n += part.n;
        p.s[n] = 0;
        if (sync ? fs_sync_dir(p.s) : fs_mkdir(p.s)) return -1;
    }
    for (int i = 0; i < 2; i++) {
        path_join(&p, "repos/", name, below[i], (char *)0);
        if (sync ? fs_sync_dir(p.s) : fs_mkdir(p.s)) return -1;
    }
    return 0;
}

/* The repository's folders exist, durably. */
static int store_repo_make(const char *name) {
    static const char *const folders[] = {"blobs/sha256", "blobs/sha512",
                                          "tags", "referrers"};
    static const char layout[] = "{\"imageLayoutVersion\":\"1.0.0\"}\n";
    struct path p;
    struct stat st;
    if (store_seen(name, false, false)) return 0;
    if (store_repo_walk(name, false)) goto bad;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        store_repo_path(&p, name, folders[i]);
        if (fs_mkdir(p.s)) goto bad;
    }
    store_repo_path(&p, name, "oci-layout");
    bool empty = fs_stat(p.s, &st) || !st.st_size;
    if (empty && fs_save(p.s, span_of(layout))) goto bad;
    if (store_repo_walk(name, true)) goto bad;
    store_seen(name, true, false);
    return 0;
bad:
    return store_error("make repository", name);
}

static bool store_repo_exists(const char *name) {
    struct path p;
    struct stat st;
    store_repo_path(&p, name, "manifests");
    return !fs_stat(p.s, &st);
}

static bool store_repo_is(const char *name, bool any) {
    struct path p;
    struct stat st;
    if (!any) return store_repo_exists(name);
    store_repo_path(&p, name, "blobs");
    return !fs_stat(p.s, &st);
}

static int64_t store_time(const struct stat *st) {
    return (int64_t)st->st_mtim.tv_sec * 1000 +
           st->st_mtim.tv_nsec / 1000000;
}

/* A repository's file in a folder of markers: '+' is in no name. */
static void store_marker(struct path *p, const char *folder,
                         const char *name) {
    path_join(p, folder, name, (char *)0);
    for (char *s = p->s + strlen(folder); *s; s++) {
        if (*s == '/') *s = '+';
    }
}

static bool store_marker_name(const char *entry, char *name) {
    snprintf(name, NAME_MAX_LEN + 1, "%s", entry);
    for (char *s = name; *s; s++) {
        if (*s == '+') *s = '/';
    }
    return name_is_repository(span_of(name));
}

/* Asks for a collection at this time, or earlier if that was asked. */
static void store_sweep_mark(const char *name, int64_t due_ms) {
    struct path p;
    struct stat st;
    store_marker(&p, "sweep/", name);
    bool there = !fs_stat(p.s, &st);
    if (there && store_time(&st) <= due_ms) return;
    int fd = there ? -1 : fs_open(p.s, O_WRONLY | O_CREAT);
    if (fd >= 0) fs_close(fd);
    fs_set_time(p.s, due_ms);
}

/* Markers and memory of what index.json has not caught up with. */
static void store_view_mark(const char *name) {
    struct path p;
    bool known = false;
    store_marker(&p, "dirty/", name);
    pthread_mutex_lock(&store.lock);
    for (unsigned i = 0; i < store.view_count && !known; i++) {
        known = !strcmp(store.views[i].name, name);
    }
    if (!known && store.view_count < VIEW_PENDING_MAX) {
        snprintf(store.views[store.view_count].name, NAME_MAX_LEN + 1, "%s",
                 name);
        store.views[store.view_count++].due_ms =
            base_now_ms() + VIEW_DELAY_MS;
    } else if (!known) {
        store.views_lost = true;
    }
    pthread_mutex_unlock(&store.lock);
    if (known) return;
    int fd = fs_open(p.s, O_WRONLY | O_CREAT);
    if (fd >= 0) fs_close(fd);
}

static int store_view_recover_one(void *unused, const char *entry) {
    char name[NAME_MAX_LEN + 1];
    (void)unused;
    if (store_marker_name(entry, name)) store_view_mark(name);
    return 0;
}

static void store_view_recover(void) {
    pthread_mutex_lock(&store.lock);
    store.views_lost = false;
    pthread_mutex_unlock(&store.lock);
    fs_list("dirty", store_view_recover_one, 0);
}

static bool store_view_due(char *name, bool all, uint64_t *wait_ms) {
    uint64_t now = all ? UINT64_MAX : base_now_ms();
    bool due = false;
    *wait_ms = UINT64_MAX;
    pthread_mutex_lock(&store.lock);
    for (unsigned i = 0; i < store.view_count && !due; i++) {
        uint64_t at = store.views[i].due_ms;
        if (at > now) {
            if (at - now < *wait_ms) *wait_ms = at - now;
            continue;
        }
        memcpy(name, store.views[i].name, NAME_MAX_LEN + 1);
        store.views[i] = store.views[--store.view_count];
        due = true;
    }
    bool again = !store.view_count && store.views_lost;
    pthread_mutex_unlock(&store.lock);
    if (again) store_view_recover();
    return due;
}

static void store_set_limits(const struct store_limits *limits) {
    store.limits = *limits;
}

static int store_clean_one(void *unused, const char *name) {
    struct path p;
    (void)unused;
    if (*name != '.') return 0;
    path_join(&p, "uploads/", name, (char *)0);
    fs_unlink(p.s);
    return 0;
}

/* "dims 1" in the file `format`; a folder of something else is refused. */
static void store_check_format(const char *dir) {
    char text[64];
    ssize_t n = fs_load("format", text, sizeof text);
    if (n < 0 && errno == ENOENT) {
        struct stat st;
        if (!fs_stat("repos", &st) || !fs_stat("blobs", &st))
            base_die(1, "%s holds something that dims did not write", dir);
        if (!fs_save("format", span_of("dims 1\n"))) return;
    }
    if (n < 0)
        base_die(1, "%s/format: %s", dir, strerror(errno));
    if (strcmp(text, "dims 1\n"))
        base_die(1, "%s has a format that this dims does not know", dir);
}

static void store_setup(const char *dir, struct shared *shared) {
    static const char *const folders[] = {
        "repos", "blobs", "blobs/sha256", "blobs/sha512", "dirty",
        "sweep", "trash"};
    struct path tmp;
    store.shared = shared;
    fs_open_root(dir);
    store_check_format(dir);
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        if (fs_mkdir(folders[i]))
            base_die(1, "%s/%s: %s", dir, folders[i], strerror(errno));
    }
    if (fs_sync_dir(".")) base_die(1, "%s: %s", dir, strerror(errno));
    fs_list("uploads", store_clean_one, 0);
    ssize_t n = base_read_file("/proc/sys/kernel/random/boot_id", store.boot,
                               sizeof store.boot);
    /* Without it a state never counts, and bytes are always read again. */
    if (n <= 0) fs_tmp_name(&tmp), memcpy(store.boot, tmp.s, 32);
}

static int store_blob_open(const char *name, const struct digest *d,
                           int *fd, struct stat *st) {
    struct path p;
    store_blob_path(&p, name, d);
    *fd = fs_open(p.s, O_RDONLY);
    if (*fd < 0) {
        bool none = errno == ENOENT || errno == ENAMETOOLONG;
        return none ? E_BLOB_UNKNOWN : store_error("open blob", p.s);
    }
    int rc = fs_stat_fd(*fd, st) ? store_error("stat blob", p.s) : 0;
    if (!rc && !fs_is_sealed(*fd, (uint64_t)st->st_size)) {
        /* Cut short by a disk: not there, so that a push puts it right. */
        log_event(LOG_ERROR, "blob.damaged", "path", p.s, (char *)0);
        rc = E_BLOB_UNKNOWN;
    }
    if (!rc) return 0;
    fs_close(*fd);
    *fd = -1;
    return rc;
}

static int store_blob_touch(const char *name, const struct digest *d) {
    struct path p;
    store_blob_path(&p, name, d);
    if (!fs_touch(p.s)) return 0;
    return errno == ENOENT ? E_BLOB_UNKNOWN : store_error("touch", p.s);
}

/* Gives the pool a name for the repository's file. Never fails a push: the
 * pool only saves room. */
static void store_pool_join(const char *path, const struct digest *d) {
    struct path p, tmp;
    struct stat own, held;
    store_pool_path(&p, d);
    if (!fs_link(path, p.s) || errno != EEXIST) return;
    if (fs_stat(path, &own) || fs_stat(p.s, &held)) return;
    if (own.st_size == held.st_size) return;
    fs_tmp_name(&tmp);
    if (!fs_link(path, tmp.s) && fs_rename(tmp.s, p.s)) fs_unlink(tmp.s);
}

/* Links the pool's file into a repository; -1 with ENOENT where the pool
 * has none, or none of this size (any: -1). */
static int store_pool_take(const char *path, const struct digest *d,
                           int64_t size) {
    struct path p;
    struct stat st;
    store_pool_path(&p, d);
    if (fs_stat(p.s, &st)) return -1;
    /* One link: no repository holds it, and it is about to go. */
    if (size < 0 ? st.st_nlink < 2 : st.st_size != size) {
        errno = ENOENT;
        return -1;
    }
    int rc = fs_link(p.s, path);
    if (rc && errno == EMLINK && !fs_copy(p.s, p.s)) rc = fs_link(p.s, path);
    if (rc && errno == EEXIST) rc = 0;
    return rc ? -1 : fs_touch(path);
}

/* When nobody but the pool holds it, its room is given back. A mount that
 * comes between finds nothing or keeps its own link. */
static void store_pool_drop(const struct digest *d) {
    struct path p;
    struct stat st;
    store_pool_path(&p, d);
    if (!fs_stat(p.s, &st) && st.st_nlink == 1) fs_unlink(p.s);
}

static int store_blob_sync(const char *name, const struct digest *d) {
    struct path p;
    path_join(&p, "repos/", name, "/_oci/blobs/",
              digest_algo_name(d->algo), (char *)0);
    return fs_sync_dir(p.s) ? store_error("sync", p.s) : 0;
}

static int store_blob_mount(const char *name, const char *from,
                            const struct digest *d) {
    struct path source, target;
    struct stat st;
    if (from) store_blob_path(&source, from, d);
    else store_pool_path(&source, d);
    /* First, so that a miss leaves no empty repository behind. */
    int fd = fs_open(source.s, O_RDONLY);
    bool whole = fd >= 0 && !fs_stat_fd(fd, &st) &&
                 fs_is_sealed(fd, (uint64_t)st.st_size);
    if (fd >= 0) fs_close(fd);
    if (!whole) return E_BLOB_UNKNOWN;
    int rc = store_repo_make(name);
    if (rc) return rc;
    store_blob_path(&target, name, d);
    if (from) {
        rc = fs_link(source.s, target.s);
        if (rc && errno == EMLINK) rc = store_pool_take(target.s, d, -1);
        if (rc && errno == EEXIST) rc = 0;
        if (!rc) rc = fs_touch(target.s);
    } else {
        rc = store_pool_take(target.s, d, -1);
    }
    if (rc) {
        bool none = errno == ENOENT || errno == EMLINK;
        return none ? E_BLOB_UNKNOWN : store_error("mount", target.s);
    }
    return store_blob_sync(name, d);
}

/* Puts a synced file of uploads/ in its place, durably. */
static int store_place(const char *tmp, const char *name,
                       const struct digest *d, uint64_t size) {
    struct path p;
    struct stat st;
    int rc = store_repo_make(name);
    if (rc) return rc;
    store_blob_path(&p, name, d);
    bool there = !fs_stat(p.s, &st);
    /* Renewing fails where a collection has just taken it. */
    if (there && (uint64_t)st.st_size == size && !fs_touch(p.s)) {
        fs_unlink(tmp);
        return store_blob_sync(name, d);
    }
    if (!there && !store_pool_take(p.s, d, (int64_t)size)) {
        fs_unlink(tmp);
        return store_blob_sync(name, d);
    }
    if (fs_rename(tmp, p.s)) {
        /* The repository went away under a remembered name. */
        bool gone = errno == ENOENT && store_seen(name, false, true);
        if (!gone) return store_error("place", p.s);
        rc = store_repo_make(name);
        if (rc) return rc;
        if (fs_rename(tmp, p.s)) return store_error("place", p.s);
    }
    store_pool_join(p.s, d);
    return store_blob_sync(name, d);
}

static int store_repo_lock(const char *name, int *lock) {
    struct path p;
    store_repo_path(&p, name, "lock");
    *lock = fs_lock(p.s, false);
    if (*lock >= 0) return 0;
    bool none = errno == ENOENT || errno == ENAMETOOLONG;
    return none ? E_NAME_UNKNOWN : store_error("lock", p.s);
}

static int store_blob_delete(const char *name, const struct digest *d) {
    struct path p, record;
    struct stat st;
    int lock, rc = store_repo_lock(name, &lock);
    if (rc) return rc == E_NAME_UNKNOWN ? E_BLOB_UNKNOWN : rc;
    store_blob_path(&p, name, d);
    path_join(&record, "repos/", name, "/_oci/manifests/", d->hex,
              (char *)0);
    /* A manifest is deleted as one, with its tags. */
    if (!fs_stat(record.s, &st)) rc = E_BLOB_UNKNOWN;
    else if (fs_unlink(p.s)) rc = errno == ENOENT
        ? E_BLOB_UNKNOWN : store_error("delete", p.s);
    if ((!rc || rc == E_BLOB_UNKNOWN) && store_blob_sync(name, d))
        rc = E_STORAGE;
    fs_close(lock);
    if (!rc) store_pool_drop(d);
    return rc;
}

static void store_upload_path(struct path *p, const struct upload *u,
                              const char *suffix) {
    path_join(p, "uploads/", u->id, suffix, (char *)0);
}

/* Which repository an upload belongs to is part of its id. */
static void store_upload_repo(const char *name, char out[17]) {
    struct digest d;
    digest_of(&d, DIGEST_SHA256, span_of(name));
    memcpy(out, d.hex, 16);
    out[16] = 0;
}

static bool store_upload_over(uint64_t n) {
    long long held = atomic_load(&store.shared->upload_bytes);
    uint64_t max = store.limits.max_uploads;
    return max && (n > max || (uint64_t)(held > 0 ? held : 0) > max - n);
}

static int store_upload_room(uint64_t n) {
    uint64_t room = fs_free_bytes();
    if (store_upload_over(n)) return E_FULL;
    return room < store.limits.min_free || room - store.limits.min_free < n
           ? E_FULL : 0;
}

static int store_upload_create(struct upload *u, const char *name,
                               enum digest_algo algo) {
    uint8_t random[16];
    char hex[33], repo[17];
    struct path p;
    base_random(random, sizeof random);
    codec_hex(hex, random, sizeof random);
    store_upload_repo(name, repo);
    *u = (struct upload){.fd = -1, .hashed = true};
    snprintf(u->id, sizeof u->id, "%c%s%s", 'a' + (int)algo, repo, hex);
    digest_init(&u->hash, algo);
    store_upload_path(&p, u, "");
    u->fd = fs_create(p.s);
    if (u->fd < 0) return store_error("make upload", p.s);
    if (!fs_lock_fd(u->fd, true)) return 0;
    return store_error("lock upload", p.s);
}

/* Reads what is there into the hash, up to `size`. */
static int store_upload_rehash(struct upload *u, enum digest_algo algo,
                               uint64_t size, struct digest_ctx *out) {
    size_t cap = 64 << 10;
    char *room = base_alloc(cap);
    uint64_t at = 0;
    digest_init(out, algo);
    while (at < size) {
        uint64_t want = size - at < cap ? size - at : cap;
        ssize_t k = fs_read_at(u->fd, room, (size_t)want, at);
        if (k <= 0) break;
        digest_update(out, room, (size_t)k);
        at += (uint64_t)k;
    }
    free(room);
    return at == size ? 0 : -1;
}

/* Cuts the file to what its state vouches for, and continues from it. */
static int store_upload_resume(struct upload *u, uint64_t held) {
    char text[SMALL_FILE_MAX];
    struct path p;
    struct digest_ctx c;
    store_upload_path(&p, u, ".state");
    ssize_t n = fs_load(p.s, text, sizeof text);
    struct span rest = {text, n > 0 ? (size_t)n : 0};
    struct span line = span_cut(&rest, '\n');
    digest_init(&u->hash, (enum digest_algo)(u->id[0] - 'a'));
    u->hashed = true;
    if (rest.n && !digest_load(&c, line)) {
        u->size = c.total < held ? c.total : held;
        bool trusted = c.total <= held && span_is(rest, store.boot);
        if (trusted) u->hash = c;
        else if (store_upload_rehash(u, c.algo, u->size, &u->hash)) return -1;
        u->saved = trusted ? u->size : UINT64_MAX;
    }
    atomic_fetch_sub(&store.shared->upload_bytes,
                     (long long)(held - u->size));
    return fs_truncate(u->fd, u->size);
}

static bool store_upload_is_id(const char *name, struct span id) {
    char repo[17];
    store_upload_repo(name, repo);
    if (id.n != UPLOAD_ID_LEN || id.p[0] < 'a') return false;
    if (id.p[0] >= 'a' + DIGEST_ALGOS || memcmp(id.p + 1, repo, 16))
        return false;
    for (size_t i = 17; i < id.n; i++) {
        if (!strchr("0123456789abcdef", id.p[i]) || !id.p[i]) return false;
    }
    return true;
}

static int store_upload_open(struct upload *u, const char *name,
                             struct span id) {
    struct path p;
    struct stat held, named;
    *u = (struct upload){.fd = -1};
    if (!store_upload_is_id(name, id)) return E_UPLOAD_UNKNOWN;
    memcpy(u->id, id.p, id.n);
    store_upload_path(&p, u, "");
    u->fd = fs_open(p.s, O_RDWR);
    if (u->fd < 0)
        return errno == ENOENT ? E_UPLOAD_UNKNOWN
                               : store_error("open upload", p.s);
    int rc = 0;
    if (fs_lock_fd(u->fd, true)) rc = E_UPLOAD_BUSY;
    /* Whoever held the lock may have committed or cancelled it. */
    else if (fs_stat_fd(u->fd, &held) || fs_stat(p.s, &named) ||
             held.st_ino != named.st_ino) rc = E_UPLOAD_UNKNOWN;
    else if (store_upload_resume(u, (uint64_t)held.st_size))
        rc = store_error("resume upload", p.s);
    u->flushed = u->size;
    if (!rc) return 0;
    fs_close(u->fd);
    u->fd = -1;
    return rc;
}

static int store_upload_write(struct upload *u, const char *p, size_t n) {
    struct path path;
    uint64_t max = store.limits.max_blob;
    if (max && n > max - (u->size < max ? u->size : max)) return E_TOO_LARGE;
    bool first = u->size == u->flushed;
    if (first ? store_upload_room(n) : store_upload_over(n)) return E_FULL;
    if (fs_write(u->fd, p, n)) {
        store_upload_path(&path, u, "");
        int rc = store_error("write upload", path.s);
        /* The part that was written is not in the hash. */
        if (fs_truncate(u->fd, u->size)) u->hashed = false;
        return rc;
    }
    digest_update(&u->hash, p, n);
    u->size += n;
    atomic_fetch_add(&store.shared->upload_bytes, (long long)n);
    if (u->size - u->flushed < UPLOAD_FLUSH) return 0;
    /* Early, so that the sync at the end is short. */
    fs_write_back(u->fd, u->flushed, u->size - u->flushed);
    u->flushed = u->size;
    return 0;
}

static void store_upload_forget(struct upload *u, bool unlink_data) {
    struct path p;
    store_upload_path(&p, u, ".state");
    fs_unlink(p.s);
    store_upload_path(&p, u, "");
    if (unlink_data) fs_unlink(p.s);
    atomic_fetch_sub(&store.shared->upload_bytes, (long long)u->size);
    fs_close(u->fd);
    u->fd = -1;
}

static int store_upload_commit(struct upload *u, const char *name,
                               const struct digest *d) {
    struct digest_ctx again;
    struct digest got;
    struct path p;
    store_upload_path(&p, u, "");
    if (u->hashed && u->hash.algo == d->algo) {
        digest_final(&u->hash, &got);
    } else {
        if (store_upload_rehash(u, d->algo, u->size, &again))
            return store_error("read upload", p.s);
        digest_final(&again, &got);
    }
    if (!digest_equal(&got, d)) {
        store_upload_forget(u, true);
        return E_DIGEST_INVALID;
    }
    fs_seal(u->fd, u->size);
    /* Its last byte may be old; collection counts from now. */
    if (fs_touch(p.s) || fs_sync(u->fd))
        return store_error("sync upload", p.s);
    int rc = store_place(p.s, name, d, u->size);
    struct stat st;
    if (rc && !fs_stat(p.s, &st)) return rc;
    store_upload_forget(u, false);
    if (rc) return rc;
    /* Unless a manifest comes to name it. */
    store_sweep_mark(name, base_wall_ms() + store.limits.gc_grace_ms);
    return 0;
}

static int store_upload_cancel(struct upload *u) {
    store_upload_forget(u, true);
    return 0;
}

static int store_upload_close(struct upload *u) {
    struct path p;
    struct buf state;
    char room[SMALL_FILE_MAX];
    int rc = 0;
    if (u->fd < 0) return 0;
    if (u->size != u->saved && u->hashed) {
        state = (struct buf){.p = room, .cap = sizeof room,
                             .max = sizeof room};
        digest_save(&u->hash, &state);
        buf_text(&state, store.boot);
        store_upload_path(&p, u, ".state");
        if (u->size >= UPLOAD_FLUSH) rc = fs_sync(u->fd);
        if (!rc) rc = fs_save_quick(p.s, buf_view(&state));
        if (rc) rc = store_error("save upload", p.s);
    }
    fs_close(u->fd);
    u->fd = -1;
    return rc;
}

struct store_sweep {
    int64_t before_ms;     /* wall; 0: count only */
    long long held;
};

static int store_upload_sweep(void *arg, const char *name) {
    struct store_sweep *sweep = arg;
    struct path p;
    struct stat st;
    size_t n = strlen(name);
    path_join(&p, "uploads/", name, (char *)0);
    if (fs_stat(p.s, &st)) return 0;
    bool data = n == UPLOAD_ID_LEN;
    if (data) sweep->held += st.st_size;
    if (store_time(&st) >= sweep->before_ms) return 0;
    int fd = fs_open(p.s, O_RDWR);
    bool mine = fd >= 0 && !fs_lock_fd(fd, true);
    if (mine && data) {
        atomic_fetch_sub(&store.shared->upload_bytes,
                         (long long)st.st_size);
        log_event(LOG_INFO, "upload.expired", "id", name, (char *)0);
    }
    /* A .state goes with its upload, or alone when that is gone. */
    if (mine) fs_unlink(p.s);
    if (mine && data) {
        path_join(&p, "uploads/", name, ".state", (char *)0);
        fs_unlink(p.s);
    }
    if (fd >= 0) fs_close(fd);
    return 0;
}

static void store_upload_expire(uint64_t age_ms) {
    struct store_sweep sweep = {.before_ms =
                                base_wall_ms() - (int64_t)age_ms};
    fs_list("uploads", store_upload_sweep, &sweep);
}

static void store_upload_count(void) {
    struct store_sweep sweep = {0};
    fs_list("uploads", store_upload_sweep, &sweep);
    atomic_store(&store.shared->upload_bytes, sweep.held);
}

/* The words of a record; `subject` may be 0. */
static int store_record_load(const char *path, struct record *out,
                             struct digest *subject) {
    char text[SMALL_FILE_MAX];
    ssize_t n = fs_load(path, text, sizeof text);
    if (n < 0) return -1;
    struct span rest = {text, (size_t)n}, line = span_cut(&rest, '\n');
    memset(out, 0, sizeof *out);
    if (digest_parse(span_cut(&line, ' '), &out->digest)) goto bad;
    struct span media = span_cut(&line, ' ');
    if (!name_is_media_type(media)) goto bad;
    memcpy(out->media_type, media.p, media.n);
    if (codec_number(span_cut(&line, ' '), &out->size)) goto bad;
    span_cut(&line, ' ');
    struct span who = span_cut(&line, ' ');
    char name[3 * NAME_MAX_LEN];
    size_t length;
    if (!who.n || who.n > sizeof name || codec_percent(who, name, &length) ||
        length > NAME_MAX_LEN) goto bad;
    memcpy(out->who, name, length);
    if (!subject) return 0;
    subject->hex[0] = 0;
    if (line.n && digest_parse(line, subject)) goto bad;
    return 0;
bad:
    log_event(LOG_ERROR, "store.damaged", "path", path, (char *)0);
    errno = EILSEQ;
    return -1;
}

static void store_record_format(struct buf *b, const struct manifest *m,
                                bool subject) {
    char digest[DIGEST_TEXT_MAX], when[25];
    digest_text(&m->digest, digest);
    codec_time(when, base_wall_ms());
    buf_printf(b, "%s %s %zu %s ", digest, m->media_type, m->bytes.n, when);
    if (*m->who) codec_put_percent(b, span_of(m->who));
    else buf_text(b, "-");
    if (subject && m->has_subject) {
        digest_text(&m->subject, digest);
        buf_printf(b, " %s", digest);
    }
    buf_text(b, "\n");
}

static void store_manifest_path(struct path *p, const char *name,
                                const struct digest *d) {
    path_join(p, "repos/", name, "/_oci/manifests/", d->hex, (char *)0);
}

static void store_referrer_path(struct path *p, const char *name,
                                const struct digest *subject,
                                const char *hex) {
    path_join(p, "repos/", name, "/_oci/referrers/",
              digest_algo_name(subject->algo), "-", subject->hex,
              hex ? "/" : "", hex ? hex : "", (char *)0);
}

static int store_manifest_bytes(const char *name, const struct manifest *m) {
    struct path p, tmp;
    struct stat st;
    store_blob_path(&p, name, &m->digest);
    bool there = !fs_stat(p.s, &st);
    if (there && (size_t)st.st_size == m->bytes.n) {
        if (fs_touch(p.s)) return store_error("touch", p.s);
        return store_blob_sync(name, &m->digest);
    }
    /* Half of the reserve is for what frees room. */
    if (fs_free_bytes() < store.limits.min_free / 2) return E_FULL;
    fs_tmp_name(&tmp);
    int fd = fs_create(tmp.s);
    int rc = fd < 0 || fs_write(fd, m->bytes.p, m->bytes.n);
    if (!rc) fs_seal(fd, m->bytes.n);
    if (!rc) rc = fs_sync(fd);
    if (rc) rc = store_error("write manifest", p.s);
    if (fd >= 0) fs_close(fd);
    if (!rc) rc = store_place(tmp.s, name, &m->digest, m->bytes.n);
    if (rc) fs_unlink(tmp.s);
    return rc;
}

static int store_manifest_referrer(const char *name,
                                   const struct manifest *m) {
    struct path dir, p;
    store_referrer_path(&dir, name, &m->subject, 0);
    if (fs_mkdir(dir.s)) return store_error("make", dir.s);
    store_repo_path(&p, name, "referrers");
    if (fs_sync_dir(p.s)) return store_error("sync", p.s);
    store_referrer_path(&p, name, &m->subject, m->digest.hex);
    return fs_save(p.s, m->descriptor) ? store_error("write", p.s) : 0;
}

/* The record, unless the same is there. */
static int store_manifest_record(const char *name,
                                 const struct manifest *m) {
    struct path dir, p, seen;
    struct stat st;
    struct record old;
    struct buf line;
    char room[SMALL_FILE_MAX];
    store_manifest_path(&p, name, &m->digest);
    store_repo_path(&dir, name, "manifests");
    bool same = !fs_stat(p.s, &st) && !store_record_load(p.s, &old, 0) &&
                old.size == m->bytes.n &&
                !strcmp(old.media_type, m->media_type);
    /* It may be there and not be synced: who wrote it may have died. */
    if (same) {
        bool failed = fs_touch(p.s) || fs_sync_dir(dir.s);
        return failed ? store_error("sync", dir.s) : 0;
    }
    bool made = fs_stat(dir.s, &st) != 0;
    if (made && fs_mkdir(dir.s)) return store_error("make", dir.s);
    path_join(&seen, name, "/manifests", (char *)0);
    if (made || !store_seen(seen.s, false, false)) {
        store_repo_path(&dir, name, "");
        if (fs_sync_dir(dir.s)) return store_error("sync", dir.s);
        store_seen(seen.s, true, false);
    }
    line = (struct buf){.p = room, .cap = sizeof room, .max = sizeof room};
    store_record_format(&line, m, true);
    return fs_save(p.s, buf_view(&line)) ? store_error("write", p.s) : 0;
}

/* A tag's file is about to go or to be replaced: from now on its manifest
 * may be untagged, and that is what its record's time says. */
static void store_untagged(const char *name, const char *tag) {
    struct record old;
    struct path p;
    if (store_record_load(tag, &old, 0)) return;
    store_manifest_path(&p, name, &old.digest);
    fs_touch(p.s);
    store_sweep_mark(name, base_wall_ms() + store.limits.gc_grace_ms);
}

static int store_manifest_tags(const char *name, const struct manifest *m) {
    struct path p;
    struct buf line;
    char room[SMALL_FILE_MAX];
    line = (struct buf){.p = room, .cap = sizeof room, .max = sizeof room};
    store_record_format(&line, m, false);
    for (unsigned i = 0; i < m->tag_count; i++) {
        path_join(&p, "repos/", name, "/_oci/tags/", m->tags[i], (char *)0);
        store_untagged(name, p.s);
        if (fs_save(p.s, buf_view(&line))) return store_error("tag", p.s);
    }
    return 0;
}

static int store_manifest_put(const char *name, const struct manifest *m) {
    int lock, rc = store_repo_make(name);
    if (!rc) rc = store_repo_lock(name, &lock);
    if (rc == E_NAME_UNKNOWN) {
        store_seen(name, false, true);
        rc = store_repo_make(name);
        if (!rc) rc = store_repo_lock(name, &lock);
    }
    if (rc) return rc;
    rc = store_manifest_bytes(name, m);
    if (!rc && m->has_subject) rc = store_manifest_referrer(name, m);
    if (!rc) rc = store_manifest_record(name, m);
    if (!rc) rc = store_manifest_tags(name, m);
    fs_close(lock);
    store_view_mark(name);
    return rc;
}

static int store_manifest_subject(const char *name, const char *hex,
                                  struct digest *out) {
    struct path p;
    struct record record;
    path_join(&p, "repos/", name, "/_oci/manifests/", hex, (char *)0);
    return store_record_load(p.s, &record, out);
}

static int store_manifest_find(const char *name, const struct digest *d,
                               struct record *out) {
    struct path p;
    store_manifest_path(&p, name, d);
    if (!store_record_load(p.s, out, 0) && digest_equal(&out->digest, d))
        return 0;
    if (errno == ENOENT) {
        return store_repo_exists(name) ? E_MANIFEST_UNKNOWN : E_NAME_UNKNOWN;
    }
    return E_MANIFEST_UNKNOWN;
}

static int store_tag_find(const char *name, const char *tag,
                          struct record *out) {
    struct path p;
    path_join(&p, "repos/", name, "/_oci/tags/", tag, (char *)0);
    if (!store_record_load(p.s, out, 0)) return 0;
    if (errno == ENOENT) {
        return store_repo_exists(name) ? E_MANIFEST_UNKNOWN : E_NAME_UNKNOWN;
    }
    return errno == EILSEQ ? E_MANIFEST_UNKNOWN
                           : store_error("read tag", p.s);
}

static int store_tag_delete(const char *name, const char *tag) {
    struct path p, dir;
    int lock, rc = store_repo_lock(name, &lock);
    if (rc) return rc;
    path_join(&p, "repos/", name, "/_oci/tags/", tag, (char *)0);
    store_repo_path(&dir, name, "tags");
    store_untagged(name, p.s);
    if (fs_unlink(p.s)) {
        rc = errno == ENOENT ? E_MANIFEST_UNKNOWN
                             : store_error("delete tag", p.s);
    }
    /* "It is gone" has to be durable, too, whoever removed it. */
    if ((!rc || rc == E_MANIFEST_UNKNOWN) && fs_sync_dir(dir.s))
        rc = store_error("sync", dir.s);
    fs_close(lock);
    if (!rc) store_view_mark(name);
    return rc;
}

struct store_untag {
    const char *name;
    const struct digest *digest;
};

static int store_untag_one(void *arg, const char *tag) {
    struct store_untag *u = arg;
    struct record record;
    struct path p;
    path_join(&p, "repos/", u->name, "/_oci/tags/", tag, (char *)0);
    /* A damaged tag names nothing; one that cannot be read may. */
    if (store_record_load(p.s, &record, 0))
        return errno == ENOENT || errno == EILSEQ ? 0 : -1;
    if (!digest_equal(&record.digest, u->digest)) return 0;
    return fs_unlink(p.s);
}

static int store_manifest_remove(const char *name, const struct digest *d) {
    struct path p, dir;
    struct record record;
    struct digest subject;
    struct store_untag untag = {name, d};
    store_manifest_path(&p, name, d);
    if (store_record_load(p.s, &record, &subject)) {
        if (errno == ENOENT) {
            store_repo_path(&dir, name, "manifests");
            bool failed = fs_sync_dir(dir.s) && errno != ENOENT;
            return failed ? store_error("sync", dir.s) : E_MANIFEST_UNKNOWN;
        }
        subject.hex[0] = 0;       /* damaged: it can still be deleted */
    }
    store_repo_path(&dir, name, "tags");
    if (fs_list(dir.s, store_untag_one, &untag) || fs_sync_dir(dir.s))
        return store_error("untag", dir.s);
    store_repo_path(&dir, name, "manifests");
    if (fs_unlink(p.s) || fs_sync_dir(dir.s))
        return store_error("delete", p.s);
    if (subject.hex[0]) {
        store_referrer_path(&p, name, &subject, d->hex);
        fs_unlink(p.s);
    }
    store_blob_path(&p, name, d);
    fs_unlink(p.s);
    int rc = store_blob_sync(name, d);
    store_pool_drop(d);
    return rc;
}

static int store_manifest_delete(const char *name,
                                 const struct digest *d) {
    int lock, rc = store_repo_lock(name, &lock);
    if (rc) return rc;
    rc = store_manifest_remove(name, d);
    fs_close(lock);
    if (!rc) store_sweep_mark(name, base_wall_ms());
    if (!rc) store_view_mark(name);
    return rc;
}

/* A list keeps the `max` smallest names in a heap, the largest on top, so
 * that a page costs a page however many names there are. */
static void list_sift(struct list *l, size_t at, size_t count) {
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count &&
            span_compare(l->names[child], l->names[child + 1]) < 0) child++;
        if (span_compare(l->names[at], l->names[child]) >= 0) break;
        struct span t = l->names[at];
        l->names[at] = l->names[child];
        l->names[child] = t;
    }
}

static void list_rise(struct list *l, size_t at) {
    while (at) {
        size_t above = (at - 1) / 2;
        if (span_compare(l->names[above], l->names[at]) >= 0) break;
        struct span t = l->names[at];
        l->names[at] = l->names[above];
        l->names[above] = t;
        at = above;
    }
}

static void list_add(struct list *l, struct span name) {
    if (l->last.n && span_compare(name, l->last) <= 0) return;
    if (l->count == l->max) {
        l->more = true;
        if (!l->max || span_compare(name, l->names[0]) >= 0) return;
        l->names[0] = (struct span){arena_text(l->arena, name), name.n};
        list_sift(l, 0, l->count);
        return;
    }
    if (l->count == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 64;
        struct span *names = arena_alloc(l->arena, cap * sizeof *names);
        if (l->count) memcpy(names, l->names, l->count * sizeof *names);
        l->names = names;
        l->cap = cap;
    }
    l->names[l->count] = (struct span){arena_text(l->arena, name), name.n};
    list_rise(l, l->count++);
}

static void list_sort(struct list *l) {
    for (size_t n = l->count; n > 1;) {
        struct span t = l->names[0];
        l->names[0] = l->names[--n];
        l->names[n] = t;
        list_sift(l, 0, n);
    }
}

static int list_collect(void *arg, const char *name) {
    list_add(arg, span_of(name));
    return 0;
}

static int store_tags(const char *name, struct list *out) {
    struct path p;
    if (!store_repo_exists(name)) return E_NAME_UNKNOWN;
    store_repo_path(&p, name, "tags");
    if (fs_list(p.s, list_collect, out)) return store_error("list", p.s);
    list_sort(out);
    return 0;
}

/* One folder below repos/ on the way of store_repos. Its items are `c` for
 * the repository and `c/` for what is below: sorted, they give whole names
 * in byte order ("a", "a-b", "a/b"), which sorted folders do not. */
struct store_level {
    struct list items;     /* at most REPO_WINDOW at a time */
    size_t at, prefix;     /* of the whole name, with its slash */
};

static int store_level_add(void *arg, const char *name) {
    struct list *items = arg;
    char slash[NAME_MAX_LEN + 2];
    struct span s = span_of(name);
    if (s.n > NAME_MAX_LEN || !name_is_repository(s)) return 0;
    list_add(items, s);
    snprintf(slash, sizeof slash, "%s/", name);
    list_add(items, span_of(slash));
    return 0;
}

/* The items of folder `name` that come after `after`. */
static void store_level_fill(struct store_level *l, struct arena *a,
                             const char *name, struct span after) {
    struct path p;
    l->items = (struct list){.arena = a, .max = REPO_WINDOW, .last = after};
    l->at = 0;
    path_join(&p, "repos/", name, (char *)0);
    fs_list(p.s, store_level_add, &l->items);
    list_sort(&l->items);
}

/* Starts behind `last`: of "a/b/c" the items of "a/" begin after "b". */
static void store_level_open(struct store_level *l, const struct list *out,
                             const char *name, size_t prefix) {
    struct span after = {0, 0};
    l->prefix = prefix;
    if (out->last.n > prefix && !memcmp(out->last.p, name, prefix)) {
        after = (struct span){out->last.p + prefix, out->last.n - prefix};
        after = span_cut(&after, '/');
    }
    store_level_fill(l, out->arena, name, after);
}

/* The next window of a level, if there is one. */
static bool store_level_more(struct store_level *l, char *name) {
    if (!l->items.more) return false;
    struct span after = l->items.names[l->items.count - 1];
    name[l->prefix] = 0;
    store_level_fill(l, l->items.arena, name, after);
    return l->items.count > 0;
}

static bool store_repo_page(struct list *page, struct arena *a) {
    static const size_t names = 1000;
    char last[NAME_MAX_LEN + 1] = "";
    if (page->count && !page->more) return false;
    if (page->count) memcpy(last, page->names[page->count - 1].p,
                            page->names[page->count - 1].n + 1);
    arena_reset(a);
    *page = (struct list){.any = true, .max = names, .arena = a};
    page->last = (struct span){arena_text(a, span_of(last)), strlen(last)};
    return !store_repos(page) && page->count;
}

static int store_repos(struct list *out) {
    enum { LEVELS = NAME_MAX_LEN / 2 + 2 };
    struct store_level *levels =
        arena_alloc(out->arena, LEVELS * sizeof *levels);
    char name[2 * NAME_MAX_LEN + 4] = "";
    int depth = 0;
    store_level_open(levels, out, "", 0);
    while (depth >= 0 && !out->more) {
        struct store_level *l = &levels[depth];
        if (l->at == l->items.count && !store_level_more(l, name)) {
            depth--;
            continue;
        }
        struct span item = l->items.names[l->at++];
        if (l->prefix + item.n > NAME_MAX_LEN) continue;
        memcpy(name + l->prefix, item.p, item.n);
        name[l->prefix + item.n] = 0;
        struct span whole = {name, l->prefix + item.n};
        if (item.p[item.n - 1] != '/') {
            if (store_repo_is(name, out->any)) list_add(out, whole);
            continue;
        }
        bool passed = span_compare(whole, out->last) < 0 &&
                      !span_starts(out->last, name);
        if (passed || depth + 1 == LEVELS) continue;
        store_level_open(&levels[++depth], out, name, whole.n);
    }
    list_sort(out);
    return 0;
}

/* Whether a referrer's descriptor is of the type that was asked for. */
static bool store_referrer_is(struct arena *a, struct span descriptor,
                              struct span artifact_type) {
    struct json j;
    struct span key, value;
    bool same = false;
    json_init(&j, descriptor, a);
    if (!json_object(&j)) return false;
    while (json_key(&j, &key)) {
        if (!span_is(key, "artifactType")) json_skip(&j);
        else if (json_string(&j, &value))
            same = !span_compare(value, artifact_type);
    }
    return same;
}

static int store_referrers(const char *name, const struct digest *subject,
                           struct referrers *page) {
    struct path p;
    struct stat st;
    struct buf *out = page->out;
    struct list list = {.arena = page->arena, .max = SIZE_MAX,
                        .last = page->last};
    char *text = arena_alloc(page->arena, DESCRIPTOR_MAX);
    bool first = true;
    page->next = (struct span){0, 0};
    store_referrer_path(&p, name, subject, 0);
    if (fs_list(p.s, list_collect, &list)) {
        bool none = errno == ENOENT || errno == ENAMETOOLONG;
        return none ? 0 : store_error("list", p.s);
    }
    list_sort(&list);
    for (size_t i = 0; i < list.count; i++) {
        path_join(&p, "repos/", name, "/_oci/manifests/", list.names[i].p,
                  (char *)0);
        if (fs_stat(p.s, &st)) continue;     /* never finished, or deleted */
        store_referrer_path(&p, name, subject, list.names[i].p);
        ssize_t n = fs_load(p.s, text, DESCRIPTOR_MAX);
        if (n <= 0) continue;
        struct span one = {text, (size_t)n};
        if (page->artifact_type.n &&
            !store_referrer_is(page->arena, one, page->artifact_type))
            continue;
        if (!first && out->n + one.n + 1 > REFERRERS_PAGE) {
            page->next = list.names[i - 1];
            break;
        }
        if (!first) buf_text(out, ",");
        buf_span(out, one);
        first = false;
    }
    return 0;
}

/* index.json on its way to the disk. */
struct store_view {
    const char *name;
    struct buf out;
    int fd;
    bool first, failed;
    uint64_t *tagged;        /* the first bits of digests, to be sorted */
    size_t count, cap;
};

static void store_view_flush(struct store_view *v, size_t least) {
    if (v->out.n < least) return;
    if (fs_write(v->fd, v->out.p, v->out.n)) v->failed = true;
    v->out.n = 0;
}

static void store_view_entry(struct store_view *v, const struct record *m,
                             const char *tag) {
    char digest[DIGEST_TEXT_MAX];
    digest_text(&m->digest, digest);
    buf_printf(&v->out, "%s\n{\"mediaType\":\"%s\",\"digest\":\"%s\","
               "\"size\":%llu", v->first ? "" : ",", m->media_type, digest,
               (unsigned long long)m->size);
    if (tag) {
        buf_printf(&v->out, ",\"annotations\":{"
                   "\"org.opencontainers.image.ref.name\":\"%s\"}", tag);
    }
    buf_text(&v->out, "}");
    v->first = false;
    store_view_flush(v, 32 << 10);
}

static uint64_t store_view_key(const char *hex) {
    char first[17];
    snprintf(first, sizeof first, "%.16s", hex);
    return strtoull(first, 0, 16);
}

static int store_view_tag(void *arg, const char *tag) {
    struct store_view *v = arg;
    struct record m;
    struct path p;
    path_join(&p, "repos/", v->name, "/_oci/tags/", tag, (char *)0);
    if (store_record_load(p.s, &m, 0)) return 0;
    store_view_entry(v, &m, tag);
    if (v->count == v->cap) {
        v->cap = v->cap ? 2 * v->cap : 64;
        v->tagged = base_realloc(v->tagged, v->cap * sizeof *v->tagged);
    }
    v->tagged[v->count++] = store_view_key(m.digest.hex);
    return 0;
}

static int store_view_compare(const void *a, const void *b) {
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

static int store_view_untagged(void *arg, const char *hex) {
    struct store_view *v = arg;
    struct record m;
    struct path p;
    uint64_t key = store_view_key(hex);
    if (v->count && bsearch(&key, v->tagged, v->count, sizeof key,
                            store_view_compare)) return 0;
    path_join(&p, "repos/", v->name, "/_oci/manifests/", hex, (char *)0);
    if (!store_record_load(p.s, &m, 0)) store_view_entry(v, &m, 0);
    return 0;
}

static int store_view_write(const char *name) {
    struct store_view v = {.name = name, .first = true};
    struct path tmp, p;
    store_marker(&p, "dirty/", name);
    fs_unlink(p.s);
    /* Two workers must not overtake each other; pushes need not wait. */
    store_repo_path(&p, name, "oci-layout");
    int lock = fs_lock(p.s, false);
    if (lock < 0) return -1;
    fs_tmp_name(&tmp);
    v.fd = fs_create(tmp.s);
    v.failed = v.fd < 0;
    buf_init(&v.out, 0, 64 << 10);
    buf_text(&v.out, "{\"schemaVersion\":2,\"mediaType\":"
             "\"application/vnd.oci.image.index.v1+json\",\"manifests\":[");
    store_repo_path(&p, name, "tags");
    if (!v.failed) fs_list(p.s, store_view_tag, &v);
    if (v.count) qsort(v.tagged, v.count, sizeof *v.tagged,
                       store_view_compare);
    store_repo_path(&p, name, "manifests");
    if (!v.failed) fs_list(p.s, store_view_untagged, &v);
    buf_text(&v.out, "]}\n");
    if (!v.failed) store_view_flush(&v, 0);
    /* Else a power cut could leave it empty under its name. */
    if (!v.failed) v.failed = fs_sync(v.fd) != 0;
    if (v.fd >= 0) fs_close(v.fd);
    store_repo_path(&p, name, "index.json");
    if (!v.failed) v.failed = fs_rename(tmp.s, p.s) != 0;
    if (v.failed) {
        store_error("write index.json", name);
        fs_unlink(tmp.s);
        store_view_mark(name);
    }
    buf_free(&v.out);
    free(v.tagged);
    fs_close(lock);
    return v.failed ? -1 : 0;
}

/* ==== 14. gc: what nobody names any more =================================
 *
 * prefix: gc_   budget: 480
 *
 * A change that may leave garbage puts a marker into sweep/; its time says
 * when a look is worth it. A job takes the markers that are due and goes
 * through those repositories while pushes continue. Invariants:
 *
 *   1. A blob goes only if no manifest of its repository names it and its
 *      time is older than the grace period. Whoever is told "it is there"
 *      (HEAD, mount, a push of what exists) has renewed that time before.
 *   2. It goes through trash/: renamed away, its time looked at again, put
 *      back if somebody renewed it in between. After a crash everything in
 *      trash/ is put back.
 *   3. Manifests are read without the repository's lock. What was pushed
 *      since is read under it, before anything goes.
 *   4. References are 64 bits of a digest: a collision keeps garbage, it
 *      never loses a blob.
 */

static void gc_set_add(struct gc_set *s, uint64_t key) {
    /* Shared layers come again and again: doubles go before it grows. */
    bool full = s->count == s->cap;
    if (full) gc_set_sort(s);
    if (full && s->count >= s->cap / 2) {
        s->cap = s->cap ? 2 * s->cap : 256;
        s->keys = base_realloc(s->keys, s->cap * sizeof *s->keys);
    }
    s->keys[s->count++] = key;
    s->sorted = false;
}

static int gc_set_compare(const void *a, const void *b) {
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

/* Sorted and without doubles: shared layers are named by every manifest. */
static void gc_set_sort(struct gc_set *s) {
    size_t kept = 0;
    if (s->sorted || !s->count) return;
    qsort(s->keys, s->count, sizeof *s->keys, gc_set_compare);
    for (size_t i = 0; i < s->count; i++) {
        if (!kept || s->keys[i] != s->keys[kept - 1])
            s->keys[kept++] = s->keys[i];
    }
    s->count = kept;
    s->sorted = true;
}

static bool gc_set_has(struct gc_set *s, uint64_t key) {
    gc_set_sort(s);
    return s->count && bsearch(&key, s->keys, s->count, sizeof key,
                               gc_set_compare);
}

static uint64_t gc_key(const char *hex) {
    char first[17];
    memcpy(first, hex, 16);
    first[16] = 0;
    return strtoull(first, 0, 16);
}

/* A manifest as the policy for untagged ones sees it. */
struct gc_node {
    uint64_t key, subject;
    bool kept;
    uint32_t refs_at, refs_n;
    char hex[129];
};

struct gc_repo {
    const char *name;
    const struct gc_plan *plan;
    struct gc_stats *stats;
    struct gc_set refs, manifests;
    struct gc_node *nodes;       /* with the untagged policy only */
    size_t node_count, node_cap;
    struct gc_set tagged;
    uint64_t *node_refs;
    size_t ref_count, ref_cap;
    char *text;                  /* MANIFEST_MAX + 1 */
    bool failed, fresh_only;
    enum digest_algo algo;       /* of the folder that is listed */
    struct digest batch[GC_BATCH];
    size_t batch_count;
    int64_t now_ms, ripe_ms;     /* wall; when the next blob is old enough */
};

/* JSON may write any character as \u00XX: undone in place. */
static size_t gc_unescape(char *p, size_t n) {
    size_t out = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t byte;
        bool escape = p[i] == '\\' && n - i > 5 &&
                      !memcmp(p + i + 1, "u00", 3) &&
                      !codec_unhex(&byte, (struct span){p + i + 4, 2});
        p[out++] = escape ? (char)byte : p[i];
        if (escape) i += 5;
    }
    return out;
}

static void gc_ref(struct gc_repo *g, uint64_t key) {
    if (!g->plan->untagged_ms) {
        gc_set_add(&g->refs, key);
        return;
    }
    if (g->ref_count == g->ref_cap) {
        g->ref_cap = g->ref_cap ? 2 * g->ref_cap : 1024;
        g->node_refs = base_realloc(g->node_refs,
                                    g->ref_cap * sizeof *g->node_refs);
    }
    g->node_refs[g->ref_count++] = key;
}

/* Every digest in the text, whatever member it is in: media types that
 * dims does not know keep their blobs, too. */
static void gc_scan(struct gc_repo *g, char *p, size_t n) {
    n = gc_unescape(p, n);
    for (size_t i = 6; i + 64 < n; i++) {
        const char *colon = memchr(p + i, ':', n - i - 64);
        if (!colon) return;
        i = (size_t)(colon - p);
        size_t digits = 0;
        if (memcmp(colon - 6, "sha256", 6) && memcmp(colon - 6, "sha512", 6))
            continue;
        while (i + 1 + digits < n && codec_nibble(colon[1 + digits]) >= 0)
            digits++;
        if (digits >= 64) gc_ref(g, gc_key(colon + 1));
    }
}

/* The manifest's bytes into g->text; how many, or -1. */
static ssize_t gc_load(struct gc_repo *g, const char *hex) {
    struct path p;
    size_t n = strlen(hex);
    path_join(&p, "repos/", g->name, "/_oci/blobs/",
              n == 64 ? "sha256/" : "sha512/", hex, (char *)0);
    return fs_load(p.s, g->text, MANIFEST_MAX + 1);
}

/* Something goes at this time: another look then. */
static void gc_ripe(struct gc_repo *g, int64_t at_ms) {
    if (!g->ripe_ms || at_ms < g->ripe_ms) g->ripe_ms = at_ms;
}

static void gc_node_add(struct gc_repo *g, const char *hex, size_t refs_at) {
    struct path p;
    struct stat st;
    struct digest subject;
    if (g->node_count == g->node_cap) {
        g->node_cap = g->node_cap ? 2 * g->node_cap : 64;
        g->nodes = base_realloc(g->nodes, g->node_cap * sizeof *g->nodes);
    }
    struct gc_node *node = &g->nodes[g->node_count++];
    *node = (struct gc_node){.key = gc_key(hex), .refs_at =
        (uint32_t)refs_at, .refs_n = (uint32_t)(g->ref_count - refs_at)};
    snprintf(node->hex, sizeof node->hex, "%s", hex);
    path_join(&p, "repos/", g->name, "/_oci/manifests/", hex, (char *)0);
    bool young = fs_stat(p.s, &st) || g->now_ms - store_time(&st) <
                 (int64_t)g->plan->untagged_ms;
    bool tagged = gc_set_has(&g->tagged, node->key);
    node->kept = young || tagged;
    if (young && !tagged)
        gc_ripe(g, store_time(&st) + (int64_t)g->plan->untagged_ms);
    if (!store_manifest_subject(g->name, hex, &subject))
        node->subject = gc_key(subject.hex);
    else node->kept = true;
}

static int gc_manifest(void *arg, const char *hex) {
    struct gc_repo *g = arg;
    size_t n = strlen(hex), refs_at = g->ref_count;
    if (n != 64 && n != 128) return 0;
    if (g->fresh_only && gc_set_has(&g->manifests, gc_key(hex))) return 0;
    ssize_t size = gc_load(g, hex);
    /* One that cannot be read whole may name anything: nothing goes. A
     * deletion takes the record first, so without one it is gone. */
    struct path p;
    struct record record;
    path_join(&p, "repos/", g->name, "/_oci/manifests/", hex, (char *)0);
    if (store_record_load(p.s, &record, 0)) g->failed |= errno != ENOENT;
    else g->failed |= size < 0 || (uint64_t)size != record.size;
    if (size > 0) gc_scan(g, g->text, (size_t)size);
    if (g->plan->untagged_ms) gc_node_add(g, hex, refs_at);
    if (!g->fresh_only) gc_set_add(&g->manifests, gc_key(hex));
    else gc_ref(g, gc_key(hex));
    if (!g->fresh_only) g->stats->manifests++;
    return 0;
}

static int gc_tag(void *arg, const char *tag) {
    struct gc_repo *g = arg;
    struct record record;
    if (store_tag_find(g->name, tag, &record)) g->failed = true;
    else gc_set_add(&g->tagged, gc_key(record.digest.hex));
    return 0;
}

static int gc_node_compare(const void *a, const void *b) {
    const struct gc_node *x = a, *y = b;
    return x->key < y->key ? -1 : x->key > y->key;
}

static struct gc_node *gc_node_find(struct gc_repo *g, uint64_t key) {
    struct gc_node wanted = {.key = key};
    return g->node_count ? bsearch(&wanted, g->nodes, g->node_count,
                                   sizeof wanted, gc_node_compare) : 0;
}

/* What a kept index names is kept, and what refers to something kept.
 * Rounds until nothing changes: chains are short. */
static void gc_keep(struct gc_repo *g) {
    if (g->node_count) qsort(g->nodes, g->node_count, sizeof *g->nodes,
                             gc_node_compare);
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = 0; i < g->node_count; i++) {
            struct gc_node *node = &g->nodes[i], *other;
            if (!node->kept && node->subject) {
                other = gc_node_find(g, node->subject);
                node->kept = other && other->kept;
                changed |= node->kept;
            }
            for (uint32_t k = 0; node->kept && k < node->refs_n; k++) {
                other = gc_node_find(g, g->node_refs[node->refs_at + k]);
                if (!other || other->kept) continue;
                other->kept = changed = true;
            }
        }
    }
    for (size_t i = 0; i < g->node_count; i++) {
        struct gc_node *node = &g->nodes[i];
        for (uint32_t k = 0; node->kept && k < node->refs_n; k++)
            gc_set_add(&g->refs, g->node_refs[node->refs_at + k]);
    }
}

/* Reads the repository's manifests (and tags, where they matter). */
static void gc_read(struct gc_repo *g) {
    struct path p;
    g->stats->manifests -= g->manifests.count;   /* of an earlier reading */
    g->refs.count = g->manifests.count = g->tagged.count = 0;
    g->node_count = g->ref_count = 0;
    g->fresh_only = false;
    path_join(&p, "repos/", g->name, "/_oci/tags", (char *)0);
    if (g->plan->untagged_ms && fs_list(p.s, gc_tag, g) && errno != ENOENT)
        g->failed = true;
    path_join(&p, "repos/", g->name, "/_oci/manifests", (char *)0);
    if (fs_list(p.s, gc_manifest, g) && errno != ENOENT) g->failed = true;
    if (g->plan->untagged_ms) gc_keep(g);
}

/* Removes what the policy for untagged manifests lets go; under the lock. */
static void gc_drop_untagged(struct gc_repo *g) {
    for (size_t i = 0; i < g->node_count; i++) {
        struct digest d;
        const char *hex = g->nodes[i].hex;
        if (g->nodes[i].kept) continue;
        d.algo = strlen(hex) == 64 ? DIGEST_SHA256 : DIGEST_SHA512;
        memcpy(d.hex, hex, strlen(hex) + 1);
        g->stats->untagged++;
        if (g->plan->dry_run) continue;
        if (store_manifest_remove(g->name, &d)) g->failed = true;
        else log_event(LOG_INFO, "gc.untagged", "repository", g->name,
                       "digest", hex, (char *)0);
    }
}

static int gc_candidate(void *arg, const char *hex) {
    struct gc_repo *g = arg;
    struct path p;
    struct stat st;
    size_t n = strlen(hex);
    if (n != (g->algo == DIGEST_SHA256 ? 64u : 128u)) return 0;
    uint64_t key = gc_key(hex);
    if (gc_set_has(&g->refs, key) || gc_set_has(&g->manifests, key))
        return 0;
    path_join(&p, "repos/", g->name, "/_oci/blobs/",
              digest_algo_name(g->algo), "/", hex, (char *)0);
    if (fs_stat(p.s, &st)) return 0;
    int64_t ripe = store_time(&st) + (int64_t)g->plan->grace_ms;
    if (ripe > g->now_ms) {
        gc_ripe(g, ripe);
        return 0;
    }
    struct digest *d = &g->batch[g->batch_count++];
    d->algo = g->algo;
    memcpy(d->hex, hex, n + 1);
    return g->batch_count == GC_BATCH;
}

/* Up to GC_BATCH blobs that nothing names. */
static void gc_collect(struct gc_repo *g) {
    struct path p;
    g->batch_count = 0;
    for (int i = 0; i < DIGEST_ALGOS && g->batch_count < GC_BATCH; i++) {
        g->algo = (enum digest_algo)i;
        path_join(&p, "repos/", g->name, "/_oci/blobs/",
                  digest_algo_name(g->algo), (char *)0);
        fs_list(p.s, gc_candidate, g);
    }
}

/* One blob: away, unless its time was renewed meanwhile. */
static void gc_remove(struct gc_repo *g, const struct digest *d) {
    struct path p, trash, folder;
    struct stat st;
    path_join(&p, "repos/", g->name, "/_oci/blobs/",
              digest_algo_name(d->algo), "/", d->hex, (char *)0);
    store_marker(&folder, "trash/", g->name);
    path_join(&trash, folder.s, "/", digest_algo_name(d->algo), "-", d->hex,
              (char *)0);
    if (fs_mkdir(folder.s) || fs_rename(p.s, trash.s) ||
        fs_stat(trash.s, &st)) return;
    if (store_time(&st) + (int64_t)g->plan->grace_ms > g->now_ms) {
        if (!fs_link(trash.s, p.s) || errno == EEXIST) fs_unlink(trash.s);
        return;
    }
    g->stats->blobs++;
    if (st.st_nlink <= 2) g->stats->bytes += (uint64_t)st.st_size;
    fs_unlink(trash.s);
    store_pool_drop(d);
}

static void gc_count(struct gc_repo *g, const struct digest *d) {
    struct path p;
    struct stat st;
    path_join(&p, "repos/", g->name, "/_oci/blobs/",
              digest_algo_name(d->algo), "/", d->hex, (char *)0);
    if (fs_stat(p.s, &st)) return;
    g->stats->blobs++;
    if (st.st_nlink <= 2) g->stats->bytes += (uint64_t)st.st_size;
}

/* A batch under the lock: first what was pushed since it was chosen. */
static void gc_sweep(struct gc_repo *g) {
    struct path p;
    g->fresh_only = true;
    size_t refs_at = g->ref_count;
    path_join(&p, "repos/", g->name, "/_oci/manifests", (char *)0);
    if (fs_list(p.s, gc_manifest, g) && errno != ENOENT) g->failed = true;
    for (size_t i = refs_at; i < g->ref_count; i++)
        gc_set_add(&g->refs, g->node_refs[i]);
    for (size_t i = 0; i < g->batch_count && !g->failed; i++) {
        if (gc_set_has(&g->refs, gc_key(g->batch[i].hex))) continue;
        gc_remove(g, &g->batch[i]);
    }
}

static bool gc_has_untagged(const struct gc_repo *g) {
    for (size_t i = 0; i < g->node_count; i++) {
        if (!g->nodes[i].kept) return true;
    }
    return false;
}

static void gc_locked(struct gc_repo *g, void (*fn)(struct gc_repo *)) {
    int lock;
    if (store_repo_lock(g->name, &lock)) {
        g->failed = true;
        return;
    }
    fn(g);
    fs_close(lock);
}

/* Under the lock from the start: a tag may have come meanwhile. */
static void gc_again_untagged(struct gc_repo *g) {
    gc_read(g);
    if (!g->failed) gc_drop_untagged(g);
    gc_read(g);
}

static void gc_passes(struct gc_repo *g) {
    struct path folder;
    gc_read(g);
    if (!g->failed && gc_has_untagged(g)) {
        if (g->plan->dry_run) gc_drop_untagged(g);
        else gc_locked(g, gc_again_untagged);
    }
    uint64_t before;
    do {
        before = g->stats->blobs;
        if (g->failed) break;
        gc_collect(g);
        for (size_t i = 0; i < g->batch_count && g->plan->dry_run; i++)
            gc_count(g, &g->batch[i]);
        if (g->batch_count && !g->plan->dry_run) gc_locked(g, gc_sweep);
    } while (g->batch_count == GC_BATCH && !g->plan->dry_run &&
             g->stats->blobs > before);
    store_marker(&folder, "trash/", g->name);
    if (!g->plan->dry_run) fs_rmdir(folder.s);
}

static void gc_free(struct gc_repo *g) {
    free(g->refs.keys);
    free(g->manifests.keys);
    free(g->tagged.keys);
    free(g->nodes);
    free(g->node_refs);
    free(g->text);
    free(g);
}

static struct gc_repo *gc_new(const char *name, const struct gc_plan *plan,
                              struct gc_stats *stats) {
    struct gc_repo *g = base_alloc(sizeof *g);
    g->name = name;
    g->plan = plan;
    g->stats = stats;
    g->text = base_alloc(MANIFEST_MAX + 1);
    g->now_ms = base_wall_ms();
    return g;
}

static void gc_named(const char *name, struct gc_set *out) {
    static const struct gc_plan none;
    struct gc_stats stats = {0};
    struct gc_repo *g = gc_new(name, &none, &stats);
    gc_read(g);
    gc_set_sort(&g->refs);
    *out = g->refs;
    g->refs.keys = 0;
    gc_free(g);
}

/* Whether blobs came or went since this pass began. */
static bool gc_changed(const struct gc_repo *g) {
    static const char *const folders[] = {"/_oci/blobs/sha256",
                                          "/_oci/blobs/sha512"};
    bool changed = false;
    for (int i = 0; i < 2; i++) {
        struct path p;
        struct stat st;
        path_join(&p, "repos/", g->name, folders[i], (char *)0);
        changed |= !fs_stat(p.s, &st) && store_time(&st) >= g->now_ms;
    }
    return changed;
}

/* The marker: pushed back while the pass runs, so that one that is killed
 * is repeated; then set to when there is more to do, or removed. Whoever
 * asks for an earlier time meanwhile is not overruled. */
static void gc_mark(const struct gc_repo *g, int64_t due_ms, int64_t was_ms) {
    struct path marker;
    struct stat st;
    store_marker(&marker, "sweep/", g->name);
    if (fs_stat(marker.s, &st)) {
        if (due_ms) store_sweep_mark(g->name, due_ms);
    } else if (store_time(&st) == was_ms) {
        if (due_ms) fs_set_time(marker.s, due_ms);
        else fs_unlink(marker.s);
    }
}

static int gc_repository(const char *name, const struct gc_plan *plan,
                         struct gc_stats *stats) {
    struct gc_repo *g = gc_new(name, plan, stats);
    struct path marker;
    struct stat st;
    int64_t later = g->now_ms + GC_RETRY_MS;
    store_marker(&marker, "sweep/", name);
    if (!plan->dry_run && !fs_stat(marker.s, &st))
        gc_mark(g, later, store_time(&st));
    gc_passes(g);
    stats->repositories++;
    if (g->failed) {
        log_event(LOG_WARN, "gc.incomplete", "repository", name, (char *)0);
        gc_ripe(g, later);
    }
    if (gc_changed(g)) gc_ripe(g, base_wall_ms() + (int64_t)plan->grace_ms);
    if (!plan->dry_run) gc_mark(g, g->ripe_ms, later);
    int rc = g->failed ? -1 : 0;
    gc_free(g);
    return rc;
}

static int gc_due_one(void *arg, const char *entry) {
    struct list *due = arg;
    struct path p;
    struct stat st;
    path_join(&p, "sweep/", entry, (char *)0);
    if (!fs_stat(p.s, &st) && store_time(&st) <= base_wall_ms())
        list_add(due, span_of(entry));
    return 0;
}

static bool gc_is_due(void) {
    struct arena a = {0};
    struct list due = {.arena = &a, .max = 1};
    fs_list("sweep", gc_due_one, &due);
    bool any = due.count > 0;
    arena_free(&a);
    return any;
}

static void gc_due(const struct gc_plan *plan) {
    struct gc_stats stats = {0};
    struct arena a = {0};
    struct list due = {.arena = &a, .max = GC_BATCH};
    char name[NAME_MAX_LEN + 1];
    fs_list("sweep", gc_due_one, &due);
    for (size_t i = 0; i < due.count; i++) {
        if (store_marker_name(due.names[i].p, name))
            gc_repository(name, plan, &stats);
    }
    arena_free(&a);
    char blobs[24], bytes[24];
    snprintf(blobs, sizeof blobs, "%llu", (unsigned long long)stats.blobs);
    snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)stats.bytes);
    if (stats.blobs) log_event(LOG_INFO, "gc.done", "#blobs", blobs, "#bytes",
                               bytes, (char *)0);
}

static int gc_pool_count(void *arg, const char *hex) {
    struct gc_stats *stats = arg;
    struct path p;
    struct stat st;
    path_join(&p, strlen(hex) == 64 ? "blobs/sha256/" : "blobs/sha512/",
              hex, (char *)0);
    if (fs_stat(p.s, &st) || st.st_nlink != 1) return 0;
    stats->blobs++;
    stats->bytes += (uint64_t)st.st_size;
    return 0;
}

static int gc_pool_one(void *arg, const char *hex) {
    struct gc_stats *stats = arg;
    struct digest d;
    size_t n = strlen(hex);
    if (n != 64 && n != 128) return 0;
    d.algo = n == 64 ? DIGEST_SHA256 : DIGEST_SHA512;
    memcpy(d.hex, hex, n + 1);
    gc_pool_count(stats, hex);
    store_pool_drop(&d);
    return 0;
}

static void gc_pool(struct gc_stats *stats, bool dry_run) {
    fs_list("blobs/sha256", dry_run ? gc_pool_count : gc_pool_one, stats);
    fs_list("blobs/sha512", dry_run ? gc_pool_count : gc_pool_one, stats);
}

static int gc_restore_one(void *arg, const char *entry) {
    const char *folder = arg, *hex = strchr(entry, '-');
    struct path from, to;
    char name[NAME_MAX_LEN + 1];
    struct digest d;
    struct span algo = {entry, hex ? (size_t)(hex - entry) : 0};
    if (digest_algo_parse(algo, &d.algo) || !store_marker_name(folder, name))
        return 0;
    path_join(&from, "trash/", folder, "/", entry, (char *)0);
    path_join(&to, "repos/", name, "/_oci/blobs/", digest_algo_name(d.algo),
              "/", hex + 1, (char *)0);
    if (fs_link(from.s, to.s) && errno != EEXIST && errno != ENOENT)
        return 0;
    fs_unlink(from.s);
    return 0;
}

static int gc_restore_folder(void *arg, const char *folder) {
    struct path p;
    char name[NAME_MAX_LEN + 1];
    (void)arg;
    if (!store_marker_name(folder, name)) return 0;
    path_join(&p, "trash/", folder, (char *)0);
    fs_list(p.s, gc_restore_one, (void *)(uintptr_t)folder);
    fs_rmdir(p.s);
    store_sweep_mark(name, base_wall_ms());
    return 0;
}

static void gc_restore(void) {
    fs_list("trash", gc_restore_folder, 0);
}

/* ==== 15. fsck: is everything what its name says? ========================
 *
 * prefix: fsck_   budget: 330
 *
 * Reads every stored byte once (hard links share it), beside a running
 * server. With --repair what is damaged goes to trash/damaged/, so that a
 * push of the same brings it back; views, referrers and pool links are made
 * anew. What a manifest names and the repository lacks is told, but is no
 * damage: sparse images are legal.
 */

struct fsck {
    bool repair;
    const struct fsck_report *report;
    struct fsck_counts *counts;
    struct arena arena;
    struct gc_set good;          /* inodes whose bytes were read and right */
    const char *name;            /* the repository, 0: the pool */
    enum digest_algo algo;
    char *room;
};

enum { FSCK_ROOM = 256 << 10 };

/* Out of the way, where nothing serves it and a person can look at it. */
static void fsck_damaged(struct fsck *f, const char *what,
                         const char *path) {
    struct path to, tmp;
    f->counts->damaged++;
    f->report->tell(what, path);
    if (!f->repair) return;
    fs_tmp_name(&tmp);
    const char *base = strrchr(path, '/') + 1;
    path_join(&to, "trash/damaged/", base, tmp.s + strlen("uploads/"),
              (char *)0);
    if (fs_mkdir("trash/damaged") || fs_rename(path, to.s)) {
        f->report->tell(strerror(errno), path);
        return;
    }
    f->counts->repaired++;
}

/* 0: the bytes are what the name says, 1: they are not, -1: not read. */
static int fsck_hash(struct fsck *f, const char *path,
                     const struct digest *d) {
    struct digest_ctx c;
    struct digest got;
    uint64_t at = 0;
    ssize_t n = 0;
    int fd = fs_open(path, O_RDONLY);
    if (fd < 0) return errno == ENOENT ? 0 : -1;
    digest_init(&c, d->algo);
    while ((n = fs_read_at(fd, f->room, FSCK_ROOM, at)) > 0) {
        digest_update(&c, f->room, (size_t)n);
        at += (uint64_t)n;
        f->counts->bytes += (uint64_t)n;
        f->report->progress(f->counts);
    }
    fs_close(fd);
    digest_final(&c, &got);
    return n < 0 ? -1 : !digest_equal(&got, d);
}

/* Answers that workers remember end with the file that they stand for. */
static void fsck_renew(struct fsck *f, const struct digest *d) {
    struct path p;
    path_join(&p, "repos/", f->name, "/_oci/manifests/", d->hex, (char *)0);
    if (fs_touch(p.s)) return;
    struct list tags = {.arena = &f->arena, .max = SIZE_MAX};
    store_tags(f->name, &tags);
    for (size_t i = 0; i < tags.count; i++) {
        path_join(&p, "repos/", f->name, "/_oci/tags/", tags.names[i].p,
                  (char *)0);
        fs_touch(p.s);
    }
}

static int fsck_blob(void *arg, const char *hex) {
    struct fsck *f = arg;
    struct path p;
    struct stat st;
    struct digest d;
    char text[DIGEST_TEXT_MAX];
    const char *algo = digest_algo_name(f->algo);
    if (f->name) path_join(&p, "repos/", f->name, "/_oci/blobs/", algo, "/",
                           hex, (char *)0);
    else path_join(&p, "blobs/", algo, "/", hex, (char *)0);
    snprintf(text, sizeof text, "%s:%s", algo, hex);
    if (digest_parse(span_of(text), &d)) {
        f->counts->foreign++;
        f->report->tell("foreign", p.s);
        return 0;
    }
    if (fs_stat(p.s, &st) || gc_set_has(&f->good, (uint64_t)st.st_ino))
        return 0;
    f->counts->blobs++;
    int rc = fsck_hash(f, p.s, &d);
    if (!rc && f->name) store_pool_join(p.s, &d);
    if (!rc) gc_set_add(&f->good, (uint64_t)st.st_ino);
    else fsck_damaged(f, rc < 0 ? "unreadable" : "damaged", p.s);
    if (rc && f->name && f->repair) fsck_renew(f, &d);
    return 0;
}

static void fsck_blobs(struct fsck *f, const char *folder) {
    struct path p;
    for (int i = 0; i < DIGEST_ALGOS; i++) {
        f->algo = (enum digest_algo)i;
        path_join(&p, folder, digest_algo_name(f->algo), (char *)0);
        /* One pass lists, the next one hashes: files may go meanwhile. */
        struct list names = {.arena = &f->arena, .max = SIZE_MAX};
        fs_list(p.s, list_collect, &names);
        gc_set_sort(&f->good);
        for (size_t k = 0; k < names.count; k++)
            fsck_blob(f, names.names[k].p);
        arena_reset(&f->arena);
    }
}

/* A referrer whose entry is missing is invisible: made anew. */
static void fsck_referrer(struct fsck *f, const struct record *record,
                          const struct digest *subject) {
    struct path p;
    struct stat st;
    const char *why;
    struct manifest m = {.digest = record->digest, .who = ""};
    store_referrer_path(&p, f->name, subject, record->digest.hex);
    if (!fs_stat(p.s, &st)) return;
    f->counts->damaged++;
    f->report->tell("referrer not listed", p.s);
    char *text = base_alloc(MANIFEST_MAX + 1);
    path_join(&p, "repos/", f->name, "/_oci/blobs/",
              digest_algo_name(record->digest.algo), "/", record->digest.hex,
              (char *)0);
    ssize_t n = fs_load(p.s, text, MANIFEST_MAX + 1);
    m.bytes = (struct span){text, n > 0 ? (size_t)n : 0};
    if (f->repair && n > 0 &&
        !manifest_parse(&f->arena, span_of(record->media_type), &m, &why) &&
        m.has_subject && !store_manifest_referrer(f->name, &m))
        f->counts->repaired++;
    free(text);
}

static int fsck_record(void *arg, const char *hex) {
    struct fsck *f = arg;
    struct path p;
    struct stat st;
    struct record record;
    struct digest subject;
    path_join(&p, "repos/", f->name, "/_oci/manifests/", hex, (char *)0);
    if (store_record_load(p.s, &record, &subject)) {
        if (errno != ENOENT) fsck_damaged(f, "damaged record", p.s);
        return 0;
    }
    if (strcmp(record.digest.hex, hex)) {
        fsck_damaged(f, "record of another manifest", p.s);
        return 0;
    }
    f->counts->manifests++;
    path_join(&p, "repos/", f->name, "/_oci/blobs/",
              digest_algo_name(record.digest.algo), "/", hex, (char *)0);
    bool there = !fs_stat(p.s, &st);
    if (!there || (uint64_t)st.st_size != record.size) {
        f->counts->broken++;
        f->report->tell("manifest without its bytes", p.s);
    }
    if (subject.hex[0]) fsck_referrer(f, &record, &subject);
    return 0;
}

static int fsck_tag(void *arg, const char *tag) {
    struct fsck *f = arg;
    struct path p;
    struct record record, manifest;
    path_join(&p, "repos/", f->name, "/_oci/tags/", tag, (char *)0);
    if (store_record_load(p.s, &record, 0)) {
        if (errno != ENOENT) fsck_damaged(f, "damaged tag", p.s);
    } else if (store_manifest_find(f->name, &record.digest, &manifest)) {
        fsck_damaged(f, "tag without its manifest", p.s);
    }
    return 0;
}

struct fsck_needs {
    struct fsck *f;
    struct gc_set held, named;
};

static int fsck_held(void *arg, const char *hex) {
    struct fsck_needs *needs = arg;
    if (strlen(hex) >= 64) gc_set_add(&needs->held, gc_key(hex));
    return 0;
}

/* What the manifests name and the repository does not have. */
static void fsck_missing(struct fsck *f) {
    struct fsck_needs needs = {.f = f};
    struct path p;
    path_join(&p, "repos/", f->name, "/_oci/blobs/sha256", (char *)0);
    fs_list(p.s, fsck_held, &needs);
    path_join(&p, "repos/", f->name, "/_oci/blobs/sha512", (char *)0);
    fs_list(p.s, fsck_held, &needs);
    gc_named(f->name, &needs.named);
    for (size_t i = 0; i < needs.named.count; i++) {
        char text[40];
        if (gc_set_has(&needs.held, needs.named.keys[i])) continue;
        f->counts->missing++;
        snprintf(text, sizeof text, "%016llx... in ",
                 (unsigned long long)needs.named.keys[i]);
        path_join(&p, text, f->name, (char *)0);
        f->report->tell("named but not here", p.s);
    }
    free(needs.held.keys);
    free(needs.named.keys);
}

static void fsck_each(struct fsck *f, const char *below,
                      int (*fn)(void *, const char *)) {
    struct path p;
    struct list names = {.arena = &f->arena, .max = SIZE_MAX};
    path_join(&p, "repos/", f->name, below, (char *)0);
    fs_list(p.s, list_collect, &names);
    for (size_t i = 0; i < names.count; i++) fn(f, names.names[i].p);
    arena_reset(&f->arena);
}

static void fsck_repository(struct fsck *f, const char *name) {
    struct path p;
    f->name = name;
    f->counts->repositories++;
    path_join(&p, "repos/", name, "/_oci/blobs/", (char *)0);
    fsck_blobs(f, p.s);
    fsck_each(f, "/_oci/manifests", fsck_record);
    fsck_each(f, "/_oci/tags", fsck_tag);
    fsck_missing(f);
    if (f->repair) store_view_write(name);
}

static int fsck_top(void *arg, const char *entry) {
    static const char *const known[] = {
        "format", "lock", "blobs", "repos", "uploads", "dirty", "sweep",
        "trash"};
    struct fsck *f = arg;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!strcmp(entry, known[i])) return 0;
    }
    f->counts->foreign++;
    f->report->tell("foreign", entry);
    return 0;
}

static void fsck_run(bool repair, const struct fsck_report *report,
                     struct fsck_counts *counts) {
    struct fsck f = {.repair = repair, .counts = counts, .report = report};
    struct arena a = {0};
    struct list repos = {.last = {"", 0}};
    f.room = base_alloc(FSCK_ROOM);
    fs_list(".", fsck_top, &f);
    fsck_blobs(&f, "blobs/");
    while (store_repo_page(&repos, &a)) {
        for (size_t i = 0; i < repos.count; i++)
            fsck_repository(&f, repos.names[i].p);
    }
    arena_free(&f.arena);
    arena_free(&a);
    free(f.good.keys);
    free(f.room);
}

/* ==== 16. v2: the OCI distribution API ===================================
 *
 * prefix: v2_   budget: 640
 *
 * distribution-spec 1.1 and its drafts (several tags in one PUT, an
 * upload's algorithm, cancelling). What is stored is served as it came:
 * never converted by Accept, never compressed. Locations are paths, so
 * that no proxy can make them wrong.
 */

static void v2_ping(struct request *r) {
    http_start(r, 200);
    http_send_bytes(r, "application/json", span_of("{}\n"));
}

/* Headers that name what was put or is sent. */
static void v2_digest_header(struct request *r, const struct digest *d) {
    char text[DIGEST_TEXT_MAX];
    digest_text(d, text);
    http_header(r, "Docker-Content-Digest", text);
}

static void v2_etag(struct request *r, const struct digest *d) {
    char text[DIGEST_TEXT_MAX];
    digest_text(d, text);
    buf_text(&r->head, "ETag: \"");
    buf_text(&r->head, text);
    buf_text(&r->head, "\"\r\n");
}

static bool v2_not_modified(struct request *r, const struct digest *d) {
    char text[DIGEST_TEXT_MAX], quoted[DIGEST_TEXT_MAX + 2];
    struct span list = r->header[HEADER_IF_NONE_MATCH];
    digest_text(d, text);
    snprintf(quoted, sizeof quoted, "\"%s\"", text);
    while (list.n) {
        struct span one = span_trim(span_cut(&list, ','));
        if (span_starts(one, "W/")) one.p += 2, one.n -= 2;
        if (!span_is(one, quoted) && !span_is(one, "*")) continue;
        http_start(r, 304);
        v2_etag(r, d);
        v2_digest_header(r, d);
        http_send_empty(r);
        return true;
    }
    return false;
}

/* n= and last=; false: the request has failed. */
static bool v2_page(struct request *r, struct list *list) {
    struct span n;
    uint64_t max = LIST_PAGE_MAX;
    if (http_query(r, "n", &n) && codec_number(n, &max)) {
        http_fail(r, E_PAGE_INVALID, 0);
        return false;
    }
    *list = (struct list){.arena = &r->arena};
    list->max = max < LIST_PAGE_MAX ? (size_t)max : LIST_PAGE_MAX;
    http_query(r, "last", &list->last);
    return true;
}

/* Link (RFC 8288) to the page behind `last`. */
static void v2_link(struct request *r, struct span last, const char *more) {
    struct buf link;
    buf_init(&link, &r->arena, 4 << 10);
    buf_text(&link, "Link: <");
    buf_span(&link, r->path);        /* as it came: the grammar took it */
    buf_text(&link, "?last=");
    codec_put_percent(&link, last);
    buf_text(&link, more);
    buf_text(&link, ">; rel=\"next\"\r\n");
    buf_span(&r->head, buf_view(&link));
}

struct v2_names {
    const struct list *list;
    struct span start;       /* the JSON before the names */
    size_t at;
    bool begun;
};

static bool v2_names_produce(struct request *r, struct buf *out) {
    struct v2_names *names = r->produce_state;
    if (!names->begun) buf_span(out, names->start);
    names->begun = true;
    while (names->at < names->list->count) {
        if (out->n > 32 << 10) return true;
        if (names->at) buf_text(out, ",");
        codec_put_json(out, names->list->names[names->at++]);
    }
    buf_text(out, "]}\n");
    return false;
}

/* Short lists have a length; long ones are made as they are sent. */
static void v2_send_names(struct request *r, const struct list *list,
                          struct span start) {
    struct v2_names *names = arena_alloc(&r->arena, sizeof *names);
    struct buf all;
    char more[32];
    *names = (struct v2_names){.list = list, .start = start};
    http_start(r, 200);
    if (list->more && list->count) {
        snprintf(more, sizeof more, "&n=%zu", list->max);
        v2_link(r, list->names[list->count - 1], more);
    }
    r->produce_state = names;
    buf_init(&all, &r->arena, 128 << 10);
    if (!v2_names_produce(r, &all)) {
        http_send_bytes(r, "application/json", buf_view(&all));
        return;
    }
    names->at = 0;
    names->begun = false;
    http_send_stream(r, "application/json", v2_names_produce);
}

static void v2_catalog(struct request *r) {
    struct list *list = arena_alloc(&r->arena, sizeof *list);
    if (!v2_page(r, list)) return;
    int rc = store_repos(list);
    if (rc) http_fail(r, (enum error)rc, 0);
    else v2_send_names(r, list, span_of("{\"repositories\":["));
}

static void v2_tags(struct request *r) {
    struct list *list = arena_alloc(&r->arena, sizeof *list);
    struct buf start;
    if (!v2_page(r, list)) return;
    int rc = store_tags(r->name, list);
    if (rc) {
        http_fail(r, (enum error)rc, 0);
        return;
    }
    buf_init(&start, &r->arena, 1 << 10);
    buf_printf(&start, "{\"name\":\"%s\",\"tags\":[", r->name);
    v2_send_names(r, list, buf_view(&start));
}

/* The digest in the path; false: the request has failed. */
static bool v2_ref_digest(struct request *r, struct digest *d) {
    int rc = digest_parse(r->ref, d);
    if (rc) http_fail(r, (enum error)rc, 0);
    return !rc;
}

static void v2_blob_get(struct request *r) {
    struct digest d;
    struct stat st;
    int fd;
    if (!v2_ref_digest(r, &d)) return;
    int rc = store_blob_open(r->name, &d, &fd, &st);
    if (rc) {
        http_fail(r, (enum error)rc, 0);
        return;
    }
    if (v2_not_modified(r, &d)) {
        fs_close(fd);
        return;
    }
    /* If-Range names another state of a thing that never changes. */
    struct span range = r->header[HEADER_IF_RANGE];
    char etag[DIGEST_TEXT_MAX], quoted[DIGEST_TEXT_MAX + 2];
    digest_text(&d, etag);
    snprintf(quoted, sizeof quoted, "\"%s\"", etag);
    if (range.p && !span_is(range, quoted))
        r->header[HEADER_RANGE] = (struct span){0, 0};
    http_start(r, 200);
    http_header(r, "Accept-Ranges", "bytes");
    v2_digest_header(r, &d);
    v2_etag(r, &d);
    http_send_file(r, "application/octet-stream", fd, (uint64_t)st.st_size,
                   true);
}

/* "It is there" must stay true until the manifest comes: the time that
 * collection looks at is renewed first, unless it is fresh. */
static void v2_blob_head(struct request *r) {
    struct digest d;
    struct stat st;
    int fd;
    int64_t fresh = (int64_t)r->conf->number[CONF_gc_grace] / 4;
    if (v2_ref_digest(r, &d) && !r->conf->number[CONF_read_only] &&
        !store_blob_open(r->name, &d, &fd, &st)) {
        fs_close(fd);
        if (base_wall_ms() - store_time(&st) > fresh &&
            store_blob_touch(r->name, &d))
            http_fail(r, E_BLOB_UNKNOWN, 0);
    }
    if (!r->status) v2_blob_get(r);
}

static void v2_blob_delete(struct request *r) {
    struct digest d;
    if (!v2_ref_digest(r, &d)) return;
    int rc = store_blob_delete(r->name, &d);
    if (rc) {
        http_fail(r, (enum error)rc, 0);
        return;
    }
    http_start(r, 202);
    http_send_empty(r);
}

/* Where an upload stands: Location, Range, Docker-Upload-UUID. Docker
 * wants a Range whose end is not before its start. */
static void v2_upload_state(struct request *r, int status) {
    const struct upload *u = &r->upload;
    http_start(r, status);
    buf_printf(&r->head, "Location: /v2/%s/blobs/uploads/%s\r\n", r->name,
               u->id);
    buf_printf(&r->head, "Range: 0-%llu\r\n",
               (unsigned long long)(u->size ? u->size - 1 : 0));
    http_header(r, "Docker-Upload-UUID", u->id);
    http_send_empty(r);
}

static void v2_blob_created(struct request *r, const struct digest *d) {
    char text[DIGEST_TEXT_MAX];
    digest_text(d, text);
    http_start(r, 201);
    buf_printf(&r->head, "Location: /v2/%s/blobs/%s\r\n", r->name, text);
    v2_digest_header(r, d);
    http_send_empty(r);
}

static void v2_upload_commit(struct request *r, const struct digest *d) {
    int rc = store_upload_commit(&r->upload, r->name, d);
    if (rc) http_fail(r, (enum error)rc, 0);
    else v2_blob_created(r, d);
}

/* A body that is announced too large is refused before it is sent. */
static bool v2_upload_fits(struct request *r) {
    uint64_t max = r->conf->number[CONF_max_blob], size = r->upload.size;
    int rc = 0;
    if (max && (size > max || r->length > max - size)) rc = E_TOO_LARGE;
    else rc = store_upload_room(r->length);
    if (rc) http_fail(r, (enum error)rc, rc == E_TOO_LARGE
                      ? "larger than this server's max-blob" : 0);
    return !rc;
}

/* ?mount=&from=: true when that answered the request. What cannot be
 * mounted becomes an ordinary upload, never an error. */
static bool v2_upload_mount(struct request *r) {
    struct span mount, from;
    struct digest d;
    char *source = 0;
    if (!http_query(r, "mount", &mount)) return false;
    if (digest_parse(mount, &d)) return false;
    if (http_query(r, "from", &from) && from.n) {
        if (!name_is_repository(from)) return false;
        source = arena_text(&r->arena, from);
    }
    int rc = store_blob_mount(r->name, source, &d);
    if (rc == E_BLOB_UNKNOWN) return false;
    if (rc) http_fail(r, (enum error)rc, 0);
    else v2_blob_created(r, &d);
    return true;
}

static void v2_upload_post_begin(struct request *r) {
    struct span text;
    struct digest d;
    enum digest_algo algo = DIGEST_SHA256;
    int rc = 0;
    if (v2_upload_mount(r)) return;
    if (http_query(r, "digest-algorithm", &text)) {
        if (digest_algo_parse(text, &algo)) rc = E_DIGEST_ALGO;
    } else if (http_query(r, "digest", &text)) {
        rc = digest_parse(text, &d);
        algo = d.algo;
    }
    if (!rc && v2_upload_fits(r))
        rc = store_upload_create(&r->upload, r->name, algo);
    if (rc) http_fail(r, (enum error)rc, 0);
}

static void v2_upload_post(struct request *r) {
    struct span text;
    struct digest d, got;
    if (http_query(r, "digest", &text) && !digest_parse(text, &d)) {
        digest_final(&r->upload.hash, &got);
        /* Without a body it opens a session, unless nothing is the blob. */
        if (r->upload.size || digest_equal(&got, &d)) {
            v2_upload_commit(r, &d);
            return;
        }
    }
    int rc = store_upload_close(&r->upload);
    if (rc) http_fail(r, (enum error)rc, 0);
    else v2_upload_state(r, 202);
}

/* Content-Range: FROM-TO, where FROM is what is there already. */
static bool v2_upload_range(struct request *r) {
    struct span to = r->header[HEADER_CONTENT_RANGE];
    uint64_t first, last;
    if (!to.p) return true;
    if (span_starts(to, "bytes ")) to.p += 6, to.n -= 6;
    struct span all = to;
    to = span_cut(&all, '/');
    struct span from = span_cut(&to, '-');
    if (codec_number(from, &first) || codec_number(to, &last)) {
        http_fail(r, E_BAD_REQUEST, "not a Content-Range");
        return false;
    }
    if (last < first) {
        http_fail(r, E_BAD_REQUEST, "not a Content-Range");
        return false;
    }
    if (first != r->upload.size) {
        v2_upload_state(r, 416);
        return false;
    }
    if (r->has_length && (!r->length || r->length - 1 != last - first)) {
        http_fail(r, E_SIZE_INVALID, 0);
        return false;
    }
    return true;
}

/* The digest that a PUT must name; false: the request has failed. */
static bool v2_upload_digest(struct request *r, struct digest *d) {
    struct span text;
    int rc = E_DIGEST_BAD;
    if (http_query(r, "digest", &text)) rc = digest_parse(text, d);
    if (rc) http_fail(r, (enum error)rc, 0);
    return !rc;
}

static void v2_upload_begin(struct request *r) {
    struct digest d;
    bool put = span_is(r->method, "PUT");
    if (put && !v2_upload_digest(r, &d)) return;
    int rc = store_upload_open(&r->upload, r->name, r->ref);
    if (rc) {
        http_fail(r, (enum error)rc, 0);
        return;
    }
    bool more = r->length || r->is_chunked;
    if (!v2_upload_range(r) || (more && !v2_upload_fits(r))) return;
    /* All of it comes now: no need to read it a second time. */
    if (put && !r->upload.size && d.algo != r->upload.hash.algo)
        digest_init(&r->upload.hash, d.algo);
}

static void v2_upload_patch(struct request *r) {
    int rc = store_upload_close(&r->upload);
    if (rc) http_fail(r, (enum error)rc, 0);
    else v2_upload_state(r, 202);
}

static void v2_upload_put(struct request *r) {
    struct digest d;
    if (v2_upload_digest(r, &d)) v2_upload_commit(r, &d);
}

static void v2_upload_get(struct request *r) {
    v2_upload_state(r, 204);
}

static void v2_upload_delete(struct request *r) {
    store_upload_cancel(&r->upload);
    http_start(r, 204);
    http_send_empty(r);
}

static bool v2_is_digest(struct span ref) {
    return memchr(ref.p, ':', ref.n) != 0;
}

/* What the reference of a manifest's path names. */
static int v2_manifest_find(struct request *r, struct record *m) {
    struct digest d;
    if (v2_is_digest(r->ref)) {
        int rc = digest_parse(r->ref, &d);
        return rc ? rc : store_manifest_find(r->name, &d, m);
    }
    if (!name_is_tag(r->ref)) return E_MANIFEST_UNKNOWN;
    return store_tag_find(r->name, r->ref.p, m);
}

/* Finished answers of a worker (the loop's alone), each good for as long as
 * a stat of the tag's or the record's file says that it is the same file:
 * these are always replaced, never written to. A file younger than the
 * clock's grain may be replaced within it, so it is not remembered. */
struct v2_memo {
    struct path path;
    struct stat st;
    struct digest digest;
    uint32_t head, body;         /* bytes in `text` */
    char text[MEMO_ANSWER_MAX];
};

static struct v2_memo *v2_memos[MEMO_SLOTS];

static bool v2_memo_same(const struct stat *a, const struct stat *b) {
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev &&
           a->st_size == b->st_size &&
           !memcmp(&a->st_mtim, &b->st_mtim, sizeof a->st_mtim) &&
           !memcmp(&a->st_ctim, &b->st_ctim, sizeof a->st_ctim);
}

static struct v2_memo **v2_memo_slot(const struct path *p) {
    uint64_t hash = 0xcbf29ce484222325;       /* FNV-1a */
    for (const char *s = p->s; *s; s++)
        hash = (hash ^ (unsigned char)*s) * 0x100000001b3;
    return &v2_memos[(hash >> 16) % MEMO_SLOTS];
}

/* The file that an answer stands for, and its state now. */
static bool v2_memo_path(struct request *r, struct path *p,
                         struct stat *st) {
    struct span ref = r->ref;
    struct digest d;
    bool tag = !v2_is_digest(ref);
    if (tag ? !name_is_tag(ref) : digest_parse(ref, &d) != 0) return false;
    path_join(p, "repos/", r->name, tag ? "/_oci/tags/" : "/_oci/manifests/",
              tag ? ref.p : d.hex, (char *)0);
    return !fs_stat(p->s, st);
}

static bool v2_memo_answer(struct request *r, const struct path *p,
                           const struct stat *st) {
    const struct v2_memo *m = *v2_memo_slot(p);
    if (!m || strcmp(m->path.s, p->s) || !v2_memo_same(&m->st, st))
        return false;
    if (r->header[HEADER_IF_NONE_MATCH].p && v2_not_modified(r, &m->digest))
        return true;
    http_start(r, 200);
    buf_put(&r->head, m->text, m->head);
    /* A copy: the slot may be another's before all is sent. */
    char *body = arena_alloc(&r->arena, m->body);
    memcpy(body, m->text + m->head, m->body);
    r->segs = arena_alloc(&r->arena, sizeof *r->segs);
    *r->segs = (struct seg){.p = body, .len = m->body};
    r->seg_count = 1;
    return true;
}

static void v2_memo_keep(struct request *r, const struct path *p,
                         const struct stat *st, const struct record *m) {
    struct v2_memo **slot = v2_memo_slot(p);
    int64_t at = (int64_t)st->st_ctim.tv_sec * 1000 +
                 st->st_ctim.tv_nsec / 1000000;
    if (base_wall_ms() - at < MEMO_AGE_MS || r->head.failed) return;
    if (!m->size || m->size + r->head.n > MEMO_ANSWER_MAX) return;
    if (!*slot) *slot = base_alloc(sizeof **slot);
    struct v2_memo *memo = *slot;
    memo->path.s[0] = 0;
    memcpy(memo->text, r->head.p, r->head.n);
    ssize_t n = fs_read_at(r->file, memo->text + r->head.n, (size_t)m->size,
                           0);
    if (n != (ssize_t)m->size) return;
    memo->st = *st;
    memo->digest = m->digest;
    memo->head = (uint32_t)r->head.n;
    memo->body = (uint32_t)m->size;
    memo->path = *p;
}

static void v2_manifest_get(struct request *r) {
    struct record m;
    struct path p;
    struct stat st, tag;
    bool there = v2_memo_path(r, &p, &tag);
    if (there && v2_memo_answer(r, &p, &tag)) return;
    int fd, rc = v2_manifest_find(r, &m);
    if (rc) {
        http_fail(r, (enum error)rc, 0);
        return;
    }
    if (v2_not_modified(r, &m.digest)) return;
    rc = store_blob_open(r->name, &m.digest, &fd, &st);
    if (!rc && (uint64_t)st.st_size == m.size) {
        http_start(r, 200);
        v2_digest_header(r, &m.digest);
        v2_etag(r, &m.digest);
        http_send_file(r, m.media_type, fd, m.size, false);
        if (there) v2_memo_keep(r, &p, &tag, &m);
        return;
    }
    /* Never served: it may be pushed again. */
    if (!rc) fs_close(fd);
    log_event(LOG_ERROR, "manifest.damaged", "repository", r->name, "digest",
              m.digest.hex, (char *)0);
    http_fail(r, E_MANIFEST_UNKNOWN, 0);
}

/* The tag in the path and those of ?tag=; an error or 0. */
static int v2_manifest_tags(struct request *r, struct manifest *m) {
    struct span tag;
    if (!v2_is_digest(r->ref)) {
        if (!name_is_tag(r->ref)) return E_TAG_INVALID;
        m->tags[m->tag_count++] = r->ref.p;
    }
    for (unsigned i = 0; http_query_at(r, "tag", i, &tag); i++) {
        if (!name_is_tag(tag)) return E_TAG_INVALID;
        if (m->tag_count == MANIFEST_TAGS_MAX) return E_TOO_LARGE;
        m->tags[m->tag_count++] = tag.p;
    }
    return 0;
}

static void v2_manifest_created(struct request *r,
                                const struct manifest *m) {
    char digest[DIGEST_TEXT_MAX];
    digest_text(&m->digest, digest);
    http_start(r, 201);
    buf_printf(&r->head, "Location: /v2/%s/manifests/%s\r\n", r->name,
               digest);
    v2_digest_header(r, &m->digest);
    unsigned named = v2_is_digest(r->ref) ? 0 : 1;
    for (unsigned i = named; i < m->tag_count; i++)
        http_header(r, "OCI-Tag", m->tags[i]);
    if (m->has_subject) {
        digest_text(&m->subject, digest);
        http_header(r, "OCI-Subject", digest);
    }
    http_send_empty(r);
}

/* What can be refused before the manifest is sent. */
static void v2_manifest_begin(struct request *r) {
    struct digest d;
    int rc = 0;
    if (v2_is_digest(r->ref)) rc = digest_parse(r->ref, &d);
    else if (!name_is_tag(r->ref)) rc = E_TAG_INVALID;
    if (rc) http_fail(r, (enum error)rc, 0);
}

static void v2_manifest_put(struct request *r) {
    struct manifest *m = arena_alloc(&r->arena, sizeof *m);
    struct digest wanted = {.algo = DIGEST_SHA256};
    const char *why = 0;
    int rc = 0;
    m->bytes = buf_view(&r->body);
    m->who = r->who;
    bool by_digest = v2_is_digest(r->ref);
    if (by_digest) rc = digest_parse(r->ref, &wanted);
    if (!rc) rc = v2_manifest_tags(r, m);
    if (!rc) {
        digest_of(&m->digest, wanted.algo, m->bytes);
        if (by_digest && !digest_equal(&m->digest, &wanted))
            rc = E_DIGEST_INVALID;
    }
    struct span type = r->header[HEADER_CONTENT_TYPE];
    if (!rc) rc = manifest_parse(&r->arena, type, m, &why);
    if (!rc) rc = store_manifest_put(r->name, m);
    if (rc) http_fail(r, (enum error)rc, why);
    else v2_manifest_created(r, m);
}

static void v2_manifest_delete(struct request *r) {
    struct digest d;
    int rc;
    if (v2_is_digest(r->ref)) {
        rc = digest_parse(r->ref, &d);
        if (!rc) rc = store_manifest_delete(r->name, &d);
    } else {
        rc = name_is_tag(r->ref) ? store_tag_delete(r->name, r->ref.p)
                                 : E_MANIFEST_UNKNOWN;
    }
    if (rc) {
        http_fail(r, (enum error)rc, 0);
        return;
    }
    http_start(r, 202);
    http_send_empty(r);
}

static void v2_referrers(struct request *r) {
    struct digest subject;
    struct referrers page = {.artifact_type = {0, 0}};
    if (!v2_ref_digest(r, &subject)) return;
    bool filtered = http_query(r, "artifactType", &page.artifact_type) &&
                    page.artifact_type.n;
    http_query(r, "last", &page.last);
    if (page.artifact_type.n > MEDIA_TYPE_MAX || page.last.n > TAG_MAX_LEN) {
        http_fail(r, E_BAD_REQUEST, "a parameter is too long");
        return;
    }
    page.out = &r->body;
    page.arena = &r->arena;
    buf_init(&r->body, 0, REFERRERS_PAGE + DESCRIPTOR_MAX + 1024);
    buf_text(&r->body, "{\"schemaVersion\":2,\"mediaType\":\"" MANIFEST_OCI
             "index.v1+json\",\"manifests\":[");
    int rc = store_referrers(r->name, &subject, &page);
    if (rc) {
        http_fail(r, (enum error)rc, 0);
        return;
    }
    buf_text(&r->body, "]}\n");
    http_start(r, 200);
    if (filtered) http_header(r, "OCI-Filters-Applied", "artifactType");
    if (page.next.n) {
        struct buf more;
        buf_init(&more, &r->arena, 2 << 10);
        if (filtered) {
            buf_text(&more, "&artifactType=");
            codec_put_percent(&more, page.artifact_type);
        }
        buf_put(&more, "", 1);
        v2_link(r, page.next, more.p);
    }
    http_send_bytes(r, MANIFEST_OCI "index.v1+json", buf_view(&r->body));
}

/* ==== 17. api: the server itself =========================================
 *
 * prefix: api_   budget: 40
 */

static void api_root(struct request *r) {
    http_start(r, 200);
    http_send_bytes(r, "application/json", span_of(
        "{\"name\":\"dims\",\"version\":\"" DIMS_VERSION "\","
        "\"status\":\"ok\"}\n"));
}

static void api_health(struct request *r) {
    http_start(r, 200);
    http_send_bytes(r, "application/json", span_of("{\"status\":\"ok\"}\n"));
}

/* ==== 18. routes: which handler ==========================================
 *
 * prefix: routes_   budget: 180
 *
 * <name> takes any number of components, so paths are matched from their
 * right end: a/blobs/uploads and tags/list are names like others. Limits,
 * 404, 405, the origin and read-only are settled here, before a handler.
 */

static const struct route routes_table[] = {
    {"GET", "/v2/<name>/manifests/<ref>", v2_manifest_get, 0, ROUTE_V2,
     BODY_NONE},
    {"HEAD", "/v2/<name>/blobs/<digest>", v2_blob_head, 0,
     ROUTE_V2 | ROUTE_DISK, BODY_NONE},
    {"GET", "/v2/<name>/blobs/<digest>", v2_blob_get, 0, ROUTE_V2,
     BODY_NONE},
    {"GET", "/", api_root, 0, ROUTE_CORS, BODY_NONE},
    {"GET", "/healthz", api_health, 0, ROUTE_CORS, BODY_NONE},
    {"GET", "/v2/", v2_ping, 0, ROUTE_V2, BODY_NONE},
    {"GET", "/v2", v2_ping, 0, ROUTE_V2, BODY_NONE},
    {"GET", "/v2/_catalog", v2_catalog, 0, ROUTE_V2 | ROUTE_DISK, BODY_NONE},
    {"PUT", "/v2/<name>/manifests/<ref>", v2_manifest_put, v2_manifest_begin,
     ROUTE_V2 | ROUTE_DISK | ROUTE_WRITE, BODY_MEMORY},
    {"DELETE", "/v2/<name>/manifests/<ref>", v2_manifest_delete, 0,
     ROUTE_V2 | ROUTE_DISK | ROUTE_WRITE, BODY_NONE},
    {"POST", "/v2/<name>/blobs/uploads/", v2_upload_post,
     v2_upload_post_begin, ROUTE_V2 | ROUTE_DISK | ROUTE_WRITE, BODY_UPLOAD},
    {"POST", "/v2/<name>/blobs/uploads", v2_upload_post,
     v2_upload_post_begin, ROUTE_V2 | ROUTE_DISK | ROUTE_WRITE, BODY_UPLOAD},
    {"GET", "/v2/<name>/blobs/uploads/<id>", v2_upload_get, v2_upload_begin,
     ROUTE_V2 | ROUTE_DISK, BODY_NONE},
    {"PATCH", "/v2/<name>/blobs/uploads/<id>", v2_upload_patch,
     v2_upload_begin, ROUTE_V2 | ROUTE_DISK | ROUTE_WRITE, BODY_UPLOAD},
    {"PUT", "/v2/<name>/blobs/uploads/<id>", v2_upload_put, v2_upload_begin,
     ROUTE_V2 | ROUTE_DISK | ROUTE_WRITE, BODY_UPLOAD},
    {"DELETE", "/v2/<name>/blobs/uploads/<id>", v2_upload_delete,
     v2_upload_begin, ROUTE_V2 | ROUTE_DISK | ROUTE_WRITE, BODY_NONE},
    {"DELETE", "/v2/<name>/blobs/<digest>", v2_blob_delete, 0,
     ROUTE_V2 | ROUTE_DISK | ROUTE_WRITE, BODY_NONE},
    {"GET", "/v2/<name>/tags/list", v2_tags, 0, ROUTE_V2 | ROUTE_DISK,
     BODY_NONE},
    {"GET", "/v2/<name>/referrers/<digest>", v2_referrers, 0,
     ROUTE_V2 | ROUTE_DISK, BODY_NONE},
};

enum { ROUTES_COUNT = sizeof routes_table / sizeof *routes_table };

/* The last component of `s`, which loses it and its slash. */
static bool routes_pop(struct span *s, struct span *last) {
    const char *slash = s->n ? memrchr(s->p, '/', s->n) : 0;
    if (!slash) return false;
    last->p = slash + 1;
    last->n = s->n - (size_t)(slash + 1 - s->p);
    s->n = (size_t)(slash - s->p);
    return true;
}

static bool routes_match(const char *pattern, struct span path,
                         struct span *name, struct span *ref) {
    const char *mark = strstr(pattern, "/<name>");
    struct span literal, part;
    if (!mark) return span_is(path, pattern);
    struct span tail = span_of(mark + strlen("/<name>"));
    while (tail.n) {
        if (!routes_pop(&tail, &literal) || !routes_pop(&path, &part))
            return false;
        if (literal.n && *literal.p == '<') {
            if (!part.n) return false;
            *ref = part;
        } else if (span_compare(literal, part)) {
            return false;
        }
    }
    size_t front = (size_t)(mark - pattern);
    if (path.n <= front + 1 || memcmp(path.p, pattern, front + 1))
        return false;
    *name = (struct span){path.p + front + 1, path.n - front - 1};
    return true;
}

/* The name and reference of the path, decoded and checked. */
static bool routes_name(struct request *r, struct span name,
                        struct span ref) {
    char *text = arena_alloc(&r->arena, name.n + 1);
    size_t n;
    if (codec_percent(name, text, &n) ||
        !name_is_repository((struct span){text, n})) {
        http_fail(r, E_NAME_INVALID, 0);
        return false;
    }
    memcpy(r->name, text, n + 1);
    if (!ref.p) return true;
    text = arena_alloc(&r->arena, ref.n + 1);
    if (codec_percent(ref, text, &n)) {
        http_fail(r, E_BAD_REQUEST, "a bad escape in the path");
        return false;
    }
    r->ref = (struct span){text, n};
    return true;
}

/* Whether a browser sends this for a page of another origin. */
static bool routes_foreign(struct request *r) {
    struct span origin = r->header[HEADER_ORIGIN];
    struct span host = r->header[HEADER_HOST];
    if (!origin.p) return false;
    if (span_starts(origin, "http://")) origin.p += 7, origin.n -= 7;
    else if (span_starts(origin, "https://")) origin.p += 8, origin.n -= 8;
    return span_compare(origin, host) != 0;
}

/* 405 or the answer to OPTIONS, with the methods that there are. */
static void routes_allow(struct request *r, const char *allow) {
    if (span_is(r->method, "OPTIONS")) http_start(r, 204);
    else http_fail(r, E_METHOD, 0);
    http_header(r, "Allow", allow);
    if (r->status == 204) http_send_empty(r);
}

static bool routes_permit(struct request *r) {
    bool writes = r->route->flags & ROUTE_WRITE;
    if (writes && routes_foreign(r)) {
        http_fail(r, E_ORIGIN, 0);
        return false;
    }
    if (writes && r->conf->number[CONF_read_only]) {
        http_fail(r, E_READ_ONLY, 0);
        http_header(r, "Allow", "GET, HEAD, OPTIONS");
        return false;
    }
    return true;
}

static bool routes_find(struct request *r) {
    struct span name = {0, 0}, ref = {0, 0};
    char allow[64] = "OPTIONS";
    bool matched = false;
    for (int i = 0; i < ROUTES_COUNT; i++) {
        const struct route *route = &routes_table[i];
        if (!span_is(r->method, route->method) &&
            !(r->is_head && !strcmp(route->method, "GET"))) continue;
        if (!routes_match(route->pattern, r->path, &name, &ref)) continue;
        r->route = route;
        if (name.p && !routes_name(r, name, ref)) return false;
        return routes_permit(r);
    }
    /* Which methods would there be? */
    for (int i = 0; i < ROUTES_COUNT; i++) {
        const struct route *route = &routes_table[i];
        if (!routes_match(route->pattern, r->path, &name, &ref)) continue;
        if (!matched || route->flags & ROUTE_CORS) r->route = route;
        matched = true;
        size_t n = strlen(allow);
        bool get = !strcmp(route->method, "GET");
        if (strcmp(route->method, "HEAD"))
            snprintf(allow + n, sizeof allow - n, ", %s%s",
                     get ? "GET, HEAD" : route->method, "");
    }
    if (matched) routes_allow(r, allow);
    else if (span_is(r->path, "*")) routes_allow(r, "GET, HEAD, OPTIONS");
    else http_fail(r, E_NOT_FOUND, 0);
    return false;
}

static void routes_headers(struct request *r) {
    if (span_starts(r->path, "/v2"))
        http_header(r, "Docker-Distribution-API-Version", "registry/2.0");
    bool cors = r->route && r->route->flags & ROUTE_CORS &&
                r->conf->number[CONF_cors];
    if (!cors) return;
    http_header(r, "Access-Control-Allow-Origin", "*");
    if (!span_is(r->method, "OPTIONS")) return;
    http_header(r, "Access-Control-Allow-Methods", "GET, HEAD");
    http_header(r, "Access-Control-Allow-Headers",
                "Authorization, Content-Type");
}

/* ==== 19. conn: one connection's life ====================================
 *
 * prefix: conn_   budget: 900
 *
 *            +--------------------------------------------+
 *            v                                            |
 *   IDLE -> HEAD -> BODY -> WORK -> SEND -> DRAIN --------+
 *            |        |       ^      ^ |
 *            |        +-------|------+ +-> LINGER -> closed
 *            +----------------+------+
 *
 * IDLE and HEAD read (conn_read_head), BODY reads into chunks that disk
 * threads take (conn_read_body, conn_step_*), WORK waits for a handler in
 * a disk thread, SEND writes (conn_send), DRAIN reads away a short body
 * that nobody wanted, LINGER a long one after its early answer, so that
 * the client gets to read that (RFC 9112, 9.6). Only conn_enter changes
 * the state. Invariants:
 *
 *   1. While a job is out (`busy`) the loop does not touch the request.
 *   2. conn_close takes a connection out, never while it is busy; it is
 *      freed when the turn ends, so that `gone` can be asked after it.
 *   3. An idle connection holds no buffer: heads are read into the
 *      worker's scratch and copied only when they are incomplete.
 */

enum conn_state {
    CONN_IDLE, CONN_HEAD, CONN_BODY, CONN_WORK, CONN_SEND, CONN_DRAIN,
    CONN_LINGER, CONN_STATES
};

/* A body on its way to the disk, or just a handler in a disk thread. */
struct conn_work {
    struct pool_job job;         /* first: the pool hands this back */
    struct request *r;
    bool begun;                  /* the route's `begin` has run */
    bool last;                   /* this step ends with the handler */
    bool abort;                  /* the client is gone: keep what came */
    bool ended;                  /* the whole body was received */
    bool started;                /* body bytes may be read */
    uint64_t left;               /* of a body with a length */
    struct chunked chunked;
    char *fill, *out;            /* received into; being written */
    size_t fill_n, out_n;
    size_t reserved;             /* of conns.bodies */
    enum error bad;              /* what was wrong while a job was out */
    const char *why;
};

struct conn {
    int fd;
    enum conn_state state;
    bool busy, gone, listed;
    bool again;                  /* the next request may be in `in` */
    uint8_t blank;               /* bytes of empty lines before a head */
    unsigned index;
    uint64_t deadline_ms, active_ms;
    struct buf in;               /* received, not looked at yet */
    size_t scanned;              /* of it, by http_head_end */
    struct request *r;
    struct conn_work *work;
    unsigned seg;                /* what is being sent */
    uint64_t seg_done;
    uint64_t head_len;           /* of the answer, for the log */
    uint64_t unread;             /* DRAIN, LINGER: bytes that may come */
    struct conn *next;           /* in conns.dead */
    uint8_t peer[16];            /* as IPv6 */
    bool local;                  /* a Unix socket */
};

static struct {
    const struct conf *conf;
    struct shared *shared;
    struct conn **all;           /* parallel to polls */
    struct pollfd *polls;
    struct shared_worker *own;
    unsigned count, cap, max;    /* max: by the descriptors that there are */
    uint64_t paused_ms;          /* nothing is accepted until then */
    struct conn **active;
    struct pollfd *active_polls;
    unsigned active_count;
    uint64_t now_ms, polled_ms, earliest_ms;
    uint64_t full_ms;            /* between two polls of all connections */
    struct conn *dead;           /* closed in this turn, freed at its end */
    struct request *spare;
    unsigned spare_count;
    char *chunks[UPLOAD_SPARE_MAX];
    unsigned chunk_count, chunks_out;
    size_t bodies;               /* bytes of buffered bodies */
    bool draining;
    char date[30];
    int64_t date_s;
    char scratch[CONN_SCRATCH];
} conns;

static void conn_read_head(struct conn *c);
static void conn_read_body(struct conn *c);
static void conn_read_away(struct conn *c);
static void conn_send(struct conn *c);

/* What each state polls for, does, and how long it may last; `from` has a
 * bit for every state that may precede it. */
static const struct {
    short events;
    void (*on_ready)(struct conn *c);
    int64_t limit_ms;            /* 0: none */
    unsigned from;
} conn_table[CONN_STATES] = {
    [CONN_IDLE] = {POLLIN, conn_read_head, CONN_IDLE_MS,
                   1 << CONN_IDLE | 1 << CONN_SEND | 1 << CONN_DRAIN},
    [CONN_HEAD] = {POLLIN, conn_read_head, CONN_HEAD_MS, 1 << CONN_IDLE},
    [CONN_BODY] = {POLLIN, conn_read_body, CONN_BODY_MS,
                   1 << CONN_IDLE | 1 << CONN_HEAD},
    [CONN_WORK] = {0, 0, 0,
                   1 << CONN_IDLE | 1 << CONN_HEAD | 1 << CONN_BODY},
    [CONN_SEND] = {POLLOUT, conn_send, CONN_SEND_MS,
                   1 << CONN_IDLE | 1 << CONN_HEAD | 1 << CONN_BODY |
                   1 << CONN_WORK},
    [CONN_DRAIN] = {POLLIN, conn_read_away, CONN_BODY_MS, 1 << CONN_SEND},
    [CONN_LINGER] = {POLLIN, conn_read_away, CONN_LINGER_MS,
                     1 << CONN_SEND},
};

static void conn_setup(const struct conf *conf, struct shared *shared,
                       unsigned slot) {
    conns.conf = conf;
    conns.shared = shared;
    conns.own = &shared->workers[slot];
    /* Each may need a second one for a file or an upload. */
    conns.max = (unsigned)(base_descriptors() - DESCRIPTORS_KEPT) / 2;
    conns.earliest_ms = UINT64_MAX;
    conns.full_ms = CONN_FULL_POLL_MS;
    conns.now_ms = base_now_ms();
}

static bool conn_full(void) {
    uint64_t all = 0, max = conns.conf->number[CONF_max_connections];
    if (conns.draining || conns.now_ms < conns.paused_ms) return true;
    if (conns.count >= conns.max) return true;
    unsigned slots = atomic_load(&conns.shared->slots);
    for (unsigned i = 0; max && i < slots; i++)
        all += atomic_load_explicit(&conns.shared->workers[i].connections,
                                    memory_order_relaxed);
    return max && all >= max;
}

/* Where connections from this one's address are counted. */
static unsigned conn_slot(const struct conn *c) {
    uint64_t hash = 0xcbf29ce484222325;       /* FNV-1a */
    for (int i = 0; i < 16; i++) hash = (hash ^ c->peer[i]) * 0x100000001b3;
    return (unsigned)(hash >> 32) % ADDRESS_SLOTS;
}

static bool conn_crowded(const struct conn *c) {
    uint64_t max = conns.conf->number[CONF_max_per_address], all = 0;
    unsigned slot = conn_slot(c);
    for (unsigned i = 0; max && i < atomic_load(&conns.shared->slots); i++)
        all += atomic_load(&conns.shared->workers[i].from[slot]);
    return max && all >= max;
}

static size_t conn_count(void) {
    return conns.count;
}

static void conn_deadline(struct conn *c) {
    int64_t limit = conn_table[c->state].limit_ms;
    c->deadline_ms = limit ? conns.now_ms + (uint64_t)limit : UINT64_MAX;
    if (c->deadline_ms < conns.earliest_ms)
        conns.earliest_ms = c->deadline_ms;
}

static void conn_enter(struct conn *c, enum conn_state state) {
    assert(conn_table[state].from >> c->state & 1);
    c->state = state;
    conns.polls[c->index].events = conn_table[state].events;
    conn_deadline(c);
}

/* Stops or resumes polling within a state. */
static void conn_want(struct conn *c, bool on) {
    conns.polls[c->index].events = on ? conn_table[c->state].events : 0;
}

static void conn_touch(struct conn *c) {
    c->active_ms = conns.now_ms;
    if (c->listed) return;
    c->listed = true;
    conns.active[conns.active_count++] = c;
}

static char *conn_chunk_get(void) {
    if (conns.chunks_out == UPLOAD_CHUNKS_MAX) return 0;
    char *p = conns.chunk_count ? conns.chunks[--conns.chunk_count]
                                : malloc(UPLOAD_CHUNK);
    conns.chunks_out += p != 0;
    return p;
}

static void conn_chunk_put(char *p) {
    conns.chunks_out -= p != 0;
    if (p && conns.chunk_count < UPLOAD_SPARE_MAX)
        conns.chunks[conns.chunk_count++] = p;
    else free(p);
}

static struct request *conn_request_new(struct conn *c) {
    struct request *r = conns.spare;
    struct arena arena = {0};
    if (r) {
        conns.spare = r->next;
        conns.spare_count--;
        arena = r->arena;
    } else {
        r = base_alloc(sizeof *r);
    }
    memset(r, 0, sizeof *r);
    r->arena = arena;
    r->conn = c;
    r->conf = conns.conf;
    r->file = -1;
    r->upload.fd = -1;
    r->start_us = base_now_us();
    r->path = r->query = r->target = r->method = span_of("");
    return r;
}

static void conn_request_free(struct conn *c) {
    struct request *r = c->r;
    if (!r) return;
    if (c->work) {
        conn_chunk_put(c->work->fill);
        conn_chunk_put(c->work->out);
        conns.bodies -= c->work->reserved;
    }
    if (r->file >= 0) close(r->file);
    buf_free(&r->body);
    arena_reset(&r->arena);
    if (conns.spare_count < REQUEST_SPARE_MAX) {
        r->next = conns.spare;
        conns.spare = r;
        conns.spare_count++;
    } else {
        arena_free(&r->arena);
        free(r);
    }
    c->r = 0;
    c->work = 0;
}

static void conn_unlist(struct conn *c) {
    for (unsigned i = 0; c->listed && i < conns.active_count; i++) {
        if (conns.active[i] != c) continue;
        conns.active[i] = conns.active[--conns.active_count];
        c->listed = false;
    }
}

static void conn_peer(const struct conn *c, char out[INET6_ADDRSTRLEN]) {
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    if (c->local) snprintf(out, INET6_ADDRSTRLEN, "unix");
    else if (memcmp(c->peer, mapped, 12))
        inet_ntop(AF_INET6, c->peer, out, INET6_ADDRSTRLEN);
    else inet_ntop(AF_INET, c->peer + 12, out, INET6_ADDRSTRLEN);
}

static void conn_log(const struct conn *c, const char *aborted) {
    struct request *r = c->r;
    char peer[INET6_ADDRSTRLEN], status[12], bytes[24], ms[32];
    char target[1024], method[32];
    atomic_fetch_add(&conns.shared->requests, 1);
    r->logged = true;
    if (!log_is(LOG_INFO)) return;
    conn_peer(c, peer);
    uint64_t sent = r->sent > c->head_len ? r->sent - c->head_len : 0;
    uint64_t us = base_now_us() - r->start_us;
    snprintf(status, sizeof status, "%d", r->status);
    snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)sent);
    snprintf(ms, sizeof ms, "%llu.%03llu", (unsigned long long)us / 1000,
             (unsigned long long)us % 1000);
    snprintf(target, sizeof target, "%.*s", (int)r->target.n, r->target.p);
    snprintf(method, sizeof method, "%.*s", (int)r->method.n, r->method.p);
    log_event(LOG_INFO, "http.access", "ip", peer,
              "user", *r->who ? r->who : "-",
              "method", *method ? method : "-",
              "path", *target ? target : "-", "#status", status,
              "#bytes", bytes, "#ms", ms,
              aborted ? "end" : (char *)0, aborted, (char *)0);
}

/* Frees it, or leaves that to the job that is out. */
static void conn_close(struct conn *c) {
    c->gone = true;
    if (c->busy) {
        conns.polls[c->index].fd = -1;
        return;
    }
    if (c->r && c->r->route && !c->r->logged) conn_log(c, "gone");
    conn_request_free(c);
    conn_unlist(c);
    close(c->fd);
    buf_free(&c->in);
    atomic_fetch_sub(&conns.own->connections, 1);
    atomic_fetch_sub(&conns.own->from[conn_slot(c)], 1);
    conns.count--;
    struct conn *moved = conns.all[conns.count];
    conns.all[c->index] = moved;
    conns.polls[c->index] = conns.polls[conns.count];
    moved->index = c->index;
    c->next = conns.dead;
    conns.dead = c;
}

static void conn_bury(void) {
    while (conns.dead) {
        struct conn *c = conns.dead;
        conns.dead = c->next;
        free(c);
    }
}

static void conn_grow(void) {
    conns.cap = conns.cap ? 2 * conns.cap : 64;
    conns.all = base_realloc(conns.all, conns.cap * sizeof *conns.all);
    conns.polls = base_realloc(conns.polls, conns.cap * sizeof *conns.polls);
    conns.active = base_realloc(conns.active,
                                conns.cap * sizeof *conns.active);
    conns.active_polls = base_realloc(conns.active_polls, conns.cap *
                                      sizeof *conns.active_polls);
}

static void conn_admit(struct conn *c) {
    if (conns.count == conns.cap) conn_grow();
    c->index = conns.count++;
    conns.all[c->index] = c;
    conns.polls[c->index] = (struct pollfd){.fd = c->fd};
    atomic_fetch_add(&conns.own->connections, 1);
    atomic_fetch_add(&conns.own->from[conn_slot(c)], 1);
    conn_enter(c, CONN_IDLE);
    conn_touch(c);
}

static void conn_accept(int listener) {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } from;
    socklen_t n = sizeof from;
    int fd = accept4(listener, &from.any, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        bool common = errno == EAGAIN || errno == ECONNABORTED ||
                      errno == EINTR;
        if (common) return;
        /* Out of descriptors: the listener would be ready for ever. */
        log_event(LOG_WARN, "http.accept", "error", strerror(errno),
                  (char *)0);
        conns.paused_ms = conns.now_ms + ACCEPT_PAUSE_MS;
        return;
    }
    struct conn *c = base_alloc(sizeof *c);
    c->fd = fd;
    buf_init(&c->in, 0, HTTP_HEAD_MAX + CONN_SCRATCH);
    c->local = from.any.sa_family != AF_INET &&
               from.any.sa_family != AF_INET6;
    if (from.any.sa_family == AF_INET6) {
        memcpy(c->peer, &from.v6.sin6_addr, 16);
    } else if (from.any.sa_family == AF_INET) {
        memset(c->peer + 10, 0xff, 2);
        memcpy(c->peer + 12, &from.v4.sin_addr, 4);
    }
    if (conn_crowded(c)) {
        close(fd);
        free(c);
        return;
    }
    conn_admit(c);
}

/* ---- sending */

static const char *conn_date(void) {
    int64_t wall = base_wall_ms();
    if (wall / 1000 != conns.date_s) {
        conns.date_s = wall / 1000;
        codec_http_date(conns.date, wall);
    }
    return conns.date;
}

/* How much of the body nobody has read; UINT64_MAX: who knows. */
static uint64_t conn_unread(struct conn *c) {
    struct request *r = c->r;
    struct conn_work *w = c->work;
    if (r->error && !r->route && !r->method.n) return UINT64_MAX;
    if (w && w->ended) return 0;
    if (!r->is_chunked && !r->length) return 0;
    if (r->expects && !(w && w->started)) return UINT64_MAX;
    if (r->is_chunked) return UINT64_MAX;
    return w ? w->left : r->length;
}

/* The answer is in the request: its head, then off it goes. */
static void conn_answer(struct conn *c) {
    struct request *r = c->r;
    struct buf head;
    c->unread = conn_unread(c);
    if (c->unread > HTTP_DRAIN_MAX || conns.draining) r->keep_alive = false;
    if (r->error == E_TIMEOUT) r->keep_alive = false;
    if (r->head.failed) http_fail(r, E_STORAGE, "the answer was too large");
    routes_headers(r);
    buf_init(&head, &r->arena, HTTP_HEAD_MAX + 512);
    buf_reserve(&head, r->head.n + 160);
    buf_text(&head, "HTTP/1.1 ");
    buf_number(&head, (uint64_t)r->status);
    buf_text(&head, " ");
    buf_text(&head, http_reason(r->status));
    buf_text(&head, "\r\nDate: ");
    buf_put(&head, conn_date(), 29);
    buf_text(&head, "\r\n");
    buf_span(&head, buf_view(&r->head));
    if (!r->keep_alive) buf_text(&head, "Connection: close\r\n");
    else if (!r->minor) buf_text(&head, "Connection: keep-alive\r\n");
    buf_text(&head, "\r\n");
    bool bare = r->is_head || r->status == 204 || r->status == 304;
    unsigned body = bare ? 0 : r->seg_count;
    if (bare) r->produce = 0;
    struct seg *segs = arena_alloc(&r->arena, (body + 1) * sizeof *segs);
    segs[0] = (struct seg){.p = head.p, .len = head.n};
    if (body) memcpy(segs + 1, r->segs, body * sizeof *segs);
    r->segs = segs;
    r->seg_count = body + 1;
    c->head_len = head.n;
    c->seg = 0;
    c->seg_done = 0;
    conn_enter(c, CONN_SEND);
    conn_send(c);
}

/* The next piece of a stream, as a chunk (RFC 9112, 7.1). */
static void conn_produce(struct conn *c) {
    struct request *r = c->r;
    char size[11];
    if (!r->body.max) buf_init(&r->body, 0, 256 << 10);
    r->body.n = 0;
    if (r->minor) buf_text(&r->body, "00000000\r\n");
    bool more = r->produce(r, &r->body);
    size_t n = r->body.n - (r->minor ? 10 : 0);
    if (r->minor) {
        snprintf(size, sizeof size, "%08zx\r\n", n & 0xffffffff);
        memcpy(r->body.p, size, 10);
        if (!n) r->body.n = 0;          /* an empty chunk would end it */
        else buf_text(&r->body, "\r\n");
        if (!more) buf_text(&r->body, "0\r\n\r\n");
    }
    if (!more) r->produce = 0;
    r->segs[0] = (struct seg){.p = r->body.p, .len = r->body.n};
    r->seg_count = 1;
    c->seg = 0;
    c->seg_done = 0;
}

static void conn_finish(struct conn *c);

static ssize_t conn_send_memory(struct conn *c) {
    struct request *r = c->r;
    struct iovec iov[16];
    struct msghdr m = {.msg_iov = iov};
    uint64_t skip = c->seg_done;
    unsigned i = c->seg;
    while (i < r->seg_count && r->segs[i].p && m.msg_iovlen < 16) {
        iov[m.msg_iovlen].iov_base = (char *)(uintptr_t)r->segs[i].p + skip;
        iov[m.msg_iovlen++].iov_len = (size_t)(r->segs[i].len - skip);
        skip = 0;
        i++;
    }
    int more = i < r->seg_count || r->produce ? MSG_MORE : 0;
    return sendmsg(c->fd, &m, MSG_NOSIGNAL | more);
}

static ssize_t conn_send_some(struct conn *c) {
    struct seg *s = &c->r->segs[c->seg];
    if (s->p) return conn_send_memory(c);
    off_t at = (off_t)(s->off + c->seg_done);
    uint64_t n = s->len - c->seg_done;
    if (n > CONN_SEND_TURN) n = CONN_SEND_TURN;
    return sendfile(c->fd, c->r->file, &at, (size_t)n);
}

/* Counts what was taken; true when all is sent. */
static bool conn_sent(struct conn *c, uint64_t n) {
    struct request *r = c->r;
    r->sent += n;
    while (c->seg < r->seg_count) {
        uint64_t left = r->segs[c->seg].len - c->seg_done;
        if (n < left) {
            c->seg_done += n;
            return false;
        }
        n -= left;
        c->seg++;
        c->seg_done = 0;
    }
    return !r->produce;
}

static void conn_send(struct conn *c) {
    uint64_t turn = 0;
    for (;;) {
        if (c->seg == c->r->seg_count && c->r->produce) conn_produce(c);
        ssize_t n = c->seg == c->r->seg_count ? 0 : conn_send_some(c);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        /* A file that ends early must not look like a whole answer. */
        bool cut = !n && c->seg < c->r->seg_count &&
                   c->seg_done < c->r->segs[c->seg].len;
        if (n < 0 || cut) {
            conn_log(c, cut ? "cut" : "aborted");
            conn_close(c);
            return;
        }
        turn += (uint64_t)n;
        if (conn_sent(c, (uint64_t)n)) {
            conn_finish(c);
            return;
        }
        if (turn >= CONN_SEND_TURN) break;
    }
    if (turn) conn_deadline(c);
}

static void conn_finish(struct conn *c) {
    bool keep = c->r->keep_alive, drain = c->unread > 0;
    conn_log(c, 0);
    conn_request_free(c);
    if (keep && drain) {
        conn_enter(c, CONN_DRAIN);
        conn_read_away(c);
    } else if (keep) {
        conn_enter(c, CONN_IDLE);
        c->again = true;
    } else if (drain || c->in.n) {
        shutdown(c->fd, SHUT_WR);
        c->unread = HTTP_LINGER_MAX;
        conn_enter(c, CONN_LINGER);
        c->in.n = 0;
    } else {
        /* Whatever still comes must not turn the answer into a reset. */
        shutdown(c->fd, SHUT_WR);
        conn_close(c);
    }
}

static void conn_read_away(struct conn *c) {
    size_t held = c->in.n < c->unread ? c->in.n : (size_t)c->unread;
    if (held) {
        c->in.n -= held;
        memmove(c->in.p, c->in.p + held, c->in.n);
        c->unread -= held;
    }
    for (size_t turn = 0; c->unread; turn += CONN_SCRATCH) {
        if (turn >= CONN_SEND_TURN) return;
        size_t n = c->unread < CONN_SCRATCH ? (size_t)c->unread
                                            : CONN_SCRATCH;
        ssize_t k = recv(c->fd, conns.scratch, n, 0);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0 && errno == EAGAIN) return;
        if (k <= 0) {
            conn_close(c);
            return;
        }
        c->unread -= (uint64_t)k;
    }
    if (c->state == CONN_LINGER) {
        conn_close(c);
        return;
    }
    conn_enter(c, CONN_IDLE);
    c->again = true;
}

/* ---- bodies and handlers in disk threads */

static void conn_step_run(struct pool_job *job) {
    struct conn_work *w = (struct conn_work *)job;
    struct request *r = w->r;
    if (!w->begun) {
        w->begun = true;
        bool begin = r->route->begin && (!r->status || w->abort);
        if (begin) r->route->begin(r);
    }
    bool write = w->out_n && r->upload.fd >= 0;
    if (write && (!r->status || w->abort)) {
        int rc = store_upload_write(&r->upload, w->out, w->out_n);
        if (rc) http_fail(r, (enum error)rc, 0);
    }
    w->out_n = 0;
    if (w->last && !w->abort && !r->status) r->route->handler(r);
    if (w->abort || r->status) store_upload_close(&r->upload);
}

static void conn_step_done(struct pool_job *job);

static void conn_submit(struct conn *c) {
    struct conn_work *w = c->work;
    char *out = w->out;
    w->out = w->fill;
    w->out_n = w->fill_n;
    w->fill = out;
    w->fill_n = 0;
    w->job.run = conn_step_run;
    w->job.done = conn_step_done;
    c->busy = true;
    pool_submit(&w->job);
}

/* The client is gone, or has failed: what came is kept, then the answer. */
static void conn_abort(struct conn *c) {
    struct conn_work *w = c->work;
    bool upload = c->r->route && c->r->route->body == BODY_UPLOAD;
    w->abort = true;
    if (upload && !c->busy && (w->begun || w->fill_n)) {
        conn_submit(c);
    } else if (!c->busy) {
        if (c->gone || !c->r->status) conn_close(c);
        else conn_answer(c);
    }
}

static void conn_continue(struct conn *c) {
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    c->work->started = true;
    if (!c->r->expects || c->in.n) return;
    /* The send buffer is empty: nothing else was sent yet. */
    if (send(c->fd, text, sizeof text - 1, MSG_NOSIGNAL) >= 0) return;
    /* Not closed at once: a disk thread has to let go of the upload. */
    c->gone = true;
    conn_abort(c);
}

static void conn_body_bad(struct conn *c, enum error e, const char *why);
static void conn_settle(struct conn *c);

static void conn_step_done(struct pool_job *job) {
    struct conn_work *w = (struct conn_work *)job;
    struct conn *c = w->r->conn;
    c->busy = false;
    conn_touch(c);
    /* A client that now stalls holds no buffer. */
    conn_chunk_put(w->out);
    w->out = 0;
    if (c->gone) {
        if (w->r->upload.fd >= 0 && !w->abort) conn_abort(c);
        else conn_close(c);
    } else if (w->r->status) {
        conn_answer(c);
    } else if (w->abort) {
        conn_close(c);
    } else if (w->bad) {
        conn_body_bad(c, w->bad, w->why);
    } else {
        if (!w->started) conn_continue(c);
        if (!c->gone) conn_read_body(c);
    }
    conn_settle(c);
}

/* Bytes of the body: what is held, else from the socket. `held` tells how
 * many were only looked at in c->in. */
static ssize_t conn_body_get(struct conn *c, char *p, size_t cap,
                             size_t *held) {
    *held = c->in.n < cap ? c->in.n : cap;
    if (!*held) return recv(c->fd, p, cap, 0);
    memcpy(p, c->in.p, *held);
    return (ssize_t)*held;
}

/* Where the next bytes go: at most *cap of them; 0: not now, or `bad`. */
static char *conn_body_room(struct conn *c, size_t *cap) {
    struct conn_work *w = c->work;
    struct request *r = c->r;
    if (r->route->body == BODY_UPLOAD) {
        if (!w->fill) w->fill = conn_chunk_get();
        if (!w->fill) w->bad = E_BUSY;
        *cap = w->fill ? UPLOAD_CHUNK - w->fill_n : 0;
        return *cap ? w->fill + w->fill_n : 0;
    }
    size_t want = r->has_length ? (size_t)w->left : 16 << 10;
    if (!r->body.max) buf_init(&r->body, 0, MANIFEST_MAX + (16 << 10));
    if (want > 64 << 10) want = 64 << 10;
    if (conns.bodies + want > BODY_MEMORY_MAX) {
        w->bad = E_BUSY;
        return 0;
    }
    size_t before = r->body.cap;
    if (!buf_reserve(&r->body, want)) {
        w->bad = E_TOO_LARGE;
        w->why = "a manifest has at most 4 MiB";
        return 0;
    }
    w->reserved += r->body.cap - before;
    conns.bodies += r->body.cap - before;
    *cap = r->body.cap - r->body.n;
    return r->body.p + r->body.n;
}

/* Takes n received bytes at p for the body; false: they are bad. */
static bool conn_body_take(struct conn *c, char *p, size_t n, size_t held) {
    struct conn_work *w = c->work;
    struct request *r = c->r;
    size_t out = n, used = n;
    if (r->is_chunked) {
        enum http_result rc = http_dechunk(&w->chunked, p, n, &out, &used);
        if (rc == HTTP_BAD) return false;
        w->ended = rc == HTTP_OK;
        if (!held && used < n) buf_put(&c->in, p + used, n - used);
    } else {
        w->left -= n;
        w->ended = !w->left;
    }
    if (held) {
        c->in.n -= used;
        memmove(c->in.p, c->in.p + used, c->in.n);
    }
    if (r->route->body == BODY_UPLOAD) w->fill_n += out;
    else r->body.n += out;
    return true;
}

/* A body that broke off or makes no sense. */
static void conn_body_bad(struct conn *c, enum error e, const char *why) {
    struct conn_work *w = c->work;
    w->bad = e;
    w->why = why;
    conn_want(c, false);
    if (c->busy) return;         /* conn_step_done comes back here */
    c->r->keep_alive = false;
    http_fail(c->r, e, why);
    w->left = UINT64_MAX;
    conn_abort(c);
}

/* The body is there, or a chunk of it is full: on to a disk thread. */
static void conn_body_pass(struct conn *c) {
    struct conn_work *w = c->work;
    struct request *r = c->r;
    if (r->route->body == BODY_UPLOAD) {
        bool full = w->fill_n == UPLOAD_CHUNK;
        if (!c->busy && (full || w->ended)) {
            w->last = w->ended;
            conn_submit(c);
        }
        /* While one chunk is written the other one may fill. */
        conn_want(c, !w->ended && w->fill_n < UPLOAD_CHUNK);
        if (w->last) conn_enter(c, CONN_WORK);
    } else if (r->body.n > MANIFEST_MAX) {
        conn_body_bad(c, E_TOO_LARGE, "a manifest has at most 4 MiB");
    } else if (w->ended) {
        conn_enter(c, CONN_WORK);
        w->last = true;
        conn_submit(c);
    }
}

static void conn_read_body(struct conn *c) {
    struct conn_work *w = c->work;
    size_t cap, held, turn = 0;
    while (w->started && !w->ended && turn < UPLOAD_CHUNK) {
        char *p = conn_body_room(c, &cap);
        if (!p && w->bad) {
            conn_body_bad(c, w->bad, w->why);
            return;
        }
        if (!p) break;
        if (c->r->has_length && cap > w->left) cap = (size_t)w->left;
        /* What follows the last chunk must fit into c->in. */
        if (c->r->is_chunked && cap > CONN_SCRATCH) cap = CONN_SCRATCH;
        ssize_t n = conn_body_get(c, p, cap, &held);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            c->gone = true;
            if (!c->busy) conn_abort(c);
            else conn_close(c);
            return;
        }
        if (!n) {
            conn_body_bad(c, E_SIZE_INVALID, "the body ended early");
            return;
        }
        if (!conn_body_take(c, p, (size_t)n, held)) {
            conn_body_bad(c, E_BAD_REQUEST, "bad chunked encoding");
            return;
        }
        turn += (size_t)n;
    }
    if (turn) conn_deadline(c);
    conn_body_pass(c);
}

/* ---- heads */

/* Starts with the body, or with the handler where there is none. */
static void conn_body_start(struct conn *c, bool body) {
    struct request *r = c->r;
    struct conn_work *w = arena_alloc(&r->arena, sizeof *w);
    c->work = w;
    w->r = r;
    w->left = r->length;
    w->ended = !r->length && !r->is_chunked;
    if (!body) {
        conn_enter(c, CONN_WORK);
        w->last = true;
        conn_submit(c);
        return;
    }
    conn_enter(c, CONN_BODY);
    if (r->route->body == BODY_MEMORY) {
        w->begun = true;
        if (r->route->begin) r->route->begin(r);
        if (!r->status && r->length > MANIFEST_MAX)
            http_fail(r, E_TOO_LARGE, "a manifest has at most 4 MiB");
        if (r->status) conn_answer(c);
        else conn_continue(c);
        if (!c->gone && !r->status) conn_read_body(c);
        return;
    }
    /* A short body comes in one piece with the step that begins. */
    bool whole = r->has_length && r->length <= UPLOAD_CHUNK && !r->expects;
    if (!whole) {
        conn_want(c, false);
        conn_submit(c);
        return;
    }
    w->started = true;
    conn_read_body(c);
}

static void conn_dispatch(struct conn *c) {
    struct request *r = c->r;
    if (!routes_find(r)) {
        conn_answer(c);
        return;
    }
    bool wanted = r->route->body != BODY_NONE;
    bool body = wanted && (r->is_chunked || r->length);
    if (body || r->route->flags & ROUTE_DISK) {
        conn_body_start(c, body);
        return;
    }
    r->route->handler(r);
    conn_answer(c);
}

/* No request could be made of this: one answer, then the end. */
static void conn_refuse(struct conn *c, enum error e) {
    if (!c->r) c->r = conn_request_new(c);
    c->r->keep_alive = false;
    c->r->minor = 1;
    c->r->method = c->r->path = span_of("");
    c->r->is_head = c->r->is_chunked = c->r->has_length = false;
    http_fail(c->r, e, 0);
    conn_answer(c);
}

/* Makes a request of what came first in `s`: how many bytes its head
 * took, 0 where it is not whole, -1 where it was refused. */
static ssize_t conn_take_head(struct conn *c, struct span s) {
    enum error e = E_NONE;
    enum http_result rc = http_head_end(s, &c->scanned, &e);
    if (rc == HTTP_MORE) return 0;
    if (rc == HTTP_OK) {
        size_t n = c->scanned;
        struct request *r = c->r = conn_request_new(c);
        struct span head = {arena_text(&r->arena, (struct span){s.p, n}), n};
        c->scanned = 0;
        c->blank = 0;
        if (http_parse(r, head, &e) == HTTP_OK) return (ssize_t)n;
    }
    c->in.n = 0;
    conn_refuse(c, e);
    return -1;
}

/* Goes on with what is in c->in. */
static void conn_after(struct conn *c) {
    if (conns.draining && !c->in.n) {
        conn_close(c);
        return;
    }
    while (c->in.n >= 2 && !c->scanned && !memcmp(c->in.p, "\r\n", 2)) {
        c->in.n -= 2;                    /* RFC 9112, 2.2 */
        memmove(c->in.p, c->in.p + 2, c->in.n);
        c->blank += 2;
        if (c->blank > HTTP_BLANK_MAX) {
            conn_refuse(c, E_BAD_REQUEST);
            return;
        }
    }
    if (!c->in.n) {
        buf_free(&c->in);
        return;
    }
    if (c->in.n == 1 && *c->in.p == '\r') return;    /* half an empty line */
    ssize_t n = conn_take_head(c, buf_view(&c->in));
    if (n > 0) {
        c->in.n -= (size_t)n;
        memmove(c->in.p, c->in.p + n, c->in.n);
        conn_dispatch(c);
    } else if (!n && c->state == CONN_IDLE) {
        conn_enter(c, CONN_HEAD);
    }
}

/* Pipelined requests, one after the other rather than one in the other. */
static void conn_settle(struct conn *c) {
    while (c->again && !c->gone) {
        c->again = false;
        conn_after(c);
    }
}

static void conn_read_head(struct conn *c) {
    ssize_t k, n = 0;
    do {
        k = recv(c->fd, conns.scratch, CONN_SCRATCH, 0);
    } while (k < 0 && errno == EINTR);
    if (k < 0 && errno == EAGAIN) return;
    if (k <= 0) {
        conn_close(c);
        return;
    }
    struct span s = {conns.scratch, (size_t)k};
    if (!c->in.n && *s.p != '\r') n = conn_take_head(c, s);
    if (n > 0) {
        buf_put(&c->in, s.p + n, s.n - (size_t)n);
        conn_dispatch(c);
    } else if (!n) {
        buf_span(&c->in, s);
        if (c->in.failed) conn_close(c);
        else conn_after(c);
    }
}

/* ---- the loop's turn */

static void conn_expire(struct conn *c) {
    if (c->busy) {
        conn_deadline(c);        /* the disk is slow, not the client */
    } else if (c->state == CONN_HEAD) {
        conn_refuse(c, E_TIMEOUT);
    } else if (c->state == CONN_BODY) {
        conn_body_bad(c, E_TIMEOUT, 0);
    } else {
        if (c->state == CONN_SEND) conn_log(c, "timeout");
        conn_close(c);
    }
    conn_settle(c);
}

static void conn_deadlines(void) {
    if (conns.now_ms < conns.earliest_ms) return;
    uint64_t now = conns.now_ms;
    conns.earliest_ms = UINT64_MAX;
    for (unsigned i = conns.count; i-- > 0;) {
        struct conn *c = conns.all[i];
        if (c->deadline_ms <= now) {
            c->deadline_ms = UINT64_MAX;
            conn_expire(c);
        }
    }
    /* Not before the next scan, however near the next deadline. */
    for (unsigned i = 0; i < conns.count; i++) {
        if (conns.all[i]->deadline_ms < conns.earliest_ms)
            conns.earliest_ms = conns.all[i]->deadline_ms;
    }
    if (conns.earliest_ms < now + CONN_SCAN_MS)
        conns.earliest_ms = now + CONN_SCAN_MS;
}

static void conn_event(struct conn *c, short events) {
    conn_touch(c);
    bool broken = events & (POLLERR | POLLHUP | POLLNVAL);
    if (events & conn_table[c->state].events) {
        conn_table[c->state].on_ready(c);
    } else if (broken && c->busy) {
        conns.polls[c->index].fd = -1;   /* seen when the job is done */
        c->gone = true;
    } else if (broken && c->state == CONN_BODY) {
        c->gone = true;
        conn_abort(c);
    } else if (broken) {
        if (c->state == CONN_SEND) conn_log(c, "aborted");
        conn_close(c);
    }
    conn_settle(c);
}

/* Forgets who was quiet for long, fills active_polls with the rest. */
static void conn_gather(void) {
    unsigned kept = 0;
    for (unsigned i = 0; i < conns.active_count; i++) {
        struct conn *c = conns.active[i];
        if (conns.now_ms - c->active_ms > CONN_ACTIVE_MS) {
            c->listed = false;
            continue;
        }
        conns.active_polls[kept] = conns.polls[c->index];
        conns.active_polls[kept].revents = 0;
        conns.active[kept++] = c;
    }
    conns.active_count = kept;
}

static int conn_poll(struct pollfd *extra, unsigned count, bool all,
                     int wait) {
    /* One array for poll(): the worker's own in front. */
    static struct pollfd *joined;
    static unsigned cap;
    unsigned n = all ? conns.count : conns.active_count;
    if (count + n > cap) {
        cap = 2 * (count + n);
        joined = base_realloc(joined, cap * sizeof *joined);
    }
    memcpy(joined, extra, count * sizeof *joined);
    if (n) memcpy(joined + count, all ? conns.polls : conns.active_polls,
                  n * sizeof *joined);
    int ready = poll(joined, count + n, wait);
    memcpy(extra, joined, count * sizeof *joined);
    struct pollfd *into = all ? conns.polls : conns.active_polls;
    for (unsigned i = 0; i < n; i++) into[i].revents =
        ready > 0 ? joined[count + i].revents : 0;
    return ready;
}

static void conn_serve(bool all) {
    unsigned n = all ? conns.count : conns.active_count;
    /* From the end: closing moves the last one into the gap. An active
     * list is copied by position, and its order survives conn_touch. */
    for (unsigned i = n; i-- > 0;) {
        struct pollfd *p = all ? &conns.polls[i] : &conns.active_polls[i];
        if (!p->revents) continue;
        short events = p->revents;
        p->revents = 0;
        conn_event(all ? conns.all[i] : conns.active[i], events);
    }
}

/* Thousands of idle connections cost the busy ones a fixed share. */
static void conn_pace(uint64_t took_us) {
    uint64_t ms = took_us * CONN_FULL_POLL_SHARE / 1000;
    if (ms < CONN_FULL_POLL_MS) ms = CONN_FULL_POLL_MS;
    if (ms > CONN_FULL_POLL_MAX_MS) ms = CONN_FULL_POLL_MAX_MS;
    conns.full_ms = ms;
}

static void conn_turn(struct conn_extra *extra, unsigned count,
                      uint64_t wait_ms) {
    struct pollfd own[LISTENERS_MAX + 4];
    unsigned n = 0;
    conn_gather();
    uint64_t since = conns.now_ms - conns.polled_ms;
    bool all = !conns.active_count || since >= conns.full_ms;
    uint64_t wait = wait_ms;
    if (conns.earliest_ms <= conns.now_ms) wait = 0;
    else if (conns.earliest_ms - conns.now_ms < wait)
        wait = conns.earliest_ms - conns.now_ms;
    if (!all && wait > conns.full_ms - since) wait = conns.full_ms - since;
    /* Only looks: the few that are active are waited for. */
    if (conns.active_count && all) wait = 0;
    bool full = conn_full();
    if (full && wait > ACCEPT_PAUSE_MS) wait = ACCEPT_PAUSE_MS;
    for (unsigned i = 0; i < count; i++) {
        bool off = extra[i].listener && full;
        own[n++] = (struct pollfd){.fd = off ? -1 : extra[i].fd,
                                   .events = POLLIN};
    }
    int timeout = wait > INT32_MAX ? -1 : (int)wait;
    uint64_t before_us = base_now_us();
    int ready = conn_poll(own, n, all, timeout);
    uint64_t now_us = base_now_us();
    conns.now_ms = now_us / 1000;
    if (all) conns.polled_ms = conns.now_ms;
    if (all && !timeout) conn_pace(now_us - before_us);
    if (ready > 0) {
        conn_serve(all);
        for (unsigned i = 0; i < n; i++) {
            bool off = extra[i].listener && conn_full();
            if (own[i].revents && !off) extra[i].on_ready(extra[i].fd);
        }
    }
    conn_deadlines();
    conn_bury();
}

static void conn_drain(bool idle) {
    char byte;
    conns.draining = true;
    for (unsigned i = conns.count; i-- > 0 && idle;) {
        struct conn *c = conns.all[i];
        if (c->state == CONN_LINGER) conn_close(c);
        else if (c->state != CONN_IDLE) continue;
        /* A request that has arrived is in flight. */
        else if (recv(c->fd, &byte, 1, MSG_PEEK) <= 0) conn_close(c);
    }
}

/* ==== 20. job: short-lived children ======================================
 *
 * prefix: job_   budget: 40
 *
 * What may take long and can wait runs apart, at the lowest priority, and
 * leaves no memory behind.
 */

static int job_start(void (*fn)(const struct conf *),
                     const struct conf *c) {
    pid_t parent = getpid(), pid = fork();
    if (pid) return (int)pid;
    log_forget();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    if (nice(19) < 0) errno = 0;
    fn(c);
    log_flush();
    _exit(0);
}

static void job_sweep(const struct conf *c) {
    store_upload_expire(c->number[CONF_upload_expire]);
}

static struct gc_plan job_plan(const struct conf *c) {
    return (struct gc_plan){.grace_ms = c->number[CONF_gc_grace],
                            .untagged_ms = c->number[CONF_gc_untagged]};
}

static void job_collect(const struct conf *c) {
    struct gc_plan plan = job_plan(c);
    gc_due(&plan);
}

static void job_pool(const struct conf *c) {
    struct gc_stats stats = {0};
    (void)c;
    gc_pool(&stats, false);
}

/* ==== 21. worker: the loop ===============================================
 *
 * prefix: worker_   budget: 120
 */

static struct {
    struct pool_job job;         /* first: writes one index.json */
    char name[NAME_MAX_LEN + 1];
    bool busy;
    char draining;               /* 'S' or 'R', see worker_control */
    uint64_t deadline_ms;
    const struct conf *conf;
} worker;

static void worker_view_run(struct pool_job *job) {
    (void)job;
    store_view_write(worker.name);
}

static void worker_view_done(struct pool_job *job) {
    (void)job;
    worker.busy = false;
}

/* Starts what is due; how long nothing is. */
static uint64_t worker_views(void) {
    uint64_t wait = UINT64_MAX;
    if (worker.busy || !store_view_due(worker.name, false, &wait))
        return wait;
    worker.busy = true;
    worker.job.run = worker_view_run;
    worker.job.done = worker_view_done;
    pool_submit(&worker.job);
    return UINT64_MAX;
}

/* 'S' says stop: what is under way has until the deadline. 'R' says that
 * others took over: nobody is cut off, what is idle has until then. The
 * supervisor's end is ours. */
static void worker_control(int fd) {
    char byte;
    ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) _exit(1);
    if (worker.draining == 'S') return;
    worker.draining = byte;
    worker.deadline_ms = base_now_ms() +
                         worker.conf->number[CONF_stop_timeout];
    conn_drain(byte == 'S');
}

static void worker_pool(int fd) {
    (void)fd;
    pool_finish();
}

static _Noreturn void worker_leave(void) {
    uint64_t wait;
    while (!worker.busy && store_view_due(worker.name, true, &wait))
        store_view_write(worker.name);
    log_flush();
    _exit(0);
}

static _Noreturn void worker_run(const struct worker_start *start) {
    struct conn_extra extra[LISTENERS_MAX + 2];
    unsigned n = 0;
    worker.conf = start->conf;
    conn_setup(start->conf, start->shared, start->slot);
    extra[n++] = (struct conn_extra){start->control, false, worker_control};
    extra[n++] = (struct conn_extra){pool_start(), false, worker_pool};
    for (unsigned i = 0; i < start->listener_count; i++) {
        extra[n++] = (struct conn_extra){start->listeners[i], true,
                                         conn_accept};
    }
    if (!atomic_flag_test_and_set(&start->shared->recovered))
        store_view_recover();
    for (;;) {
        uint64_t wait = worker_views();
        if (log_pending() && wait > 100) wait = 100;
        if (worker.draining && wait > 50) wait = 50;
        conn_turn(extra, n, wait);
        log_flush();
        if (!worker.draining) continue;
        /* The supervisor has closed its own; the port is free with ours. */
        for (; n > 2; n--) close(extra[n - 1].fd);
        bool late = base_now_ms() >= worker.deadline_ms;
        if (late && worker.draining == 'R') conn_drain(true);
        late = late && worker.draining == 'S';
        if ((!conn_count() && !worker.busy) || late) worker_leave();
    }
}

/* ==== 22. supervisor: listeners, workers, signals ========================
 *
 * prefix: supervisor_ listen_   budget: 500
 *
 * Binds every listener once, without SO_REUSEPORT, so that a second dims on
 * a port fails instead of sharing it. Workers inherit them. SIGHUP: new
 * workers with the new configuration, then the old ones drain. SIGTERM and
 * SIGINT: drain and stop; a second one stops at once.
 */

struct supervisor_worker {
    pid_t pid;                   /* 0: none */
    int control;
    uint64_t started_ms, respawn_ms;
    bool draining;               /* not to be replaced */
};

static struct {
    struct conf *conf;
    struct shared *shared;
    int argc;
    char **argv;
    int listeners[LISTENERS_MAX];
    char names[LISTENERS_MAX][160];
    unsigned listener_count;
    struct supervisor_worker workers[2 * WORKERS_LIMIT];
    int signals;
    bool stopping;
    uint64_t deadline_ms;
    uint64_t sweep_ms, collect_ms, pool_ms;    /* when jobs are due */
    pid_t job;
} supervisor;

union listen_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un un;
};

/* How a listener is shown. */
static void listen_name(int fd, char *out, size_t n) {
    union listen_address a = {.any = {.sa_family = AF_UNSPEC}};
    socklen_t len = sizeof a;
    char ip[INET6_ADDRSTRLEN] = "?";
    getsockname(fd, &a.any, &len);
    if (a.any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &a.v4.sin_addr, ip, sizeof ip);
        snprintf(out, n, "http://%s:%u", ip, ntohs(a.v4.sin_port));
    } else if (a.any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &a.v6.sin6_addr, ip, sizeof ip);
        snprintf(out, n, "http://[%s]:%u", ip, ntohs(a.v6.sin6_port));
    } else {
        snprintf(out, n, "unix:%s", a.un.sun_path);
    }
}

static void listen_add(int fd) {
    if (supervisor.listener_count == LISTENERS_MAX)
        base_die(2, "more than %d listeners", LISTENERS_MAX);
    listen_name(fd, supervisor.names[supervisor.listener_count],
                sizeof *supervisor.names);
    supervisor.listeners[supervisor.listener_count++] = fd;
}

/* A bound and listening socket, or -1 with errno. */
static int listen_bind(const union listen_address *a, socklen_t n) {
    int one = 1, family = a->any.sa_family;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    /* Accepted sockets inherit it: one call for all of them. */
    if (family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* The workers of one that was killed may need a moment to die. */
    for (int i = 0; i < 10; i++) {
        if (!bind(fd, &a->any, n) && !listen(fd, 1024)) return fd;
        if (errno != EADDRINUSE) break;
        poll(0, 0, 10);
    }
    int keep = errno;
    close(fd);
    errno = keep;
    return -1;
}

static void listen_unix(const char *path) {
    union listen_address a = {.un = {.sun_family = AF_UNIX}};
    struct stat st;
    memcpy(a.un.sun_path, path, strlen(path));
    /* A socket that nobody answers on was left behind by a crash. */
    if (!stat(path, &st) && S_ISSOCK(st.st_mode)) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, &a.any, sizeof a.un) && errno == ECONNREFUSED)
            unlink(path);
        close(fd);
    }
    int fd = listen_bind(&a, sizeof a.un);
    if (fd < 0)
        base_die(1, "cannot listen on unix:%s: %s", path, strerror(errno));
    listen_add(fd);
}

static socklen_t listen_parse(const char *ip, unsigned port,
                              union listen_address *a) {
    memset(a, 0, sizeof *a);
    if (inet_pton(AF_INET, ip, &a->v4.sin_addr) == 1) {
        a->v4.sin_family = AF_INET;
        a->v4.sin_port = htons((uint16_t)port);
        return sizeof a->v4;
    }
    if (inet_pton(AF_INET6, ip, &a->v6.sin6_addr) == 1) {
        a->v6.sin6_family = AF_INET6;
        a->v6.sin6_port = htons((uint16_t)port);
        return sizeof a->v6;
    }
    return 0;
}

static void listen_ip(const char *ip, unsigned port) {
    union listen_address a;
    socklen_t n = listen_parse(ip, port, &a);
    int fd = listen_bind(&a, n);
    if (fd < 0)
        base_die(1, "cannot listen on %s port %u: %s", ip, port,
                 strerror(errno));
    listen_add(fd);
}

/* Both loopbacks; with port 0 the same free port on each. A box without
 * IPv6 has one. */
static void listen_loopback(unsigned port) {
    union listen_address v4, v6;
    for (int i = 0; i < 32; i++) {
        socklen_t n = listen_parse("127.0.0.1", port, &v4);
        int one = listen_bind(&v4, n);
        if (one < 0)
            base_die(1, "cannot listen on 127.0.0.1 port %u: %s", port,
                     strerror(errno));
        getsockname(one, &v4.any, &n);
        n = listen_parse("::1", ntohs(v4.v4.sin_port), &v6);
        int two = listen_bind(&v6, n);
        bool none = two < 0 && (errno == EADDRNOTAVAIL ||
                                errno == EAFNOSUPPORT);
        if (two >= 0 || none) {
            listen_add(one);
            if (two >= 0) listen_add(two);
            return;
        }
        close(one);
        if (port) break;
    }
    base_die(1, "cannot listen on ::1 port %u: %s", port, strerror(errno));
}

static unsigned listen_port(const struct conf *conf, int index) {
    uint16_t port = 0;
    conf_port_parse(span_of(conf->text[CONF_port][index]), &port);
    return port;
}

static void listen_value(const char *value, const struct conf *conf) {
    struct conf_listen listen;
    conf_listen_parse(value, &listen);
    if (listen.path) listen_unix(listen.path);
    else if (listen.has_port) listen_ip(listen.ip, listen.port);
    for (int i = 0; i < conf->count[CONF_port]; i++) {
        if (listen.path || listen.has_port) break;
        listen_ip(listen.ip, listen_port(conf, i));
    }
}

/* Sockets that systemd has opened (sd_listen_fds(3)). */
static bool listen_inherited(void) {
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    uint64_t id, count;
    int one = 1;
    if (!pid || !fds || codec_number(span_of(pid), &id) ||
        codec_number(span_of(fds), &count)) return false;
    if (id != (uint64_t)getpid() || !count || count > LISTENERS_MAX)
        return false;
    for (int fd = 3; fd < 3 + (int)count; fd++) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        listen_add(fd);
    }
    return true;
}

static void listen_all(const struct conf *conf) {
    if (listen_inherited()) return;
    for (int i = 0; i < conf->count[CONF_listen]; i++)
        listen_value(conf->text[CONF_listen][i], conf);
    if (conf->count[CONF_listen]) return;
    for (int i = 0; i < conf->count[CONF_port]; i++)
        listen_loopback(listen_port(conf, i));
}

/* sd_notify(3): one datagram; nobody listens: nothing happens. */
static void supervisor_notify(const char *state) {
    union listen_address a = {.un = {.sun_family = AF_UNIX}};
    const char *path = getenv("NOTIFY_SOCKET");
    if (!path || strlen(path) >= sizeof a.un.sun_path) return;
    size_t n = strlen(path);
    memcpy(a.un.sun_path, path, n);
    if (*path == '@') a.un.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    sendto(fd, state, strlen(state), MSG_NOSIGNAL, &a.any,
           (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n));
    close(fd);
}

/* --run-as: a folder that is made here belongs to the user. */
static void supervisor_drop(const struct conf *conf) {
    const char *name = conf->text[CONF_run_as][0];
    const char *dir = conf->text[CONF_dir][0];
    struct stat st;
    if (!*name) return;
    struct passwd *user = getpwnam(name);
    if (!user) base_die(2, "run-as: there is no user '%s'", name);
    if (geteuid())
        base_die(1, "run-as: only root can become another user");
    if (stat(dir, &st) && errno == ENOENT) {
        if (mkdir(dir, 0755) || chown(dir, user->pw_uid, user->pw_gid))
            base_die(1, "cannot make %s: %s", dir, strerror(errno));
    }
    if (initgroups(name, user->pw_gid) || setgid(user->pw_gid) ||
        setuid(user->pw_uid) || !setuid(0))
        base_die(1, "run-as: cannot become '%s': %s", name,
                 strerror(errno));
}

static unsigned supervisor_count(const struct conf *conf) {
    uint64_t n = conf->number[CONF_workers];
    cpu_set_t cpus;
    if (n) return (unsigned)n;
    n = sched_getaffinity(0, sizeof cpus, &cpus) ? 1
        : (unsigned)CPU_COUNT(&cpus);
    return n < WORKERS_MIN ? WORKERS_MIN : n > WORKERS_MAX ? WORKERS_MAX
                                                           : (unsigned)n;
}

static void supervisor_child(struct supervisor_worker *w, int control) {
    sigset_t none;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, 0);
    close(supervisor.signals);
    for (unsigned i = 0; i < 2 * WORKERS_LIMIT; i++) {
        struct supervisor_worker *other = &supervisor.workers[i];
        if (other != w && other->pid) close(other->control);
    }
    struct worker_start start = {
        .conf = supervisor.conf, .shared = supervisor.shared,
        .slot = (unsigned)(w - supervisor.workers), .control = control,
        .listeners = supervisor.listeners,
        .listener_count = supervisor.listener_count};
    worker_run(&start);
}

static void supervisor_spawn(struct supervisor_worker *w) {
    int pair[2];
    pid_t parent = getpid();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        base_die(1, "no socket pair: %s", strerror(errno));
    unsigned slot = (unsigned)(w - supervisor.workers);
    if (atomic_load(&supervisor.shared->slots) <= slot)
        atomic_store(&supervisor.shared->slots, slot + 1);
    w->draining = false;
    w->started_ms = base_now_ms();
    w->respawn_ms = UINT64_MAX;
    w->pid = fork();
    if (!w->pid) {
        close(pair[0]);
        log_forget();
        if (getppid() != parent) _exit(1);
        supervisor_child(w, pair[1]);
    }
    close(pair[1]);
    w->control = pair[0];
    if (w->pid > 0) return;
    log_event(LOG_ERROR, "worker.fork", "error", strerror(errno), (char *)0);
    close(pair[0]);
    w->pid = 0;
    w->respawn_ms = w->started_ms + RESPAWN_MS;
}

static void supervisor_drain(struct supervisor_worker *w, const char *how) {
    w->draining = true;
    w->respawn_ms = UINT64_MAX;
    if (w->pid) send(w->control, how, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* A worker has ended; one that was not told to is replaced, one that
 * died young after a while. */
static void supervisor_buried(struct supervisor_worker *w, int status) {
    char pid[24], how[40];
    uint64_t now = base_now_ms();
    struct shared_worker *counts =
        &supervisor.shared->workers[w - supervisor.workers];
    close(w->control);
    snprintf(pid, sizeof pid, "%ld", (long)w->pid);
    w->pid = 0;
    atomic_flag_clear(&supervisor.shared->recovered);
    atomic_store(&counts->connections, 0);
    for (int i = 0; i < ADDRESS_SLOTS; i++) {
        if (atomic_load(&counts->from[i])) atomic_store(&counts->from[i], 0);
    }
    if (w->draining) return;
    bool killed = WIFSIGNALED(status);
    snprintf(how, sizeof how, "%s %d", killed ? "signal" : "exit",
             killed ? WTERMSIG(status) : WEXITSTATUS(status));
    log_event(LOG_ERROR, "worker.died", "#pid", pid, "how", how, (char *)0);
    w->respawn_ms = now - w->started_ms < RESPAWN_MS ? now + RESPAWN_MS
                                                     : now;
}

static void supervisor_reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == supervisor.job) supervisor.job = 0;
        for (unsigned i = 0; i < 2 * WORKERS_LIMIT; i++) {
            if (supervisor.workers[i].pid == pid)
                supervisor_buried(&supervisor.workers[i], status);
        }
    }
}

static void supervisor_stop(void) {
    bool again = supervisor.stopping;
    supervisor.stopping = true;
    supervisor_notify("STOPPING=1");
    supervisor.deadline_ms = base_now_ms() + 1000 +
        (again ? 0 : supervisor.conf->number[CONF_stop_timeout]);
    for (unsigned i = 0; i < supervisor.listener_count; i++) {
        bool path = !strncmp(supervisor.names[i], "unix:", 5);
        if (path && !again && !getenv("LISTEN_FDS"))
            unlink(supervisor.names[i] + 5);
        close(supervisor.listeners[i]);
    }
    supervisor.listener_count = 0;
    for (unsigned i = 0; i < 2 * WORKERS_LIMIT; i++) {
        struct supervisor_worker *w = &supervisor.workers[i];
        if (again && w->pid) kill(w->pid, SIGKILL);
        supervisor_drain(w, "S");
    }
}

static void supervisor_apply(struct conf *conf) {
    struct store_limits limits = {
        .max_blob = conf->number[CONF_max_blob],
        .min_free = conf->number[CONF_min_free],
        .max_uploads = conf->number[CONF_max_uploads],
        .gc_grace_ms = (int64_t)conf->number[CONF_gc_grace]};
    log_init((enum log_level)conf->number[CONF_log_level],
             conf->number[CONF_log_format] == 1);
    store_set_limits(&limits);
}

/* Options that only a restart can change, and were changed. */
static void supervisor_compare(const struct conf *conf) {
    static const enum conf_option fixed[] = {CONF_port, CONF_listen,
                                             CONF_run_as};
    static const char *const names[] = {"port", "listen", "run-as"};
    for (int i = 0; i < 3; i++) {
        enum conf_option o = fixed[i];
        bool same = conf->count[o] == supervisor.conf->count[o];
        for (int k = 0; same && k < conf->count[o]; k++)
            same = !strcmp(conf->text[o][k], supervisor.conf->text[o][k]);
        if (!same) log_event(LOG_WARN, "config.restart", "option", names[i],
                             "why", "takes effect at the next start",
                             (char *)0);
    }
}

/* SIGHUP: a configuration that is bad, or wants another folder, changes
 * nothing. Listeners stay as they are until a restart. */
static unsigned supervisor_free_slots(void) {
    unsigned n = 0;
    for (unsigned i = 0; i < 2 * WORKERS_LIMIT; i++) {
        const struct supervisor_worker *w = &supervisor.workers[i];
        n += !w->pid && w->respawn_ms == UINT64_MAX;
    }
    return n;
}

static void supervisor_reload(void) {
    if (supervisor.stopping) return;
    struct conf *conf = base_alloc(sizeof *conf);
    struct buf err;
    unsigned fresh = 0;
    buf_init(&err, 0, 4 << 10);
    int rc = conf_load(conf, supervisor.argc, supervisor.argv, &err);
    if (!rc && strcmp(conf->text[CONF_dir][0],
                      supervisor.conf->text[CONF_dir][0])) {
        buf_text(&err, "dir cannot change without a restart");
        rc = -1;
    }
    if (!rc && supervisor_free_slots() < supervisor_count(conf)) {
        buf_text(&err, "workers of earlier reloads still have requests");
        rc = -1;
    }
    buf_put(&err, "", 1);
    if (rc) {
        log_event(LOG_ERROR, "config.bad", "error", err.p, (char *)0);
        buf_free(&err);
        conf_free(conf);
        free(conf);
        return;
    }
    buf_free(&err);
    supervisor_compare(conf);
    conf_free(supervisor.conf);
    *supervisor.conf = *conf;
    free(conf);
    supervisor_apply(supervisor.conf);
    log_event(LOG_INFO, "config.loaded", (char *)0);
    unsigned want = supervisor_count(supervisor.conf);
    for (unsigned i = 0; i < 2 * WORKERS_LIMIT; i++) {
        struct supervisor_worker *w = &supervisor.workers[i];
        if (w->pid || w->respawn_ms != UINT64_MAX) supervisor_drain(w, "R");
        else if (fresh < want && ++fresh) supervisor_spawn(w);
    }
}

static void supervisor_signal(void) {
    struct signalfd_siginfo info;
    while (read(supervisor.signals, &info, sizeof info) == sizeof info) {
        switch (info.ssi_signo) {
        case SIGCHLD: supervisor_reap(); break;
        case SIGHUP: supervisor_reload(); break;
        default: supervisor_stop();
        }
    }
}

/* Starts the job that is due, one at a time; when the next one is. */
static uint64_t supervisor_jobs(uint64_t now) {
    const struct conf *conf = supervisor.conf;
    if (conf->number[CONF_read_only]) return UINT64_MAX;
    if (supervisor.job > 0) return now + GC_POLL_MS;
    if (now >= supervisor.sweep_ms) {
        uint64_t every = conf->number[CONF_upload_expire] / 4;
        if (every < JOB_MIN_MS) every = JOB_MIN_MS;
        if (every > JOB_MAX_MS) every = JOB_MAX_MS;
        supervisor.sweep_ms = now + every;
        supervisor.job = job_start(job_sweep, conf);
    } else if (now >= supervisor.pool_ms) {
        supervisor.pool_ms = now + GC_POOL_MS;
        supervisor.job = job_start(job_pool, conf);
    } else if (now >= supervisor.collect_ms) {
        supervisor.collect_ms = now + GC_POLL_MS;
        if (gc_is_due()) supervisor.job = job_start(job_collect, conf);
    }
    if (supervisor.job > 0) return now + GC_POLL_MS;
    return supervisor.collect_ms < supervisor.sweep_ms
         ? supervisor.collect_ms : supervisor.sweep_ms;
}

/* What time asks for; ms until it asks again. */
static uint64_t supervisor_timers(unsigned *alive) {
    uint64_t now = base_now_ms(), next = UINT64_MAX;
    *alive = 0;
    for (unsigned i = 0; i < 2 * WORKERS_LIMIT; i++) {
        struct supervisor_worker *w = &supervisor.workers[i];
        if (!w->pid && w->respawn_ms <= now && !supervisor.stopping)
            supervisor_spawn(w);
        if (w->pid && supervisor.stopping && now >= supervisor.deadline_ms)
            kill(w->pid, SIGKILL);
        if (w->pid) ++*alive;
        if (!w->pid && w->respawn_ms < next) next = w->respawn_ms;
    }
    if (supervisor.stopping) return 50;
    uint64_t jobs = supervisor_jobs(now);
    if (jobs < next) next = jobs;
    return next > now ? next - now : 1;
}

static void supervisor_loop(void) {
    struct pollfd p = {.fd = supervisor.signals, .events = POLLIN};
    unsigned alive;
    for (;;) {
        uint64_t wait = supervisor_timers(&alive);
        if (supervisor.stopping && !alive) return;
        log_flush();
        if (log_pending() && wait > 100) wait = 100;
        poll(&p, 1, wait > INT32_MAX ? INT32_MAX : (int)wait);
        supervisor_signal();
    }
}

/* The ready lines; to a person also how to push. */
static void supervisor_hello(void) {
    for (unsigned i = 0; i < supervisor.listener_count; i++)
        printf("dims %s listening on %s\n", DIMS_VERSION,
               supervisor.names[i]);
    const char *first = supervisor.names[0];
    if (isatty(STDOUT_FILENO) && !strncmp(first, "http://", 7)) {
        const char *port = strrchr(first, ':');
        printf("push an image:  docker tag IMAGE localhost%s/NAME\n"
               "                docker push localhost%s/NAME\n", port, port);
    }
    fflush(stdout);
}

static void supervisor_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, 0);
    signal(SIGPIPE, SIG_IGN);
    supervisor.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (supervisor.signals < 0)
        base_die(1, "no signalfd: %s", strerror(errno));
}

static int supervisor_run(struct conf *conf, int argc, char **argv) {
    struct rlimit files;
    supervisor.conf = conf;
    supervisor.argc = argc;
    supervisor.argv = argv;
    supervisor.shared = mmap(0, sizeof *supervisor.shared,
                             PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (supervisor.shared == MAP_FAILED) base_die(1, "no shared memory");
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    digest_setup();
    supervisor_apply(conf);
    listen_all(conf);
    supervisor_drop(conf);
    store_setup(conf->text[CONF_dir][0], supervisor.shared);
    store_upload_count();
    gc_restore();
    supervisor_signals();
    for (unsigned i = 0; i < 2 * WORKERS_LIMIT; i++)
        supervisor.workers[i].respawn_ms = UINT64_MAX;
    unsigned count = supervisor_count(conf);
    for (unsigned i = 0; i < count; i++)
        supervisor_spawn(&supervisor.workers[i]);
    supervisor_hello();
    supervisor_notify("READY=1");
    log_event(LOG_DEBUG, "server.ready", "dir", conf->text[CONF_dir][0],
              (char *)0);
    supervisor_loop();
    if (supervisor.job > 0) kill(supervisor.job, SIGKILL);
    log_flush();
    return 0;
}

/* ==== 23. cli: what a person types =======================================
 *
 * prefix: cli_   budget: 160
 */

static int cli_print(const struct buf *text) {
    fwrite(text->p, 1, text->n, stdout);
    return fflush(stdout) ? 1 : 0;
}

static void cli_load(struct conf *conf, int argc, char **argv) {
    struct buf err;
    buf_init(&err, 0, 64 << 10);
    if (conf_load(conf, argc, argv, &err)) {
        buf_put(&err, "", 1);
        base_die(2, "%s", err.p);
    }
    buf_free(&err);
}

static int cli_serve(int argc, char **argv) {
    struct conf conf;
    cli_load(&conf, argc, argv);
    int rc = supervisor_run(&conf, argc, argv);
    conf_free(&conf);
    return rc;
}

/* Root works as the folder's owner: what it writes is the server's. */
static void cli_become(const char *dir) {
    struct stat st;
    if (geteuid() || stat(dir, &st) || !st.st_uid) return;
    if (setgroups(0, 0) || setgid(st.st_gid) || setuid(st.st_uid))
        base_die(1, "cannot become the owner of %s: %s", dir,
                 strerror(errno));
}

/* Takes the command's name, and its flag where it is given, out of the
 * arguments; the rest are options as the server has them. */
static bool cli_command(struct conf *conf, int argc, char **argv,
                        const char *flag) {
    char **rest = base_alloc((size_t)argc * sizeof *rest);
    int n = 0;
    bool given = false;
    for (int i = 0; i < argc; i++) {
        bool is_flag = !strcmp(argv[i], flag);
        given = given || is_flag;
        if (i != 1 && !is_flag) rest[n++] = argv[i];
    }
    cli_load(conf, n, rest);
    free(rest);
    log_init((enum log_level)conf->number[CONF_log_level],
             conf->number[CONF_log_format] == 1);
    digest_setup();
    cli_become(conf->text[CONF_dir][0]);
    fs_enter_root(conf->text[CONF_dir][0]);
    return given;
}

static int cli_gc(int argc, char **argv) {
    struct conf conf;
    struct gc_stats stats = {0};
    struct list repos = {.max = 0};
    struct arena a = {0};
    bool dry = cli_command(&conf, argc, argv, "--dry-run");
    struct gc_plan plan = job_plan(&conf);
    int rc = 0;
    plan.dry_run = dry;
    while (store_repo_page(&repos, &a)) {
        for (size_t i = 0; i < repos.count; i++)
            if (gc_repository(repos.names[i].p, &plan, &stats)) rc = 1;
    }
    gc_pool(&stats, dry);
    log_flush();
    printf("%llu repositories, %llu manifests; %s %llu untagged manifests "
           "and %llu blobs, %llu bytes\n",
           (unsigned long long)stats.repositories,
           (unsigned long long)stats.manifests,
           dry ? "would remove" : "removed",
           (unsigned long long)stats.untagged,
           (unsigned long long)stats.blobs,
           (unsigned long long)stats.bytes);
    arena_free(&a);
    conf_free(&conf);
    return fflush(stdout) ? 1 : rc;
}

static void cli_fsck_tell(const char *what, const char *path) {
    if (isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
    printf("%s: %s\n", what, path);
}

static void cli_fsck_progress(const struct fsck_counts *counts) {
    static uint64_t shown_ms;
    uint64_t now = base_now_ms();
    if (now - shown_ms < 200 || !isatty(STDERR_FILENO)) return;
    shown_ms = now;
    fprintf(stderr, "\r%llu blobs, %llu MB\033[K",
            (unsigned long long)counts->blobs,
            (unsigned long long)counts->bytes / 1000000);
}

static int cli_fsck(int argc, char **argv) {
    static const struct fsck_report report = {cli_fsck_tell,
                                              cli_fsck_progress};
    struct conf conf;
    struct fsck_counts n = {0};
    bool repair = cli_command(&conf, argc, argv, "--repair");
    fsck_run(repair, &report, &n);
    if (isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
    log_flush();
    printf("%llu repositories, %llu manifests, %llu blobs, %llu bytes read: "
           "%llu damaged, %llu repaired, %llu broken, %llu missing, "
           "%llu foreign\n",
           (unsigned long long)n.repositories,
           (unsigned long long)n.manifests, (unsigned long long)n.blobs,
           (unsigned long long)n.bytes, (unsigned long long)n.damaged,
           (unsigned long long)n.repaired, (unsigned long long)n.broken,
           (unsigned long long)n.missing, (unsigned long long)n.foreign);
    conf_free(&conf);
    return fflush(stdout) || n.damaged > n.repaired || n.broken ? 1 : 0;
}

static int cli_run(int argc, char **argv) {
    struct buf text;
    bool help = conf_wants(argc, argv, "--help") ||
                conf_wants(argc, argv, "-h");
    if (!help && !conf_wants(argc, argv, "--version")) {
        const char *command = argc > 1 ? argv[1] : "";
        if (!strcmp(command, "gc")) return cli_gc(argc, argv);
        if (!strcmp(command, "fsck")) return cli_fsck(argc, argv);
        return cli_serve(argc, argv);
    }
    buf_init(&text, 0, 64 << 10);
    if (help) conf_help(&text);
    else buf_text(&text, "dims " DIMS_VERSION "\n");
    int rc = cli_print(&text);
    buf_free(&text);
    return rc;
}

/* ==== 24. main: the door =================================================
 *
 * prefix: main   budget: 10
 */

#ifndef DIMS_TEST
int main(int argc, char **argv) {
    return cli_run(argc, argv);
}
#endif

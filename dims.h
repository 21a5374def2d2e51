/* dims.h: the table of contents of dims.c.
 *
 * First the limits and the tables (options, errors, headers), then the few
 * structs that rooms share, then each room's public functions under its
 * number. A contract stands here and is not repeated at the definition:
 * result, ownership, errors, units. Everything is static: dims is one
 * translation unit, and a test includes dims.c as it is.
 *
 * Conventions: 0 is success; -1 is failure with errno kept; functions of
 * `store` return 0 or an `enum error`. `_ms` and `_us` are milli- and
 * microseconds, monotonic unless the name says wall. A `struct span` borrows.
 */
#ifndef DIMS_H
#define DIMS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>

#ifndef DIMS_VERSION
#define DIMS_VERSION "0.1.0"
#endif

/* ---- 0. limits, tables and shared structs ------------------------------- */

/* Every size, count, depth and time that a client or a file can drive. */
enum {
    HTTP_HEAD_MAX = 32 << 10,       /* request line and headers, bytes */
    HTTP_BLANK_MAX = 16,            /* empty lines before a request, bytes */
    HTTP_HEADERS_MAX = 100,         /* header fields a request */
    HTTP_CHUNK_LINE_MAX = 1 << 10,  /* a chunk's size line with extensions */
    HTTP_TRAILER_MAX = 8 << 10,     /* trailer section after the last chunk */
    HTTP_RANGES_MAX = 1024,         /* ranges in one Range header */
    HTTP_DRAIN_MAX = 64 << 10,      /* unread body that is worth keep-alive */
    HTTP_LINGER_MAX = 256 << 20,    /* bytes read away after an early answer */
    CONN_IN_MIN = 512,              /* first buffer of an incomplete head */
    CONN_SCRATCH = 64 << 10,        /* a worker's receive buffer */
    CONN_SEND_TURN = 256 << 10,     /* sendfile bytes a turn */
    CONN_ACTIVE_MS = 100,           /* after this a connection is idle */
    CONN_FULL_POLL_MS = 4,          /* all are polled at most this often, */
    CONN_FULL_POLL_MAX_MS = 25,     /* at least this often, between: */
    CONN_FULL_POLL_SHARE = 20,      /* for one part in so many of the time */
    CONN_HEAD_MS = 20 * 1000,       /* to send a whole head */
    CONN_IDLE_MS = 120 * 1000,      /* keep-alive between requests */
    CONN_BODY_MS = 60 * 1000,       /* without one byte of a body */
    CONN_SEND_MS = 60 * 1000,       /* without one byte taken */
    CONN_LINGER_MS = 30 * 1000,     /* an early answer may be read this long */
    CONN_SCAN_MS = 250,             /* deadlines are looked at this often */
    REQUEST_SPARE_MAX = 32,         /* request structs a worker keeps */
    MANIFEST_MAX = 4 << 20,         /* bytes of a manifest */
    MANIFEST_TAGS_MAX = 32,         /* ?tag= parameters in one request */
    MEMO_SLOTS = 128,               /* manifests that a worker remembers */
    MEMO_ANSWER_MAX = 4 << 10,      /* bytes of one, with its headers */
    MEMO_AGE_MS = 20,               /* files younger than this are not */
    BODY_MEMORY_MAX = 64 << 20,     /* buffered bodies of one worker, bytes */
    REFERRERS_PAGE = 512 << 10,     /* bytes of one page of referrers */
    DESCRIPTOR_MAX = 256 << 10,     /* a referrer's descriptor, bytes */
    LIST_PAGE_MAX = 100000,         /* names in one answer */
    UPLOAD_CHUNK = 256 << 10,       /* two of these an upload */
    UPLOAD_SPARE_MAX = 8,           /* chunks that a worker keeps */
    UPLOAD_CHUNKS_MAX = 256,        /* chunks of one worker at a time */
    UPLOAD_FLUSH = 8 << 20,         /* write-back is started this often */
    NAME_MAX_LEN = 255,             /* a repository's whole name */
    TAG_MAX_LEN = 128,
    MEDIA_TYPE_MAX = 255,
    DIGEST_TEXT_MAX = 7 + 128 + 1,  /* "sha512:" and 128 hex digits, NUL */
    UPLOAD_ID_LEN = 1 + 16 + 32,    /* algorithm, repository, random */
    PATH_MAX_LEN = 768,             /* a path below DIR */
    JSON_DEPTH_MAX = 128,
    ARENA_CHUNK = 4 << 10,
    LOG_RING = 64 << 10,
    LOG_LINE_MAX = 4 << 10,
    POOL_THREADS = 4,
    POOL_STACK = 128 << 10,
    WORKERS_MIN = 2,
    WORKERS_MAX = 8,                /* chosen by itself; --workers may say 64 */
    WORKERS_LIMIT = 64,
    ADDRESS_SLOTS = 1024,           /* two addresses in one share a limit */
    DESCRIPTORS_KEPT = 32,          /* a worker's own, with its threads' */
    DESCRIPTORS_MAX = 1 << 20,
    ACCEPT_PAUSE_MS = 100,          /* when descriptors have run out */
    LISTENERS_MAX = 16,
    CONF_LIST_MAX = 64,             /* values of a repeatable option */
    CONF_FILE_MAX = 256 << 10,
    VIEW_DELAY_MS = 2000,           /* index.json follows a change by this */
    VIEW_PENDING_MAX = 256,         /* repositories a worker remembers */
    REPO_WINDOW = 4096,             /* folder entries looked at together */
    REPO_SEEN = 1024,               /* repositories known to be on the disk */
    SMALL_FILE_MAX = 4 << 10,       /* a tag file, a record, an upload state */
    RESPAWN_MS = 1000,              /* a worker that died young waits */
    GC_BATCH = 1024,                /* blobs that go under one lock */
    GC_RETRY_MS = 60 * 1000,        /* after a collection that failed */
    GC_POLL_MS = 1000,              /* how often markers are looked at */
    GC_POOL_MS = 24 * 3600 * 1000,  /* between two looks at the pool */
    JOB_MIN_MS = 500,               /* between two sweeps of the uploads */
    JOB_MAX_MS = 10 * 60 * 1000
};

/* code, HTTP status, OCI code, what it says unless told better
 * (distribution-spec, "Error Codes"). */
#define ERRORS(X) \
    X(NONE, 200, "", "") \
    X(BAD_REQUEST, 400, "UNSUPPORTED", "bad request") \
    X(DIGEST_INVALID, 400, "DIGEST_INVALID", \
      "the digest is not the content's") \
    X(DIGEST_BAD, 400, "DIGEST_INVALID", "not a digest") \
    X(DIGEST_ALGO, 400, "DIGEST_INVALID", \
      "only sha256 and sha512 are supported") \
    X(NAME_INVALID, 400, "NAME_INVALID", "not a repository's name") \
    X(TAG_INVALID, 400, "MANIFEST_INVALID", "not a tag") \
    X(SIZE_INVALID, 400, "SIZE_INVALID", "the length is wrong") \
    X(MANIFEST_INVALID, 400, "MANIFEST_INVALID", "not a manifest") \
    X(PAGE_INVALID, 400, "PAGINATION_NUMBER_INVALID", \
      "n is not a number of entries") \
    X(ORIGIN, 403, "DENIED", "a page of another origin may not change this") \
    X(NOT_FOUND, 404, "NAME_UNKNOWN", "there is nothing here") \
    X(NAME_UNKNOWN, 404, "NAME_UNKNOWN", "no such repository") \
    X(BLOB_UNKNOWN, 404, "BLOB_UNKNOWN", "no such blob") \
    X(MANIFEST_UNKNOWN, 404, "MANIFEST_UNKNOWN", "no such manifest") \
    X(UPLOAD_UNKNOWN, 404, "BLOB_UPLOAD_UNKNOWN", "no such upload") \
    X(METHOD, 405, "UNSUPPORTED", "not a method for this") \
    X(READ_ONLY, 405, "UNSUPPORTED", "this server is read-only") \
    X(TIMEOUT, 408, "UNSUPPORTED", "nothing came for too long") \
    X(UPLOAD_BUSY, 409, "BLOB_UPLOAD_INVALID", \
      "another request is using this upload") \
    X(LENGTH_REQUIRED, 411, "SIZE_INVALID", "a length is needed") \
    X(TOO_LARGE, 413, "SIZE_INVALID", "too large") \
    X(URI_LONG, 414, "UNSUPPORTED", "the request target is too long") \
    X(RANGE, 416, "BLOB_UPLOAD_INVALID", "the range does not fit") \
    X(EXPECT, 417, "UNSUPPORTED", "only 100-continue can be expected") \
    X(HEAD_LARGE, 431, "UNSUPPORTED", "the headers are too large") \
    X(STORAGE, 500, "UNKNOWN", "the storage failed") \
    X(NOT_IMPLEMENTED, 501, "UNSUPPORTED", "not implemented") \
    X(BUSY, 503, "TOOMANYREQUESTS", "too busy, try again") \
    X(VERSION, 505, "UNSUPPORTED", "only HTTP/1.0 and HTTP/1.1") \
    X(FULL, 507, "DENIED", "no room on the disk")

enum error {
#define X(name, status, code, text) E_##name,
    ERRORS(X)
#undef X
    E_COUNT
};

/* Request headers that dims reads, by their name in lower case. */
#define HEADERS(X) \
    X(HOST, "host") \
    X(CONNECTION, "connection") \
    X(CONTENT_LENGTH, "content-length") \
    X(CONTENT_RANGE, "content-range") \
    X(CONTENT_TYPE, "content-type") \
    X(TRANSFER_ENCODING, "transfer-encoding") \
    X(EXPECT, "expect") \
    X(RANGE, "range") \
    X(IF_RANGE, "if-range") \
    X(IF_NONE_MATCH, "if-none-match") \
    X(ORIGIN, "origin") \
    X(USER_AGENT, "user-agent")

enum header {
#define X(name, text) HEADER_##name,
    HEADERS(X)
#undef X
    HEADER_COUNT
};

/* name, letter, argument, type, default, help. The flag is the name with
 * dashes, the config key is the same, the variable DIMS_NAME. */
#define CONF_OPTIONS(X) \
    X(port, 'p', "N", PORT, "", \
      "port, repeatable; 0 picks a free one; default $PORT, else 8000") \
    X(listen, 0, "ADDR", LISTEN, "", \
      "address, ADDR:PORT, [V6]:PORT or unix:PATH, repeatable; " \
      "default: both loopbacks") \
    X(dir, 'd', "DIR", TEXT, "./dims-data", \
      "where everything is kept") \
    X(workers, 0, "N", NUMBER(64), "0", \
      "worker processes; 0: as many as CPUs, 2 to 8") \
    X(max_blob, 0, "SIZE", SIZE, "0", \
      "largest blob; 0: no limit") \
    X(min_free, 0, "SIZE", SIZE, "64M", \
      "free disk below which uploads are refused") \
    X(max_uploads, 0, "SIZE", SIZE, "0", \
      "bytes that all unfinished uploads may hold; 0: no limit") \
    X(upload_expire, 0, "SPAN", SPAN, "24h", \
      "an upload without news for so long is removed") \
    X(gc_grace, 0, "SPAN", SPAN, "1h", \
      "blobs that no manifest names are kept for so long") \
    X(gc_untagged, 0, "SPAN", SPAN, "0", \
      "untagged manifests older than this are removed; 0: never") \
    X(max_connections, 0, "N", NUMBER(1000000), "10000", \
      "open connections; 0: as many as there are descriptors") \
    X(max_per_address, 0, "N", NUMBER(65535), "0", \
      "open connections from one address; 0: no limit") \
    X(read_only, 0, 0, BOOL, "off", \
      "serve, change nothing") \
    X(cors, 0, "on|off", BOOL, "on", \
      "let web pages of other origins read the API") \
    X(stop_timeout, 0, "SPAN", SPAN, "10s", \
      "how long requests may take to finish at a stop") \
    X(run_as, 0, "USER", TEXT, "", \
      "become this user once the ports are open") \
    X(log_level, 0, "LEVEL", CHOICE("error|warn|info|debug"), "info", \
      "error, warn, info (a line a request) or debug") \
    X(log_format, 0, "FORMAT", CHOICE("plain|json"), "plain", \
      "plain or json")

enum conf_option {
#define X(name, letter, arg, type, value, help) CONF_##name,
    CONF_OPTIONS(X)
#undef X
    CONF_COUNT
};

/* Borrowed bytes: never freed, not terminated. */
struct span {
    const char *p;
    size_t n;
};

/* One request's memory; everything in it goes at once. */
struct arena {
    struct arena_chunk *top;
    size_t total;
};

/* Bytes that grow: on the heap, or in `arena` where that is set. Past `max`
 * `failed` sticks and later calls change nothing. */
struct buf {
    char *p;
    size_t n, cap, max;
    struct arena *arena;
    bool failed;
};

enum digest_algo { DIGEST_SHA256, DIGEST_SHA512, DIGEST_ALGOS };

/* A digest as it is written: algorithm and lower-case hex. */
struct digest {
    enum digest_algo algo;
    char hex[129];
};

/* A hash under way. The state is portable: every backend goes on from it. */
struct digest_ctx {
    enum digest_algo algo;
    uint64_t total;
    union {
        uint32_t w32[8];
        uint64_t w64[8];
    } h;
    uint8_t block[128];
};

/* What a worker counts for all; wiped by the supervisor when it ends. */
struct shared_worker {
    atomic_uint connections;
    atomic_ushort from[ADDRESS_SLOTS];   /* by the address's hash */
};

/* What all processes share: atomics, never a lock. */
struct shared {
    atomic_llong upload_bytes;  /* held by unfinished uploads */
    atomic_ullong requests;
    atomic_flag recovered;      /* somebody took up what a crash left */
    atomic_uint slots;          /* of the workers below, used so far */
    struct shared_worker workers[2 * WORKERS_LIMIT];
};

struct conf {
    /* Values as they were given, the winner's; [0] for single ones. */
    char *text[CONF_COUNT][CONF_LIST_MAX];
    int count[CONF_COUNT];
    uint64_t number[CONF_COUNT];  /* NUMBER, SIZE in bytes, SPAN in ms, BOOL */
    const char *file;             /* config file that was read, or 0 */
};

/* A path below DIR. */
struct path {
    char s[PATH_MAX_LEN];
};

enum pool_state { POOL_FREE, POOL_QUEUED };

/* Work for a disk thread. `run` happens there, then `done` in the loop. */
struct pool_job {
    void (*run)(struct pool_job *job);
    void (*done)(struct pool_job *job);
    struct pool_job *next;
    enum pool_state state;
};

/* A piece of an answer: memory, or bytes of the request's file. */
struct seg {
    const char *p;     /* 0: from the file */
    uint64_t off, len;
};

/* An upload under way. Owned by one request at a time, by flock. */
struct upload {
    int fd;                     /* -1: none open */
    bool hashed;                /* `hash` covers all `size` bytes */
    uint64_t size, flushed;
    uint64_t saved;             /* what the state on the disk covers */
    struct digest_ctx hash;
    char id[UPLOAD_ID_LEN + 1];
};

/* A descriptor of the worker's own in the loop. */
struct conn_extra {
    int fd;
    bool listener;              /* left alone while there is no room */
    void (*on_ready)(int fd);
};

struct request;

enum body_policy { BODY_NONE, BODY_MEMORY, BODY_UPLOAD };

enum route_flag {
    ROUTE_DISK = 1,    /* the handler runs in a disk thread */
    ROUTE_WRITE = 2,   /* changes something */
    ROUTE_V2 = 4,      /* carries Docker-Distribution-API-Version */
    ROUTE_CORS = 8     /* pages of other origins may read it */
};

/* One row: method, pattern, what happens. <name> takes any number of path
 * components, <ref>, <digest> and <id> one. `begin` runs before a body. */
struct route {
    const char *method;
    const char *pattern;
    void (*handler)(struct request *r);
    void (*begin)(struct request *r);
    unsigned flags;
    enum body_policy body;
};

enum chunk_state {
    CHUNK_SIZE, CHUNK_DATA, CHUNK_DATA_END, CHUNK_TRAILER, CHUNK_DONE
};

/* The decoder of Transfer-Encoding: chunked (RFC 9112, 7.1). */
struct chunked {
    enum chunk_state state;
    uint64_t left;
    size_t line;      /* bytes of the current line, all of a trailer */
    bool digits, ext, cr, blank;
};

/* One request. Zeroed whole when it starts; everything it points to is in
 * its arena, but for the file, the upload and the body. */
struct request {
    struct arena arena;
    /* the head */
    struct span method, target, path, query;
    struct span header[HEADER_COUNT];
    int minor;                    /* HTTP/1.minor */
    bool has_length, is_chunked, expects, keep_alive, is_head, closes;
    uint64_t length;              /* of the body, where has_length */
    /* the route */
    const struct route *route;
    char name[NAME_MAX_LEN + 1];  /* checked by the grammar */
    struct span ref;              /* tag, digest or upload id, decoded */
    const struct conf *conf;
    /* the body */
    struct buf body;              /* BODY_MEMORY */
    struct upload upload;         /* BODY_UPLOAD */
    /* the answer */
    int status;                   /* 0: none yet */
    enum error error;
    struct buf head;
    struct seg *segs;
    unsigned seg_count;
    int file;                     /* -1: none; closed with the request */
    bool (*produce)(struct request *r, struct buf *out);  /* more to come? */
    void *produce_state;
    /* bookkeeping */
    struct conn *conn;
    struct request *next;
    uint64_t start_us, sent;
    bool logged;
    char who[NAME_MAX_LEN + 1];
};

/* ---- 1. base: time, chance, memory, the end ----------------------------- */

/* Prints one line and leaves with `code`: 2 for usage, 1 for the rest. */
static _Noreturn void base_die(int code, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Zeroed memory, never 0: out of memory ends the process, so every size
 * that a client drives is capped before. */
static void *base_alloc(size_t n);
static void *base_realloc(void *p, size_t n);
static uint64_t base_now_ms(void);
static uint64_t base_now_us(void);
static int64_t base_wall_ms(void);
/* How many descriptors this process may open: at least 64. */
static unsigned base_descriptors(void);
static void base_random(void *p, size_t n);
/* A file outside DIR, up to cap-1 bytes, terminated: their number or -1;
 * EFBIG where it has more. */
static ssize_t base_read_file(const char *name, char *out, size_t cap);

/* ---- 2. text: borrowed spans, owned buffers, an arena, paths ------------ */

static struct span span_of(const char *s);
static bool span_is(struct span s, const char *text);
static bool span_is_nocase(struct span s, const char *text);
static bool span_starts(struct span s, const char *text);
static int span_compare(struct span a, struct span b);
/* Cuts up to the first `c` off `s`; the whole where there is none. */
static struct span span_cut(struct span *s, char c);
static struct span span_trim(struct span s);
/* Zeroed, aligned to 16, gone with arena_reset. */
static void *arena_alloc(struct arena *a, size_t n);
/* A terminated copy. */
static char *arena_text(struct arena *a, struct span s);
static void arena_reset(struct arena *a);
static void arena_free(struct arena *a);
static void buf_init(struct buf *b, struct arena *a, size_t max);
static void buf_free(struct buf *b);
static bool buf_reserve(struct buf *b, size_t n);
static void buf_put(struct buf *b, const void *p, size_t n);
static void buf_text(struct buf *b, const char *s);
static void buf_span(struct buf *b, struct span s);
static void buf_number(struct buf *b, uint64_t n);
static void buf_printf(struct buf *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static struct span buf_view(const struct buf *b);
/* Joins strings up to a 0; `s` is empty where they do not fit. */
static void path_join(struct path *p, const char *first, ...)
    __attribute__((sentinel));

/* ---- 3. codec: hex, numbers, percent, time, JSON strings ---------------- */

static void codec_hex(char *out, const uint8_t *p, size_t n);
/* 0 to 15, or -1. */
static int codec_nibble(char c);
static int codec_unhex(uint8_t *out, struct span s);
/* Digits only, the whole span, no overflow. */
static int codec_number(struct span s, uint64_t *out);
/* "64M", "10G", "123"; K M G T are powers of 1024. */
static int codec_size(struct span s, uint64_t *out);
/* "500ms", "10s", "5m", "24h", "7d" in ms; a bare number is seconds. */
static int codec_duration(struct span s, uint64_t *out);
/* %XX decoded into `out` (at least s.n bytes); -1 on a bad or NUL escape. */
static int codec_percent(struct span s, char *out, size_t *n);
static void codec_put_percent(struct buf *b, struct span s);
static void codec_put_json(struct buf *b, struct span s);
/* RFC 3339 in UTC with ms, 24 characters and NUL. */
static void codec_time(char out[25], int64_t wall_ms);
/* IMF-fixdate (RFC 9110, 5.6.7), 29 characters and NUL. */
static void codec_http_date(char out[30], int64_t wall_ms);
static size_t codec_utf8(const char *p, size_t n);

/* ---- 4. log: tagged lines through a bounded ring ------------------------ */

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

static void log_init(enum log_level level, bool json);
static bool log_is(enum log_level level);
/* Pairs of C strings, key and value, up to a 0; a key that begins with #
 * has a number. Any thread. */
static void log_event(enum log_level level, const char *tag, ...)
    __attribute__((sentinel));
/* Writes what stderr will take at once; the rest stays, or is counted. */
static void log_flush(void);
static bool log_pending(void);
/* In a child: what was waiting is the parent's to write. */
static void log_forget(void);

/* ---- 5. json: a strict reader that allocates nothing (RFC 8259) --------- */

struct json {
    const char *p, *end;
    struct arena *arena;   /* for strings with escapes */
    unsigned depth;
    bool first, failed;
};

static void json_init(struct json *j, struct span text, struct arena *a);
/* The next value's first character: { [ " t f n 0 (a number), or 0. */
static char json_peek(struct json *j);
static bool json_object(struct json *j);
static bool json_key(struct json *j, struct span *key);
static bool json_array(struct json *j);
static bool json_item(struct json *j);
static bool json_string(struct json *j, struct span *out);
static bool json_integer(struct json *j, uint64_t *out);
/* Passes over a value of any depth up to JSON_DEPTH_MAX, checking it. */
static void json_skip(struct json *j);
static struct span json_raw(struct json *j);
/* True when all was read and nothing failed. */
static bool json_end(struct json *j);

/* ---- 6. digest: sha256 and sha512, by the CPU's instructions ------------ */

static void digest_setup(void);
static void digest_init(struct digest_ctx *c, enum digest_algo algo);
static void digest_update(struct digest_ctx *c, const void *p, size_t n);
static void digest_final(const struct digest_ctx *c, struct digest *out);
static void digest_of(struct digest *d, enum digest_algo a, struct span s);
/* E_DIGEST_BAD, E_DIGEST_ALGO or 0. */
static int digest_parse(struct span s, struct digest *out);
/* The grammar alone, any algorithm (image-spec, descriptor). */
static bool digest_is(struct span s);
static bool digest_equal(const struct digest *a, const struct digest *b);
static const char *digest_algo_name(enum digest_algo a);
static int digest_algo_parse(struct span s, enum digest_algo *out);
/* "sha256:<hex>" */
static void digest_text(const struct digest *d, char out[DIGEST_TEXT_MAX]);
/* A hash under way as a line of text, and back. */
static void digest_save(const struct digest_ctx *c, struct buf *out);
static int digest_load(struct digest_ctx *c, struct span line);

/* ---- 7. fs: the disk, below one folder ---------------------------------- */

/* Makes and enters DIR, takes its lock, probes the file system.
 * Ends the process with one line where that fails. */
static void fs_open_root(const char *dir);
/* Enters DIR beside a running server, for commands: no lock, no probe. */
static void fs_enter_root(const char *dir);
static int fs_open(const char *path, int flags);
static int fs_create(const char *path);
/* Up to cap-1 bytes, terminated; their number or -1. */
static ssize_t fs_load(const char *path, char *out, size_t cap);
static void fs_close(int fd);
/* errno is kept over a close that follows a failure. */
static int fs_write(int fd, const void *p, size_t n);
static ssize_t fs_read_at(int fd, void *p, size_t n, uint64_t at);
/* Cuts the file where it is longer, and goes on writing there. */
static int fs_truncate(int fd, uint64_t size);
static int fs_sync(int fd);
/* Starts writing these bytes back without waiting for it. */
static void fs_write_back(int fd, uint64_t from, uint64_t n);
static int fs_stat_fd(int fd, struct stat *st);
/* Notes the length that a finished file must keep, where the file system
 * has room for it (a user attribute); whether it still has it. */
static void fs_seal(int fd, uint64_t size);
static bool fs_is_sealed(int fd, uint64_t size);
/* tmp, write, fdatasync, rename, fsync of the folder. */
static int fs_save(const char *path, struct span bytes);
/* The same without any sync: for what can be made again. */
static int fs_save_quick(const char *path, struct span bytes);
static int fs_rename(const char *from, const char *to);
static int fs_link(const char *from, const char *to);
static int fs_copy(const char *from, const char *to);
static int fs_unlink(const char *path);
/* One folder; EEXIST is success. */
static int fs_mkdir(const char *path);
static int fs_sync_dir(const char *path);
static int fs_stat(const char *path, struct stat *st);
static int fs_touch(const char *path);
static int fs_set_time(const char *path, int64_t wall_ms);
static int fs_rmdir(const char *path);
/* Opens or makes the file and locks it; blocks unless `try`. */
static int fs_lock(const char *path, bool try);
static int fs_lock_fd(int fd, bool try);
/* Calls `fn` for every entry but . and ..; stops where it returns non-0. */
static int fs_list(const char *path, int (*fn)(void *, const char *),
                   void *arg);
static uint64_t fs_free_bytes(void);
static void fs_tmp_name(struct path *out);

/* ---- 8. pool: disk threads ---------------------------------------------- */

/* Starts the threads of this process; the descriptor is readable while
 * finished jobs wait for pool_finish. */
static int pool_start(void);
static void pool_submit(struct pool_job *job);
static void pool_finish(void);

/* ---- 9. conf: one table, three sources ---------------------------------- */

/* Flags before variables before file before defaults. 0, or -1 with one
 * line in `err`. `argv` may be 0 (none). */
static int conf_load(struct conf *c, int argc, char **argv,
                     struct buf *err);
static void conf_help(struct buf *out);
/* Whether an argument that asks for another job is there. */
static bool conf_wants(int argc, char **argv, const char *flag);
/* The text of a config file; options that have values are left alone. */
static int conf_parse_file(struct conf *c, struct span text,
                           struct buf *err);
static void conf_free(struct conf *c);

/* What a --listen says: a Unix socket's path, or an address. */
struct conf_listen {
    const char *path;    /* borrowed; 0: an address */
    char ip[64];
    bool has_port;
    uint16_t port;
};

static int conf_listen_parse(const char *value, struct conf_listen *out);
static int conf_port_parse(struct span s, uint16_t *out);

/* ---- 10. name: the grammars --------------------------------------------- */

static bool name_is_repository(struct span s);
static bool name_is_tag(struct span s);
static bool name_is_media_type(struct span s);

/* ---- 11. http: requests in, answers out; no descriptors ----------------- */

enum http_result { HTTP_MORE, HTTP_OK, HTTP_BAD };

/* Looks for the head's end from offset *at on. HTTP_OK: its length in *at;
 * HTTP_MORE: go on from *at; HTTP_BAD: the answer in `error`. */
static enum http_result http_head_end(struct span in, size_t *at,
                                      enum error *error);
/* `head` is whole, in the request's arena. */
static enum http_result http_parse(struct request *r, struct span head,
                                   enum error *error);
/* Decodes in place: takes `in` bytes at p, leaves `out` body bytes there,
 * `used` tells how many were consumed. HTTP_OK: the body has ended. */
static enum http_result http_dechunk(struct chunked *c, char *p, size_t in,
                                     size_t *out, size_t *used);
/* The first value of a query parameter, decoded, in the arena. */
static bool http_query(struct request *r, const char *key,
                       struct span *out);
/* The value number `index` of a repeated parameter. */
static bool http_query_at(struct request *r, const char *key,
                          unsigned index, struct span *out);

struct http_range {
    uint64_t from, to;   /* inclusive */
};

/* HTTP_OK with `count` ranges, HTTP_MORE: no usable header, serve all,
 * HTTP_BAD: 416. */
static enum http_result http_ranges(struct request *r, uint64_t size,
                                    struct http_range **out,
                                    unsigned *count);
/* Starts an answer; headers follow, then one of the http_send_*. */
static void http_start(struct request *r, int status);
static void http_header(struct request *r, const char *name,
                        const char *value);
static void http_header_number(struct request *r, const char *name,
                               uint64_t n);
static void http_send_empty(struct request *r);
static void http_send_bytes(struct request *r, const char *type,
                            struct span bytes);
/* The request owns fd from here on. Range and HEAD are seen to. */
static void http_send_file(struct request *r, const char *type, int fd,
                           uint64_t size, bool ranges);
/* `produce` appends to `out` until it returns false. */
static void http_send_stream(struct request *r, const char *type,
                             bool (*produce)(struct request *,
                                             struct buf *));
/* Drops what was started and answers with the OCI error body. `text`
 * may be 0. */
static void http_fail(struct request *r, enum error e, const char *text);
static const char *http_reason(int status);

/* ---- 12. manifest: what a manifest says --------------------------------- */

/* A manifest to be put, parsed and hashed. */
struct manifest {
    struct digest digest;
    struct span bytes;
    char media_type[MEDIA_TYPE_MAX + 1];
    bool has_subject;
    struct digest subject;
    struct span descriptor;   /* JSON, what referrers shows */
    const char *who;
    const char *tags[MANIFEST_TAGS_MAX];
    unsigned tag_count;
};

/* Its own fields, checked: media type, subject, descriptor; `bytes` and
 * `digest` are set. E_MANIFEST_INVALID and why, or 0. */
static int manifest_parse(struct arena *a, struct span content_type,
                          struct manifest *m, const char **why);

/* ---- 13. store: repositories on the disk -------------------------------- */

/* What a tag or a manifest's record says. */
struct record {
    struct digest digest;
    char media_type[MEDIA_TYPE_MAX + 1];
    uint64_t size;
    int64_t time_ms;
    char who[NAME_MAX_LEN + 1];
};

/* Names in byte order, in an arena. */
struct list {
    bool any;              /* of repositories: those without manifests, too */
    struct span *names;
    size_t count, cap;
    size_t max;            /* keep this many, the smallest */
    bool more;             /* there were others beyond */
    struct span last;      /* only names after this one */
    struct arena *arena;
};

struct store_limits {
    uint64_t max_blob, min_free, max_uploads;
    int64_t gc_grace_ms;
};

/* Once, before forking: DIR's folders and format. */
static void store_setup(const char *dir, struct shared *shared);
static void store_set_limits(const struct store_limits *limits);
/* 0 or an enum error each. `fd` is the caller's. */
static int store_blob_open(const char *name, const struct digest *d,
                           int *fd, struct stat *st);
/* Refreshes the time that collection looks at; a disk thread's. */
static int store_blob_touch(const char *name, const struct digest *d);
/* `from` 0: from whichever repository has it. */
static int store_blob_mount(const char *name, const char *from,
                            const struct digest *d);
static int store_blob_delete(const char *name, const struct digest *d);
static int store_upload_create(struct upload *u, const char *name,
                               enum digest_algo algo);
/* Opens and locks: E_UPLOAD_UNKNOWN, E_UPLOAD_BUSY. */
static int store_upload_open(struct upload *u, const char *name,
                             struct span id);
/* For gc and fsck: locks, links and files of a repository. */
static int store_repo_lock(const char *name, int *lock);
static void store_pool_join(const char *path, const struct digest *d);
static void store_pool_drop(const struct digest *d);
static int64_t store_time(const struct stat *st);
static void store_marker(struct path *p, const char *folder,
                         const char *name);
/* The repository that a marker stands for; false: none. */
static bool store_marker_name(const char *entry, char *name);
static void store_sweep_mark(const char *name, int64_t due_ms);
static int store_record_load(const char *path, struct record *out,
                             struct digest *subject);
static void store_referrer_path(struct path *p, const char *name,
                                const struct digest *subject,
                                const char *hex);
static int store_manifest_referrer(const char *name,
                                   const struct manifest *m);
static int store_manifest_remove(const char *name, const struct digest *d);
static int store_manifest_subject(const char *name, const char *hex,
                                  struct digest *out);
static void list_add(struct list *l, struct span name);
static int list_collect(void *list, const char *name);
/* The next thousand of all repositories, from an empty page on. */
static bool store_repo_page(struct list *page, struct arena *a);
/* Whether n more bytes may come: E_FULL or 0. */
static int store_upload_room(uint64_t n);
static int store_upload_write(struct upload *u, const char *p, size_t n);
/* Durable when it returns 0; the upload is gone then, and after
 * E_DIGEST_INVALID. */
static int store_upload_commit(struct upload *u, const char *name,
                               const struct digest *d);
static int store_upload_cancel(struct upload *u);
/* Saves the state unless committed or cancelled, lets go of the lock. */
static int store_upload_close(struct upload *u);
/* Removes uploads without news for `age_ms` (a job's). */
static void store_upload_expire(uint64_t age_ms);
static void store_upload_count(void);
static int store_manifest_put(const char *name, const struct manifest *m);
static int store_manifest_find(const char *name, const struct digest *d,
                               struct record *out);
static int store_manifest_delete(const char *name,
                                 const struct digest *d);
static int store_tag_find(const char *name, const char *tag,
                          struct record *out);
static int store_tag_delete(const char *name, const char *tag);
static bool store_repo_exists(const char *name);
static int store_tags(const char *name, struct list *out);
static int store_repos(struct list *out);
/* One page of referrers: descriptors, comma separated, of those after
 * `last`; `next` is set where there are more than fit. */
struct referrers {
    struct span artifact_type;   /* empty: any */
    struct span last, next;
    struct buf *out;
    struct arena *arena;
};

static int store_referrers(const char *name, const struct digest *subject,
                           struct referrers *page);
/* Repositories whose index.json is behind: the next that is due, or with
 * `all` any, into `name`; false: none. `wait_ms` is when to ask again. */
static bool store_view_due(char *name, bool all, uint64_t *wait_ms);
static int store_view_write(const char *name);
/* Takes up what a crash left behind. */
static void store_view_recover(void);

/* ---- 14. gc: what nobody names any more --------------------------------- */

struct gc_plan {
    uint64_t grace_ms;       /* blobs younger than this stay */
    uint64_t untagged_ms;    /* untagged manifests older go; 0: none do */
    bool dry_run;
};

struct gc_stats {
    uint64_t repositories, manifests, untagged, blobs, bytes;
};

/* 64-bit keys; a set once it is asked. */
struct gc_set {
    uint64_t *keys;
    size_t count, cap;
    bool sorted;
};

static void gc_set_add(struct gc_set *s, uint64_t key);
static void gc_set_sort(struct gc_set *s);
static bool gc_set_has(struct gc_set *s, uint64_t key);
/* The first 64 bits of a digest's hex. */
static uint64_t gc_key(const char *hex);
/* Keys of all that a repository's manifests name. */
static void gc_named(const char *name, struct gc_set *out);
/* Collects one repository beside whatever goes on in it. */
static int gc_repository(const char *name, const struct gc_plan *plan,
                         struct gc_stats *stats);
/* Whether a marked repository is due; collects those that are. */
static bool gc_is_due(void);
static void gc_due(const struct gc_plan *plan);
/* Pool files that no repository links to any more. */
static void gc_pool(struct gc_stats *stats, bool dry_run);
/* Puts back what a crash left in trash/. */
static void gc_restore(void);

/* ---- 15. fsck: is everything what its name says? ------------------------ */

struct fsck_counts {
    uint64_t repositories, manifests, blobs, bytes;
    uint64_t damaged, repaired, missing, foreign;
    uint64_t broken;         /* manifests without their bytes */
};

/* What the caller is told on the way. */
struct fsck_report {
    void (*tell)(const char *what, const char *path);
    void (*progress)(const struct fsck_counts *counts);
};

static void fsck_run(bool repair, const struct fsck_report *report,
                     struct fsck_counts *counts);

/* ---- 16. v2: the OCI distribution API ----------------------------------- */

static void v2_ping(struct request *r);
static void v2_catalog(struct request *r);
static void v2_blob_get(struct request *r);
static void v2_blob_head(struct request *r);
static void v2_blob_delete(struct request *r);
static void v2_upload_post_begin(struct request *r);
static void v2_upload_post(struct request *r);
static void v2_upload_begin(struct request *r);
static void v2_upload_patch(struct request *r);
static void v2_upload_put(struct request *r);
static void v2_upload_get(struct request *r);
static void v2_upload_delete(struct request *r);
static void v2_manifest_get(struct request *r);
static void v2_manifest_begin(struct request *r);
static void v2_manifest_put(struct request *r);
static void v2_manifest_delete(struct request *r);
static void v2_tags(struct request *r);
static void v2_referrers(struct request *r);

/* ---- 17. api: the server itself ----------------------------------------- */

static void api_root(struct request *r);
static void api_health(struct request *r);

/* ---- 18. routes: which handler ------------------------------------------ */

/* Sets route, name and ref, or fails the request. False: it was answered
 * (404, 405, a bad name, a foreign origin, read-only). */
static bool routes_find(struct request *r);
/* Adds what every answer of the route carries. */
static void routes_headers(struct request *r);

/* ---- 19. conn: one connection's life ------------------------------------ */

/* A worker's connections: owned here, one set a process. */
static void conn_setup(const struct conf *conf, struct shared *shared,
                       unsigned slot);
static void conn_accept(int listener);
/* One turn: polls, serves, returns when something happened or `wait_ms`
 * have passed. `extra` are descriptors of the worker's own. */
static void conn_turn(struct conn_extra *extra, unsigned count,
                      uint64_t wait_ms);
static bool conn_full(void);
static size_t conn_count(void);
/* From here on every connection ends with its next answer; with `idle`
 * those that wait for a request end now. */
static void conn_drain(bool idle);

/* ---- 20. job: short-lived children -------------------------------------- */

/* Forks a niced child that runs `fn` and ends; its pid or -1. */
static int job_start(void (*fn)(const struct conf *), const struct conf *c);
/* Removes uploads that are abandoned. */
static void job_sweep(const struct conf *c);
/* Collects the repositories that are due. */
static void job_collect(const struct conf *c);
static void job_pool(const struct conf *c);
static struct gc_plan job_plan(const struct conf *c);

/* ---- 21. worker: the loop ----------------------------------------------- */

struct worker_start {
    const struct conf *conf;
    struct shared *shared;
    unsigned slot;               /* in shared->workers */
    int control;                 /* to the supervisor */
    const int *listeners;
    unsigned listener_count;
};

/* Never returns. */
static _Noreturn void worker_run(const struct worker_start *start);

/* ---- 22. supervisor: listeners, workers, signals ------------------------ */

/* Serves until a signal says stop; the exit status. */
static int supervisor_run(struct conf *conf, int argc, char **argv);

/* ---- 23. cli: what a person types --------------------------------------- */

static int cli_run(int argc, char **argv);

/* ---- 24. main: the door ------------------------------------------------- */

#endif

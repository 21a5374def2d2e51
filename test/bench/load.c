/* The load that wrk cannot make: pushes, paced probes, connections that are
 * held open, and the time from exec to a first answer.
 *
 *   load push    port= repo= pattern= digests= size= conns= seconds= or count=
 *                patch=1: POST, PATCH, PUT instead of POST, PUT
 *   load get     port= path= conns= seconds= or count=
 *   load probe   seconds= conns= every=MS fresh=1 PORT/PATH ...
 *   load hold    port= path= conns= how=idle|half|slow
 *   load replay  port= file= conns=
 *   load start   port= path= -- COMMAND ...
 *
 * It prints JSON. `hold`, and `probe` without seconds, run until EOF on stdin;
 * `hold` says "ready" first. With fresh=1 each probe is a connection of its own.
 * It must not be what is measured. So no digest is computed here: body number
 * i is `pattern` over and over, but for its last 16 bytes, which are i in hex,
 * and line i of `digests` is what it hashes to. What is pulled is thrown away
 * in the kernel (MSG_TRUNC). One thread, one epoll.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    HEAD_MAX = 8 << 10,         /* of a request, and of an answer */
    TAIL = 16,                  /* bytes that make a body unlike the others */
    TURN = 1 << 20,             /* bytes that one call sends or throws away */
    SAMPLES_MAX = 1 << 20,
    TARGETS_MAX = 4,
    SOURCES = 200               /* addresses that held connections come from */
};

enum step { STEP_NONE, STEP_POST, STEP_PATCH, STEP_PUT, STEP_GET };

struct file {
    const char *p;
    size_t n;
};

struct conn {
    int fd, target;
    enum step step;
    uint64_t number;            /* of the body that is pushed */
    char head[HEAD_MAX];
    const char *out;            /* what is sent before the body: head, mostly */
    size_t out_n, out_off;
    uint64_t body, body_off;
    bool waiting;               /* for an answer */
    char in[HEAD_MAX];
    size_t in_n;
    bool has_head, chunked;
    int status;
    uint64_t left;              /* of the answer's body */
    char location[HEAD_MAX];
    double sent, due;
};

static struct {
    int port, conns, patch, fresh;
    double seconds, every;
    uint64_t count, size;
    const char *path, *repo, *how;
    struct file pattern, digests, file;
} opt = {.conns = 1, .every = 10, .path = "/v2/", .repo = "bench/push"};

static struct {
    int port;
    const char *path;
    double *samples;
    size_t count;
} target[TARGETS_MAX];

static int target_count, epoll_fd;
static struct conn *conns;
static uint64_t started, finished, bytes, active;
static double began, last;

/* ---- small things ---- */

static _Noreturn void die(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fputs("load: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static struct file map(const char *name) {
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) die("%s: %s", name, strerror(errno));
    void *p = mmap(0, (size_t)st.st_size, PROT_READ,
                   MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (p == MAP_FAILED) die("%s: %s", name, strerror(errno));
    close(fd);
    return (struct file){p, (size_t)st.st_size};
}

/* `source` spreads many connections over loopback's addresses, so that a
 * limit for one address is not what answers. */
static int dial(int port, int source, int room) {
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in from = {.sin_family = AF_INET};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket: %s", strerror(errno));
    if (room) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (source >= 0) {
        from.sin_addr.s_addr =
            htonl(0x7f000101 + (uint32_t)(source % SOURCES));
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        bind(fd, (struct sockaddr *)&from, sizeof from);
    }
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void nonblocking(int fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void watch(struct conn *c, bool writes) {
    struct epoll_event e = {.events = EPOLLIN | (writes ? EPOLLOUT : 0),
                            .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e) < 0 &&
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

/* EOF on stdin ends what has no end of its own. */
static void watch_stdin(void) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLHUP, .data.ptr = 0};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &e) < 0)
        die("stdin: %s", strerror(errno));
}

static void open_conns(int n, int room, int source) {
    conns = calloc((size_t)n, sizeof *conns);
    if (!conns) die("out of memory");
    for (int i = 0; i < n; i++) {
        struct conn *c = &conns[i];
        c->target = target_count ? i % target_count : 0;
        c->fd = dial(target_count ? target[c->target].port : opt.port,
                     source < 0 ? -1 : i, room);
        if (c->fd < 0) die("connect: %s", strerror(errno));
        nonblocking(c->fd);
        watch(c, false);
    }
}

/* ---- requests out ---- */

static void request(struct conn *c, enum step step, uint64_t body,
                    const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(c->head, sizeof c->head, fmt, ap);
    va_end(ap);
    if (n < 0 || n + 200 > HEAD_MAX) die("a long head");
    n += snprintf(c->head + n, sizeof c->head - (size_t)n,
                  " HTTP/1.1\r\nHost: localhost\r\n");
    if (step == STEP_GET)
        n += snprintf(c->head + n, sizeof c->head - (size_t)n,
                      "Accept: application/vnd.oci.image.manifest.v1+json"
                      "\r\n\r\n");
    else
        n += snprintf(c->head + n, sizeof c->head - (size_t)n,
                      "Content-Type: application/octet-stream\r\n"
                      "Content-Length: %llu\r\n\r\n",
                      (unsigned long long)body);
    c->step = step;
    c->out = c->head;
    c->out_n = (size_t)n;
    c->out_off = c->body_off = 0;
    c->body = body;
}

/* The body's bytes from body_off on, as up to `max` pieces. */
static int pieces(const struct conn *c, const char tail[TAIL],
                  struct iovec *v, int max) {
    uint64_t off = c->body_off, turn = 0;
    int n = 0;
    while (off < c->body && n < max && turn < TURN) {
        uint64_t plain = c->body - TAIL, at = off % opt.pattern.n, len;
        if (off >= plain) {
            v[n].iov_base = (void *)(tail + (off - plain));
            len = c->body - off;
        } else {
            v[n].iov_base = (void *)(opt.pattern.p + at);
            len = opt.pattern.n - at;
            if (len > plain - off) len = plain - off;
        }
        v[n++].iov_len = len;
        off += len;
        turn += len;
    }
    return n;
}

static void send_more(struct conn *c) {
    char tail[TAIL + 1];
    snprintf(tail, sizeof tail, "%016llx", (unsigned long long)c->number);
    while (c->out_off < c->out_n || c->body_off < c->body) {
        struct iovec v[4];
        int n = 0;
        if (c->out_off < c->out_n) {
            v[n].iov_base = (void *)(c->out + c->out_off);
            v[n++].iov_len = c->out_n - c->out_off;
        }
        n += pieces(c, tail, v + n, 4 - n);
        struct msghdr m = {.msg_iov = v, .msg_iovlen = (size_t)n};
        ssize_t sent = sendmsg(c->fd, &m, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            watch(c, true);
            return;
        }
        if (sent < 0) die("send: %s", strerror(errno));
        size_t head = c->out_n - c->out_off;
        if ((size_t)sent < head) head = (size_t)sent;
        c->out_off += head;
        c->body_off += (uint64_t)sent - head;
    }
    watch(c, false);
}

static void begin(struct conn *c) {
    c->waiting = true;
    c->in_n = 0;
    c->has_head = false;
    c->sent = now();
    send_more(c);
}

/* ---- answers in ---- */

static const char *header(const struct conn *c, const char *name) {
    const char *p = strcasestr(c->in, name);
    return p ? p + strlen(name) : 0;
}

static void parse_head(struct conn *c, size_t head) {
    const char *v;
    if (sscanf(c->in, "HTTP/1.%*d %d", &c->status) != 1)
        die("not an answer: %.200s", c->in);
    if (c->status < 200 || c->status > 299)
        die("step %d: %.*s", c->step, (int)c->in_n, c->in);
    c->has_head = true;
    c->left = 0;
    c->chunked = false;
    if ((v = header(c, "\r\ncontent-length:")))
        c->left = strtoull(v, 0, 10);
    else if ((v = header(c, "\r\ntransfer-encoding:")))
        c->chunked = true;
    c->location[0] = 0;
    if ((v = header(c, "\r\nlocation:"))) {
        v += strspn(v, " ");
        if (!strncmp(v, "http", 4)) v = strchr(strstr(v, "//") + 2, '/');
        snprintf(c->location, sizeof c->location, "%.*s",
                 (int)strcspn(v, "\r\n"), v);
    }
    size_t have = c->in_n - head;
    memmove(c->in, c->in + head, have);
    c->in_n = have;
    if (!c->chunked) {
        if (have > c->left) die("more than an answer");
        c->left -= have;
        bytes += have;
    }
}

/* True: an answer is complete. */
static bool receive(struct conn *c) {
    for (;;) {
        static char away[TURN];
        ssize_t n;
        if (c->has_head && !c->chunked && !c->left) return true;
        if (c->has_head && c->chunked && c->in_n >= 5 &&
            !memcmp(c->in + c->in_n - 5, "0\r\n\r\n", 5))
            return true;
        if (c->has_head && !c->chunked) {
            n = recv(c->fd, away, sizeof away, MSG_TRUNC);
            if (n > 0) c->left -= (uint64_t)n;
        } else {
            /* Of a chunked body only the end is of interest. */
            if (c->has_head && c->in_n > HEAD_MAX / 2) {
                memmove(c->in, c->in + c->in_n - 8, 8);
                c->in_n = 8;
            }
            n = recv(c->fd, c->in + c->in_n, HEAD_MAX - 1 - c->in_n, 0);
        }
        if (n < 0 && errno == EAGAIN) return false;
        if (n < 0) die("receive: %s", strerror(errno));
        if (n == 0) die("closed in the middle of an answer");
        if (c->has_head && !c->chunked) {
            bytes += (uint64_t)n;
            continue;
        }
        c->in_n += (size_t)n;
        c->in[c->in_n] = 0;
        const char *end;
        if (!c->has_head && (end = strstr(c->in, "\r\n\r\n")))
            parse_head(c, (size_t)(end + 4 - c->in));
        else if (!c->has_head && c->in_n == HEAD_MAX - 1)
            die("a long answer");
    }
}

/* ---- closed loops: push, get, replay ---- */

static bool more_wanted(void) {
    if (opt.count) return started < opt.count;
    return now() - began < opt.seconds;
}

static void push_next(struct conn *c) {
    const char *query = strchr(c->location, '?') ? "&" : "?";
    switch (c->step) {
    case STEP_POST:
        if (opt.patch) {
            request(c, STEP_PATCH, opt.size, "PATCH %s", c->location);
            break;
        }
        /* fall through */
    case STEP_PATCH:
        request(c, STEP_PUT, c->step == STEP_POST ? opt.size : 0,
                "PUT %s%sdigest=sha256:%.64s", c->location, query,
                opt.digests.p + 65 * c->number);
        break;
    default:
        if ((started + 1) * 65 > opt.digests.n) die("no digests left");
        c->number = started++;
        request(c, STEP_POST, 0, "POST /v2/%s/blobs/uploads/", opt.repo);
    }
    begin(c);
}

static bool push_done(struct conn *c) {
    if (c->step != STEP_PUT) return false;
    if (c->status != 201) die("a push was answered with %d", c->status);
    bytes += opt.size;
    return true;
}

static void get_next(struct conn *c) {
    started++;
    request(c, STEP_GET, 0, "GET %s", opt.path);
    begin(c);
}

/* The file is a sequence of "LENGTH\n" and so many bytes, a whole request. */
static void replay_next(struct conn *c) {
    static size_t at;
    char *end;
    size_t n = strtoull(opt.file.p + at, &end, 10);
    c->out = end + 1;
    c->out_n = n;
    c->out_off = 0;
    at = (size_t)(c->out - opt.file.p) + n;
    started++;
    begin(c);
}

static bool any_done(struct conn *c) {
    return c->waiting;
}

static void closed_loop(void (*next)(struct conn *),
                        bool (*is_done)(struct conn *)) {
    open_conns(opt.conns, 0, -1);
    began = now();
    for (int i = 0; i < opt.conns && (!i || more_wanted()); i++) {
        active++;
        next(&conns[i]);
    }
    while (active) {
        struct epoll_event e[64];
        int n = epoll_wait(epoll_fd, e, 64, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = e[i].data.ptr;
            if (e[i].events & EPOLLOUT) send_more(c);
            if (!(e[i].events & ~(unsigned)EPOLLOUT) || !receive(c)) continue;
            if (is_done(c)) {
                finished++;
                last = now();
                c->step = STEP_NONE;
                c->waiting = false;
                if (!more_wanted()) {
                    active--;
                    continue;
                }
            }
            next(c);
        }
    }
    printf("{\"done\": %llu, \"seconds\": %.6f, \"bytes\": %llu}\n",
           (unsigned long long)finished, last - began,
           (unsigned long long)bytes);
}

static uint64_t count_requests(void) {
    uint64_t n = 0;
    for (size_t at = 0; at < opt.file.n; n++) {
        char *end;
        size_t len = strtoull(opt.file.p + at, &end, 10);
        at = (size_t)(end + 1 - opt.file.p) + len;
    }
    return n;
}

/* ---- probe: latencies at a fixed pace ---- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A late answer also stands for the probes that it kept from being sent. */
static void probe_add(struct conn *c) {
    size_t *count = &target[c->target].count;
    for (double t = now() - c->sent; t > 0; t -= opt.every / 1e3)
        if (*count < SAMPLES_MAX) target[c->target].samples[(*count)++] = t;
}

static void probe_print(void) {
    for (int i = 0; i < target_count; i++) {
        double *s = target[i].samples;
        size_t n = target[i].count;
        if (!n) die("no answer from port %d", target[i].port);
        qsort(s, n, sizeof *s, by_value);
        printf("%s{\"count\": %zu, \"p50\": %.4f, \"p99\": %.4f, "
               "\"max\": %.4f}%s", i ? ", " : "[", n, s[n / 2] * 1e3,
               s[n - 1 - n / 100] * 1e3, s[n - 1] * 1e3,
               i + 1 == target_count ? "]\n" : "");
    }
}

static void probe_begin(struct conn *c) {
    double t = now();
    if (opt.fresh) {
        close(c->fd);
        c->fd = dial(target[c->target].port, -1, 0);
        if (c->fd < 0) die("connect: %s", strerror(errno));
        nonblocking(c->fd);
    }
    request(c, STEP_GET, 0, "GET %s", target[c->target].path);
    begin(c);
    c->sent = t;
}

static void probe(void) {
    int n = opt.conns * target_count;
    bool over = false;
    /* When both cores are busy, the prober's own wait is not to be seen. */
    setpriority(PRIO_PROCESS, 0, -20);
    open_conns(n, 0, -1);
    if (!opt.seconds) watch_stdin();
    began = now();
    for (int i = 0; i < n; i++)
        conns[i].due = began + opt.every / 1e3 * i / n;
    while (!over && (!opt.seconds || now() - began < opt.seconds)) {
        struct epoll_event e[64];
        int got = epoll_wait(epoll_fd, e, 64, 1);
        for (int i = 0; i < got; i++) {
            struct conn *c = e[i].data.ptr;
            if (!c) {
                over = true;
                continue;
            }
            if (!receive(c)) continue;
            c->waiting = false;
            probe_add(c);
        }
        for (int i = 0; i < n; i++) {
            struct conn *c = &conns[i];
            if (c->waiting || now() < c->due) continue;
            c->due += opt.every / 1e3;
            if (c->due < now()) c->due = now();
            probe_begin(c);
        }
    }
    for (int i = 0; i < n; i++)
        if (conns[i].waiting) probe_add(&conns[i]);
    probe_print();
}

/* ---- hold: connections that are in the way ---- */

static bool is_slow, is_half;

static void hold_begin(struct conn *c) {
    request(c, STEP_GET, 0, "GET %s", opt.path);
    if (is_half) c->out_n -= 3;
    begin(c);
    if (is_slow) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, 0);
}

static void hold_again(struct conn *c, int number) {
    close(c->fd);
    c->fd = dial(opt.port, number, is_slow ? 4096 : 0);
    if (c->fd < 0) die("connect: %s", strerror(errno));
    nonblocking(c->fd);
    finished++;
    hold_begin(c);
}

/* A server may cut off whom it holds for hostile; they come again. */
static void hold_event(struct conn *c) {
    char byte;
    if (!is_half) {
        if (c->waiting) c->waiting = !receive(c);
        else die("an idle connection was closed");
        if (!c->waiting) active++;
    } else if (recv(c->fd, &byte, 1, MSG_PEEK) <= 0) {
        hold_again(c, (int)(c - conns));
    } else {
        recv(c->fd, c->in, HEAD_MAX, 0);
    }
}

static void slow_turn(void) {
    for (int i = 0; i < opt.conns; i++) {
        char byte;
        ssize_t n = recv(conns[i].fd, &byte, 1, 0);
        if (!n || (n < 0 && errno != EAGAIN)) hold_again(&conns[i], i);
    }
}

static void hold(void) {
    bool over = false, is_ready = false;
    is_slow = !strcmp(opt.how, "slow");
    is_half = !strcmp(opt.how, "half");
    open_conns(opt.conns, is_slow ? 4096 : 0, 0);
    for (int i = 0; i < opt.conns; i++) hold_begin(&conns[i]);
    watch_stdin();
    last = now();
    while (!over) {
        struct epoll_event e[64];
        if (!is_ready && (is_slow || is_half || active == (uint64_t)opt.conns))
            is_ready = puts("ready") >= 0 && !fflush(stdout);
        int n = epoll_wait(epoll_fd, e, 64, is_slow ? 200 : -1);
        for (int i = 0; i < n; i++) {
            if (e[i].data.ptr) hold_event(e[i].data.ptr);
            else over = true;
        }
        if (is_slow && now() - last >= 1) {
            last = now();
            slow_turn();
        }
    }
    printf("{\"reopened\": %llu}\n", (unsigned long long)finished);
}

/* ---- start: from exec to the first byte of an answer ---- */

static void start(char **command) {
    char byte, text[HEAD_MAX];
    int fd, n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\n"
                         "Host: localhost\r\n\r\n", opt.path);
    double t = now();
    pid_t pid = fork();
    if (!pid) {
        setsid();
        int sink = open("/dev/null", O_RDWR);
        dup2(sink, 1);
        execvp(command[0], command);
        die("%s: %s", command[0], strerror(errno));
    }
    while ((fd = dial(opt.port, -1, 0)) < 0) {
        if (waitpid(pid, 0, WNOHANG) == pid) die("%s ended", command[0]);
        if (now() - t > 60) die("%s does not start", command[0]);
        usleep(50);
    }
    if (send(fd, text, (size_t)n, MSG_NOSIGNAL) != n ||
        recv(fd, &byte, 1, 0) != 1)
        die("%s does not answer", command[0]);
    t = now() - t;
    close(fd);
    kill(pid, SIGTERM);
    for (int i = 0; waitpid(pid, 0, WNOHANG) != pid; i++) {
        if (i == 1000) kill(-pid, SIGKILL);
        usleep(10000);
    }
    printf("{\"ms\": %.3f}\n", t * 1e3);
}

/* ---- the command line ---- */

static void add_target(char *arg) {
    if (target_count == TARGETS_MAX) die("too many targets");
    target[target_count].port = atoi(arg);
    target[target_count].path = arg + strspn(arg, "0123456789");
    target[target_count++].samples = calloc(SAMPLES_MAX, sizeof(double));
}

static void option(char *arg) {
    char *value = strchr(arg, '=');
    if (*arg >= '0' && *arg <= '9') {
        add_target(arg);
        return;
    }
    if (!value) die("no such option: %s", arg);
    *value++ = 0;
    if (!strcmp(arg, "port")) opt.port = atoi(value);
    else if (!strcmp(arg, "conns")) opt.conns = atoi(value);
    else if (!strcmp(arg, "patch")) opt.patch = atoi(value);
    else if (!strcmp(arg, "fresh")) opt.fresh = atoi(value);
    else if (!strcmp(arg, "seconds")) opt.seconds = atof(value);
    else if (!strcmp(arg, "every")) opt.every = atof(value);
    else if (!strcmp(arg, "count")) opt.count = strtoull(value, 0, 10);
    else if (!strcmp(arg, "size")) opt.size = strtoull(value, 0, 10);
    else if (!strcmp(arg, "path")) opt.path = value;
    else if (!strcmp(arg, "repo")) opt.repo = value;
    else if (!strcmp(arg, "how")) opt.how = value;
    else if (!strcmp(arg, "pattern")) opt.pattern = map(value);
    else if (!strcmp(arg, "digests")) opt.digests = map(value);
    else if (!strcmp(arg, "file")) opt.file = map(value);
    else die("no such option: %s", arg);
}

int main(int argc, char **argv) {
    int i;
    if (argc < 2) die("push, get, probe, hold, replay or start?");
    for (i = 2; i < argc && strcmp(argv[i], "--"); i++) option(argv[i]);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(argv[1], "push")) {
        closed_loop(push_next, push_done);
    } else if (!strcmp(argv[1], "get")) {
        closed_loop(get_next, any_done);
    } else if (!strcmp(argv[1], "replay")) {
        opt.count = count_requests();
        closed_loop(replay_next, any_done);
    } else if (!strcmp(argv[1], "probe")) {
        probe();
    } else if (!strcmp(argv[1], "hold")) {
        hold();
    } else if (!strcmp(argv[1], "start") && i + 1 < argc) {
        start(argv + i + 1);
    } else {
        die("%s?", argv[1]);
    }
    return 0;
}

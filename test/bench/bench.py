#!/usr/bin/python3
"""Measures dims beside nginx, which serves the same bytes as files, and beside
the registries that are here: docker-registry, and olareg, zot and distribution
3.x where they are on PATH. Prints a table for the README. Nothing is asserted.

    BENCH_ONLY=push,start   only these (the names of functions with @row)
    BENCH_ROUNDS=9          default 5; servers take turns in each, medians count
    BENCH_SECONDS=2         how long each rate is measured
    BENCH_DIR=DIR           where the data goes; default: build/bench.*

Clients and servers share the machine's cores and its disk, so that figures
compare within one run only. Two things would favour whoever comes first: ext4
is slow to create files where many were deleted a moment ago, and what one
server left unsynced is written while the next is measured. Therefore a push
begins in a fresh folder, on a quiet disk.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import servers
from servers import ALL, REGISTRIES, Dims, DockerRegistry, Nginx

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 5))
SECONDS = float(os.environ.get("BENCH_SECONDS", 2))
ONLY = [name for name in os.environ.get("BENCH_ONLY", "").split(",") if name]

MIB = 1 << 20
LARGE = 256 * MIB
SMALL = 4096
REPO = "bench/image"
TAGGED = f"/v2/{REPO}/manifests/latest"
CONNS = 16
CROWD = 5000            # connections that are held open
SLOW = 1000
REPOSITORIES, BLOBS_EACH, TAGS = 10000, 10, 100000

ROWS = {}
FIGURES = []


def row(function):
    ROWS[function.__name__] = function
    return function


# --- the workshop ---------------------------------------------------------

class Shop:
    """The bench's folder: fresh homes, the load generator, its bodies."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.count = 0
        self.load_program = self.folder / "load"
        subprocess.run(["gcc", "-O2", "-o", self.load_program,
                        Path(__file__).with_name("load.c")], check=True)
        self.pattern = self.folder / "pattern"
        self.pattern.write_bytes(os.urandom(MIB))
        self.sums = {}

    def home(self):
        self.count += 1
        home = self.folder / str(self.count)
        home.mkdir()
        return home

    @contextlib.contextmanager
    def fresh(self, kind, large=False, **settings):
        """A running server on a quiet disk. What is small stays where it is
        until the end: deleting would slow down whoever comes next."""
        home = self.home()
        os.sync()
        with kind(home, **settings) as server:
            yield server
        if large:
            shutil.rmtree(home)

    def digests(self, size, count):
        """A file with the digests of the bodies that load.c makes."""
        path, have = self.sums.get(size, (self.folder / f"digests.{size}", 0))
        if have < count:
            head, pattern = hashlib.sha256(), self.pattern.read_bytes()
            left = size - 16
            while left:
                head.update(pattern[:left])
                left -= min(left, MIB)
            with open(path, "w") as out:
                for number in range(count):
                    whole = head.copy()
                    whole.update(b"%016x" % number)
                    out.write(whole.hexdigest() + "\n")
            self.sums[size] = path, count
        return path

    def begin(self, what, *targets, **options):
        return subprocess.Popen(
            [self.load_program, what, *(f"{k}={v}" for k, v in options.items()), *targets],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def finish(self, process):
        out = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"bench: failed: {' '.join(map(str, process.args))}")
        return json.loads(out)

    def load(self, what, *targets, **options):
        return self.finish(self.begin(what, *targets, **options))

    def push(self, server, size, conns, **more):
        """The whole push's answer; `count` or `seconds` says how many."""
        digests = self.digests(size, more.get("count", 100000))
        return self.load("push", port=server.port, pattern=self.pattern, digests=digests,
                         size=size, conns=conns, **more)

    @contextlib.contextmanager
    def held(self, server, conns, how, path="/v2/"):
        process = self.begin("hold", port=server.port, conns=conns, how=how, path=path)
        try:
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"bench: {server.name} does not take {conns} connections")
            yield
            self.finish(process)
        finally:
            process.kill()

    def p99(self, server, path="/v2/", seconds=None, **more):
        return self.load("probe", f"{server.port}{path}", conns=4, every=5,
                         seconds=seconds or SECONDS, **more)[0]["p99"]

    def stored(self, kind, **settings):
        """A running server with an image of small layers, 1 MiB and 256 MiB."""
        server = kind(self.home(), **settings)
        pattern = self.pattern.read_bytes()
        layers = [pattern[:SMALL - n] for n in range(6)] + [pattern, pattern * (LARGE // MIB)]
        with server:
            digests = [server.put_blob(REPO, data) for data in (b"{}", *layers)]
            manifest = manifest_of(digests, [2, *map(len, layers)])
            server.put_manifest(REPO, "latest", manifest)
        os.sync()
        server.blob, server.large = (f"/v2/{REPO}/blobs/{d}" for d in digests[-2:])
        return server


def manifest_of(digests, sizes):
    entries = [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": d, "size": n}
               for d, n in zip(digests, sizes)]
    entries[0]["mediaType"] = "application/vnd.oci.image.config.v1+json"
    return json.dumps({"schemaVersion": 2, "mediaType": servers.IMAGE,
                       "config": entries[0], "layers": entries[1:]}).encode()


def in_turns(kinds, measure, rounds=None):
    """{kind: [a value a round]}, the kinds taking turns."""
    values = {kind: [] for kind in kinds}
    for _ in range(rounds or ROUNDS):
        for kind in kinds:
            values[kind].append(measure(kind))
    return values


def medians(values):
    return {getattr(kind, "name", kind): median(v) for kind, v in values.items()}


def wrk(server, path):
    """Requests a second, and microseconds of the server's CPU for each."""
    before = server.cpu()
    done = subprocess.run(
        ["wrk", "-t2", f"-c{CONNS}", f"-d{max(1, round(SECONDS))}s", "-H",
         f"Accept: {servers.IMAGE}", f"http://127.0.0.1:{server.port}{path}"],
        capture_output=True, text=True)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    count = re.search(r"(\d+) requests in", done.stdout)
    if not rate or "Non-2xx" in done.stdout:
        raise SystemExit(f"bench: wrk: {server.name}: {done.stdout}{done.stderr}")
    return float(rate[1]), (server.cpu() - before) / int(count[1]) * 1e6


# --- figures --------------------------------------------------------------

def show(figure, unit, values, bar="", good=None):
    """One line of the table. `values`: by name; `bar`: what was to be reached,
    `good`: whether it was, None where nobody can tell."""
    texts = {name: f"{v:,.{0 if v >= 100 else 1 if v >= 10 else 2}f}"
             for name, v in values.items()}
    FIGURES.append((f"{figure}, {unit}", texts, bar, good))
    cells = "  ".join(f"{name} {text}" for name, text in texts.items())
    print(f"{figure}, {unit}: {cells}  [{bar or 'no bar'}"
          f"{'' if good is None else ': reached' if good else ': MISSED'}]", flush=True)


def against(values, *bars):
    """Bar and verdict from (peer, factor) pairs: dims makes at least factor
    times the peer's, where that one is here."""
    bars = [(peer, factor) for peer, factor in bars if peer in values]
    ratios = [values["dims"] / values[peer] for peer, _ in bars]
    text = "; ".join(f"{ratio:.2f} x {peer} (≥ {factor})"
                     for ratio, (peer, factor) in zip(ratios, bars))
    return text, all(ratio >= factor for ratio, (_, factor) in zip(ratios, bars))


def at_most(value, limit, unit):
    return f"≤ {limit:g} {unit}", value <= limit


# --- pulls ----------------------------------------------------------------

@contextlib.contextmanager
def all_stored(shop, **settings):
    with contextlib.ExitStack() as stack:
        yield {kind: stack.enter_context(shop.stored(kind, **settings)) for kind in ALL}


@row
def manifest(shop):
    """Manifest by tag over 16 keep-alive connections."""
    with all_stored(shop) as running:
        for server in running.values():
            shop.load("get", port=server.port, path=TAGGED, conns=CONNS, seconds=0.3)
        both = in_turns(ALL, lambda kind: wrk(running[kind], TAGGED))
    rates = medians({kind: [rate for rate, _ in v] for kind, v in both.items()})
    costs = medians({kind: [cost for _, cost in v] for kind, v in both.items()})
    show("manifest GET by tag, 16 connections", "requests/s", rates,
         *against(rates, ("nginx", 1.0), ("olareg", 3)))
    show("its CPU, server's processes", "µs/request", costs,
         f"{costs['dims'] / costs['nginx']:.2f} x nginx (≤ 1)", costs["dims"] <= costs["nginx"])


@row
def idle(shop):
    """The same beside 2,000 connections that do nothing."""
    def measure(kind):
        with shop.held(running[kind], 2000, "idle"):
            return wrk(running[kind], TAGGED)[0]

    with all_stored(shop, connections=10000) as running:
        rates = medians(in_turns(ALL, measure))
    show("the same beside 2,000 idle connections", "requests/s", rates,
         *against(rates, ("nginx", 1.0)))


@row
def blob(shop):
    """A blob of 1 MiB over 16 connections, one of 256 MiB over one."""
    def measure(kind, large):
        server = running[kind]
        done = shop.load("get", port=server.port, path=server.large if large else server.blob,
                         conns=1 if large else CONNS, seconds=SECONDS)
        return done["bytes"] / done["seconds"] / 1e6

    with all_stored(shop) as running:
        for large, figure in (False, "blob GET, 1 MiB, 16 connections"), \
                             (True, "blob GET, 256 MiB, one stream"):
            rates = medians(in_turns(ALL, lambda kind: measure(kind, large)))
            show(figure, "MB/s", rates, *against(rates, ("nginx", 0.97)))


# --- pushes ---------------------------------------------------------------

def dd(shop, size=LARGE):
    """MB/s of a file of so many bytes, synced at the end."""
    path = shop.folder / "dd"
    os.sync()
    began = time.monotonic()
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size // MIB}",
                    "conv=fdatasync"], check=True, stderr=subprocess.DEVNULL)
    rate = size / (time.monotonic() - began) / 1e6
    path.unlink()
    return rate


def push_rate(shop, kind, conns, count):
    """MB/s of `count` blobs of 256 MiB over so many connections."""
    with shop.fresh(kind, large=True) as server:
        done = shop.push(server, LARGE, conns, count=count, patch=1)
    return done["bytes"] / done["seconds"] / 1e6


@row
def push(shop):
    """256 MiB by POST, PATCH, PUT."""
    rates = medians(in_turns(["dd", *REGISTRIES], lambda kind: dd(shop) if kind == "dd"
                             else push_rate(shop, kind, 1, 1)))
    hasty = [kind.name for kind in REGISTRIES if not kind.syncs]
    if rates["dd"] < 600:
        limits = [("dd", 0.7)]
    else:
        limits = [(name, 1.0) for name in sorted(hasty, key=rates.get)[-1:]]
    show("push of 256 MiB (`dd conv=fdatasync` beside)", "MB/s", rates,
         *against(rates, ("docker-registry", 2.5), *limits))


@row
def pushes(shop):
    """16 such pushes at once. They are so many bytes that the disk's own pace
    shows: therefore the same 16 one after the other, and dd of as many."""
    def measure(kind):
        if kind == "dd":
            return dd(shop, 16 * LARGE)
        if kind == "in turn":
            return push_rate(shop, Dims, 1, 16)
        return push_rate(shop, kind, 16, 16)

    rates = medians(in_turns(["dd", *REGISTRIES, "in turn"], measure, max(1, ROUNDS // 2)))
    alone = median(push_rate(shop, Dims, 1, 1) for _ in range(ROUNDS))
    in_turn = rates.pop("in turn")
    show("16 such pushes at once, together (dd of 4 GiB beside)", "MB/s", rates,
         f"{rates['dims'] / alone:.2f} x one alone (≥ 1), {rates['dims'] / in_turn:.2f} x "
         "16 one after the other", rates["dims"] >= alone)


@row
def small(shop):
    """Blobs of 4 KiB over 16 connections, by POST and PUT."""
    def measure(kind):
        with shop.fresh(kind) as server:
            done = shop.push(server, SMALL, CONNS, seconds=SECONDS)
        return done["done"] / done["seconds"]

    rates = medians(in_turns(REGISTRIES, measure))
    show("blobs of 4 KiB pushed over 16 connections", "blobs/s", rates,
         *against(rates, ("docker-registry", 12)))


@row
def ping(shop):
    """GET /v2/ while another client pushes 1 GiB; nginx is asked meanwhile."""
    def measure(kind):
        with shop.fresh(kind, large=True) as server:
            probe = shop.begin("probe", f"{server.port}/v2/", f"{nginx.port}/v2/",
                               conns=4, every=5)
            shop.push(server, 1024 * MIB, 1, count=1, patch=1)
            return [target["p99"] for target in shop.finish(probe)]

    with Nginx(shop.home()) as nginx:
        both = in_turns(REGISTRIES, measure, min(ROUNDS, 3))
    own = medians({kind: [p99 for p99, _ in v] for kind, v in both.items()})
    own["nginx"] = median(p99 for _, p99 in both[Dims])
    show("GET /v2/ p99 while 1 GiB is pushed (nginx beside dims)", "ms", own,
         *at_most(own["dims"], max(5, round(1.5 * own["nginx"], 1)), "ms"))


# --- starts and large stores ----------------------------------------------

def start_ms(shop, server):
    done = subprocess.run([shop.load_program, "start", f"port={server.port}", "--",
                           *server.command()], cwd=server.home, capture_output=True, text=True,
                          env={**os.environ, **server.environment()})
    if done.returncode:
        raise SystemExit(f"bench: start: {done.stderr}")
    return json.loads(done.stdout)["ms"]


@row
def start(shop):
    """From exec to the first answer, with an empty folder."""
    here = {kind: kind(shop.home()) for kind in ALL}
    times = medians(in_turns(ALL, lambda kind: start_ms(shop, here[kind]), 3 * ROUNDS))
    show("start to the first answer", "ms", times,
         f"{times['dims'] / times['nginx']:.2f} x nginx (≤ 0.4)",
         times["dims"] <= 0.4 * times["nginx"])


def post(path, data, method="POST"):
    media = servers.IMAGE if method == "PUT" else "application/octet-stream"
    whole = (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\n"
             f"Content-Length: {len(data)}\r\n\r\n").encode() + data
    return b"%d\n%b" % (len(whole), whole)


def fill(shop, server):
    """100,000 blobs in 10,000 repositories, and 100,000 tags in another."""
    blobs, manifests = [], []
    for number in range(REPOSITORIES):
        repo, digests = f"team{number % 100:02}/app{number:05}", []
        for layer in range(BLOBS_EACH):
            data = b"%08d" % (number * BLOBS_EACH + layer)
            digests.append("sha256:" + hashlib.sha256(data).hexdigest())
            blobs.append(post(f"/v2/{repo}/blobs/uploads/?digest={digests[-1]}", data))
        body = manifest_of(digests, [8] * BLOBS_EACH)
        manifests.append(post(f"/v2/{repo}/manifests/latest", body, "PUT"))
    manifests.append(post("/v2/many/tags/manifests/latest", body, "PUT"))
    for requests in blobs, manifests:
        path = shop.folder / "requests"
        path.write_bytes(b"".join(requests))
        shop.load("replay", port=server.port, file=path, conns=CONNS)
    # A tag is a small file of its own; so many durable ones would take minutes.
    folder = server.home / "data/repos/many/tags/_oci/tags"
    record = (folder / "latest").read_bytes()
    for number in range(TAGS):
        (folder / f"t{number:06}").write_bytes(record)


@row
def full(shop):
    """Start and lists with 100,000 blobs, 10,000 repositories, 100,000 tags."""
    def lists(server, what, path, limit):
        calm = shop.p99(server)
        first = shop.load("probe", f"{server.port}{path}", conns=1, seconds=0.1, every=1000)
        later = shop.load("probe", f"{server.port}{path}", conns=1, seconds=SECONDS, every=50)
        load = shop.begin("get", port=server.port, path=path, conns=2, seconds=SECONDS + 0.5)
        busy = shop.p99(server)
        shop.finish(load)
        show(what, "ms", {"dims": later[0]["p50"]}, *at_most(later[0]["p50"], limit, "ms"))
        show("- the first time, after a start", "ms", {"dims": first[0]["max"]},
             *at_most(first[0]["max"], limit, "ms"))
        show("- GET /v2/ p99 calm", "ms", {"dims": calm})
        show("- GET /v2/ p99 while two connections ask for nothing else", "ms", {"dims": busy},
             "unharmed")

    home = shop.home()
    with Dims(home) as server:
        fill(shop, server)
    os.sync()
    here = {"dims, full": Dims(home), "dims, empty": Dims(shop.home()), "nginx": Nginx(shop.home())}
    times = medians(in_turns(here, lambda name: start_ms(shop, here[name]), 3 * ROUNDS))
    ratio = times["dims, full"] / times["nginx"]
    show("start with 100,000 blobs in 10,000 repositories", "ms",
         {"dims": times["dims, full"], "nginx": times["nginx"]},
         f"{ratio:.2f} x nginx (≤ 0.4); {times['dims, full'] / times['dims, empty']:.2f} x empty",
         ratio <= 0.4)
    with Dims(home) as server:
        lists(server, "first 100 of 10,000 repositories", "/v2/_catalog?n=100", 30)
        lists(server, "first 100 of 100,000 tags", "/v2/many/tags/tags/list?n=100", 100)


# --- memory and connections -----------------------------------------------

class Peak(threading.Thread):
    """The largest PSS of a server while it runs."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.bytes, self.over = server, 0, threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.03):
            self.bytes = max(self.bytes, self.server.pss())

    def end(self):
        self.over.set()
        self.join()
        return self.bytes


@row
def memory(shop):
    """PSS of all processes, idle and under 16 pushes and 16 pulls of 300 MB."""
    size = 300 * 10 ** 6

    def measure(kind):
        with shop.fresh(kind, large=True) as server:
            time.sleep(0.5)
            calm = server.pss()
            if kind is Nginx:
                return calm, None
            digest = server.put_blob("bench/pull", shop.pattern.read_bytes() * 286)
            peak = Peak(server)
            pulls = shop.begin("get", port=server.port, conns=16, count=16,
                               path=f"/v2/bench/pull/blobs/{digest}")
            shop.push(server, size, 16, count=16, patch=1)
            shop.finish(pulls)
            return calm, peak.end()

    both = {kind.name: measure(kind) for kind in ALL}
    calm = {name: at_rest / 1e6 for name, (at_rest, _) in both.items()}
    busy = {name: peak / 1e6 for name, (_, peak) in both.items() if peak}
    show("memory (PSS), idle", "MB", calm, *at_most(calm["dims"], 2, "MB"))
    show("memory under 16 pushes and 16 pulls of 300 MB", "MB", busy,
         *at_most(busy["dims"], 16, "MB"))


@row
def conns(shop):
    """Bytes of one of 5,000 connections: idle after an answer, half a head."""
    def measure(kind, how):
        with shop.fresh(kind, connections=10000) as server:
            time.sleep(0.3)
            before = server.pss()
            with shop.held(server, CROWD, how):
                time.sleep(0.5)
                return (server.pss() - before) / CROWD

    for how, limit, figure in ("idle", 1024, "an idle connection"), \
                              ("half", 5 * 1024, "a connection with half a head"):
        cost = medians(in_turns(ALL, lambda kind: measure(kind, how), min(ROUNDS, 3)))
        show(figure, "bytes", cost, *at_most(cost["dims"], limit, "bytes"))


@row
def hostile(shop):
    """p99 of new connections beside 5,000 half heads and 1,000 slow readers."""
    def measure(kind):
        server = running[kind]
        calm = shop.p99(server, TAGGED, fresh=1)
        with shop.held(server, CROWD, "half"), \
                shop.held(server, SLOW, "slow", path=server.blob):
            time.sleep(1)   # until the buffers of the slow ones are full
            return calm, shop.p99(server, TAGGED, fresh=1)

    with all_stored(shop, connections=10000) as running:
        both = in_turns(ALL, measure, min(ROUNDS, 3))
    calm = medians({kind: [c for c, _ in v] for kind, v in both.items()})
    busy = medians({kind: [b for _, b in v] for kind, v in both.items()})
    show("manifest by tag on new connections, p99", "ms", calm)
    ratio = busy["dims"] / calm["dims"]
    show("- beside 5,000 half heads and 1,000 slow readers", "ms", busy,
         f"{ratio:.2f} x calm (≤ 2)", ratio <= 2)


# --- the report -----------------------------------------------------------

def machine(shop):
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    sha = any(flag in re.split(r"\s+", info) for flag in ("sha_ni", "sha2"))
    kind = subprocess.run(["df", "--output=fstype", shop.folder], capture_output=True,
                          text=True).stdout.split()[-1]
    return (f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, "
            f"SHA instructions: {'yes' if sha else 'no'}, Linux {platform.release()}, {kind}, "
            f"dd conv=fdatasync {median(dd(shop) for _ in range(3)):,.0f} MB/s")


def table():
    """The figures as Markdown, a column for each server that has any."""
    names = [n for n in ("dims", "nginx", *(k.name for k in REGISTRIES if k is not Dims), "dd")
             if any(n in texts for _, texts, _, _ in FIGURES)]
    print(f"\n| | {' | '.join(names)} | dims against its bar |")
    print(f"|---|{'--:|' * len(names)}---|")
    for figure, texts, bar, good in FIGURES:
        cells = " | ".join(texts.get(name, "") for name in names)
        print(f"| {figure} | {cells} | {bar}{' **missed**' if good is False else ''} |")


def main():
    unknown = set(ONLY) - set(ROWS)
    if unknown:
        sys.exit(f"bench: no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    base = Path(os.environ.get("BENCH_DIR") or ROOT / "build")
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench.", dir=base) as folder:
        shop = Shop(folder)
        about = [machine(shop),
                 ", ".join(f"{kind.name} {kind.version()}" for kind in ALL)
                 + f"; {servers.WORKERS} workers; medians of {ROUNDS} rounds"]
        print("\n".join(about), flush=True)
        for name, function in ROWS.items():
            if not ONLY or name in ONLY:
                function(shop)
    table()
    print(f"\n{'  '.join(about)}")


if __name__ == "__main__":
    main()

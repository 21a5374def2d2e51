"""What is compared: how each server is started, configured, filled, measured."""

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

WORKERS = max(2, min(8, os.cpu_count()))
IMAGE = "application/vnd.oci.image.manifest.v1+json"
DEADLINE = 60

NGINX = """
daemon off;
{user}
worker_processes {workers};
worker_rlimit_nofile 20000;
error_log stderr crit;
pid {home}/nginx.pid;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=1000 inactive=600s;
    open_file_cache_valid 60s;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_body_temp_path {home}/t1;
    proxy_temp_path {home}/t2;
    fastcgi_temp_path {home}/t3;
    uwsgi_temp_path {home}/t4;
    scgi_temp_path {home}/t5;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {home}/data;
        default_type application/octet-stream;
        location = /v2/ {{ return 200 "{{}}"; }}
        location ~ /manifests/ {{ default_type {image}; }}
    }}
}}
"""

# What Debian's package configures, on loopback and without an access log.
REGISTRY = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  cache: {{blobdescriptor: inmemory}}
  filesystem: {{rootdirectory: {home}/data}}
  delete: {{enabled: true}}
http: {{addr: 127.0.0.1:{port}}}
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def children_of(root):
    """`root` and every process below it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text(errors="replace")
            except OSError:
                continue  # it ended meanwhile
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found += parents.get(pid, ())
    return found


class Server:
    """A fresh one in a folder of its own; a with block starts and stops it."""

    name = None
    program = None
    syncs = True        # before it says 201

    def __init__(self, home, **settings):
        self.home = Path(home)
        self.settings = settings
        self.port = free_port()
        self.process = None
        (self.home / "data").mkdir(parents=True, exist_ok=True)

    @classmethod
    def found(cls):
        return shutil.which(cls.program)

    @classmethod
    def version(cls):
        done = subprocess.run([cls.found(), "--version"], capture_output=True, text=True)
        words = (done.stdout + done.stderr).split()
        return next((w for w in words if w[:1].isdigit() or w[:2] in ("v2", "v3")), "?")

    def command(self):
        raise NotImplementedError

    def environment(self):
        return {"OTEL_TRACES_EXPORTER": "none"}

    def __enter__(self):
        with open(self.home / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env={**os.environ, **self.environment()})
        end = time.monotonic() + DEADLINE
        while True:
            try:
                self.request("GET", "/v2/")
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"bench: {self.name} does not start: "
                                     f"{(self.home / 'log').read_text()}") from None
                time.sleep(0.01)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    # --- what it costs ---

    def pss(self):
        """Bytes of memory of all its processes, shared pages divided."""
        total = 0
        for pid in children_of(self.process.pid):
            try:
                text = Path("/proc", str(pid), "smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) << 10
                         for line in text.splitlines() if line.startswith("Pss:"))
        return total

    def cpu(self):
        """Seconds of processor time of all its processes."""
        ticks = 0
        for pid in children_of(self.process.pid):
            stat = Path("/proc", str(pid), "stat").read_text()
            ticks += sum(int(t) for t in stat.rpartition(")")[2].split()[11:13])
        return ticks / os.sysconf("SC_CLK_TCK")

    # --- filling it ---

    def request(self, method, path, body=None, headers=None):
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            conn.request(method, path, body, headers or {})
            answer = conn.getresponse()
            data = answer.read()
        finally:
            conn.close()
        if answer.status >= 300:
            raise SystemExit(f"bench: {self.name}: {method} {path}: {answer.status} {data[:300]}")
        return answer

    def put_blob(self, repo, data):
        """Its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        answer = self.request("POST", f"/v2/{repo}/blobs/uploads/", b"")
        where = answer.getheader("Location")
        where += ("&" if "?" in where else "?") + f"digest={digest}"
        self.request("PUT", where, data, {"Content-Type": "application/octet-stream"})
        return digest

    def put_manifest(self, repo, tag, body):
        self.request("PUT", f"/v2/{repo}/manifests/{tag}", body, {"Content-Type": IMAGE})


class Dims(Server):
    name = "dims"
    program = os.path.abspath(os.environ.get("DIMS_BIN") or "dims")

    def command(self):
        return [self.program, "-p", str(self.port), "-d", f"{self.home}/data",
                "--workers", str(WORKERS), "--log-level", "warn"]

    def environment(self):
        return {k: "" for k in os.environ if k.startswith("DIMS_")}


class Nginx(Server):
    """Serves as files what the others serve as a registry: the limit."""

    name = "nginx"
    program = "nginx"

    @classmethod
    def found(cls):
        return shutil.which("nginx") or shutil.which("/usr/sbin/nginx")

    @classmethod
    def version(cls):
        done = subprocess.run([cls.found(), "-v"], capture_output=True, text=True)
        return done.stderr.strip().rpartition("/")[2]

    def command(self):
        (self.home / "nginx.conf").write_text(NGINX.format(
            home=self.home, port=self.port, workers=WORKERS, image=IMAGE,
            user="user root root;" if os.geteuid() == 0 else "",
            connections=self.settings.get("connections", 768)))
        return [self.found(), "-p", str(self.home), "-e", "stderr", "-c",
                str(self.home / "nginx.conf")]

    def put_file(self, path, data):
        path = self.home / "data" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def put_blob(self, repo, data):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.put_file(f"v2/{repo}/blobs/{digest}", data)
        return digest

    def put_manifest(self, repo, tag, body):
        self.put_file(f"v2/{repo}/manifests/{tag}", body)


class DockerRegistry(Server):
    name = "docker-registry"
    program = "docker-registry"

    def command(self):
        (self.home / "registry.yml").write_text(
            REGISTRY.format(home=self.home, port=self.port))
        return [self.found(), "serve", str(self.home / "registry.yml")]


class Distribution(DockerRegistry):
    name = "distribution"

    @classmethod
    def found(cls):
        return shutil.which("registry") or shutil.which("docker-registry3")


class Olareg(Server):
    name = "olareg"
    program = "olareg"
    syncs = False

    @classmethod
    def version(cls):
        done = subprocess.run([cls.found(), "version"], capture_output=True, text=True)
        return next((line.split()[-1] for line in done.stdout.splitlines()
                     if line.startswith("VCSTag")), "?")

    def command(self):
        return [self.found(), "serve", "--dir", f"{self.home}/data", "--addr", "127.0.0.1",
                "--port", str(self.port), "--verbosity", "error"]


class Zot(Server):
    """As it comes: storage.commit is off."""

    name = "zot"
    program = "zot"
    syncs = False

    def command(self):
        (self.home / "zot.json").write_text(json.dumps({
            "distSpecVersion": "1.1.0",
            "storage": {"rootDirectory": f"{self.home}/data"},
            "http": {"address": "127.0.0.1", "port": str(self.port)},
            "log": {"level": "error"}}))
        return [self.found(), "serve", str(self.home / "zot.json")]


ALL = [s for s in (Dims, Nginx, DockerRegistry, Olareg, Zot, Distribution) if s.found()]
REGISTRIES = [s for s in ALL if s is not Nginx]

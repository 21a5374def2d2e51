"""What the client tests share: dims itself, a gate that can stall a transfer
in its middle, the images, and the check of what a repository holds."""
import contextlib
import glob
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
CACHE = os.path.join(HERE, "cache")
DIMS = os.path.abspath(os.environ.get("DIMS_BIN")
                       or os.path.join(TOP, "dims"))

MIB = 1 << 20
START_LIMIT_S = 20
STOP_LIMIT_S = 30
COMMAND_LIMIT_S = 120
SECRET_BYTES = 40 * MIB     # the big layer, incompressible
MIN_ROOT_BYTES = 100 * MIB  # smaller would not be a real root file system

OCI = "application/vnd.oci.image."
INDEX_TYPES = (OCI + "index.v1+json",
               "application/vnd.docker.distribution.manifest.list.v2+json")
ACCEPT = ", ".join((
    OCI + "manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json") + INDEX_TYPES)

# Prints one line that stands for the names, kinds, modes, owners, links and
# bytes below the folder $1. What engines mount over or add is left out.
FINGERPRINT = """\
set -e
cd "$1"
export LC_ALL=C
what="etc opt srv usr var"
skip="-path etc/hosts -o -path etc/hostname -o -path etc/resolv.conf
      -o -path etc/mtab"
{
  find $what -xdev ! \\( $skip \\) -printf '%p %y %m %U %G %l\\n' | sort
  find $what -xdev -type f ! \\( $skip \\) -print0 | sort -z |
    xargs -0 sha256sum
} | sha256sum
"""


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def run(*command, limit=COMMAND_LIMIT_S, fails=False, says="", **more):
    """Runs a client to its end and returns what it printed on stdout; one
    that has to fail has to say why, on stderr."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, timeout=limit, **more)
    if (done.returncode != 0) != fails:
        raise AssertionError(
            f"{' '.join(command)}\nleft with {done.returncode}\n"
            f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    assert says in done.stderr, done.stderr
    return done.stdout


def wait_for(what, condition, limit=20):
    """Waits until the condition returns something true, and returns it."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {limit} s for {what}"
        time.sleep(0.05)


def unmount_below(folder):
    """Takes away what killed engines left mounted."""
    with open("/proc/self/mounts") as file:
        points = [line.split()[1] for line in file]
    for point in reversed(points):
        if point.startswith(folder + "/"):
            run("umount", "-l", point)


def in_group(group):
    """The living processes of a group; a zombie holds nothing any more."""
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(path) as file:
            state, _, its_group = file.read().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(path)
    return found


class Server:
    """dims on a folder of its own; comes back on the same port."""

    def __init__(self, folder):
        # A copy: a build beside the tests must not exchange what they run.
        self.binary = shutil.copy(DIMS, os.path.join(folder, "dims"))
        self.data = os.path.join(folder, "data")
        self.errors = os.path.join(folder, "stderr")
        self.port = 0
        self.process = None
        self.start()

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        with open(self.errors, "ab") as errors:
            self.process = subprocess.Popen(
                [self.binary, "-p", str(self.port), "-d", self.data,
                 "--log-level", "warn"], stdout=subprocess.PIPE,
                stderr=errors, text=True, start_new_session=True)
        match = None
        if select.select([self.process.stdout], [], [], START_LIMIT_S)[0]:
            match = re.search(r"listening on http://127\.0\.0\.1:(\d+)",
                              self.process.stdout.readline())
        assert match, f"dims did not start: {self.said()}"
        self.port = int(match.group(1))

    def kill(self):
        """The power cut: supervisor and workers at once, without a word."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # A worker holds the port and the folder until it is really gone.
        wait_for("the workers' end", lambda: not in_group(self.process.pid))

    def stop(self):
        self.process.terminate()
        return self.process.wait(STOP_LIMIT_S)

    def said(self):
        with open(self.errors) as file:
            return file.read()

    def get(self, path, method="GET"):
        """Returns status, headers and body of one request."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(link):
            link.request(method, path, headers={"Accept": ACCEPT})
            answer = link.getresponse()
            return answer.status, answer.headers, answer.read()

    def tags(self, repository):
        status, _, body = self.get(f"/v2/{repository}/tags/list")
        return json.loads(body)["tags"] if status == 200 else []

    def held(self, repository, reference):
        """Reads an image or index whole and checks every digest on the way.

        Returns the digest of the manifest or index, and a dict from
        architecture to (config digest, layer digests, diff ids): the last
        are computed here from the unpacked layers, so they stand for the
        root file system itself.
        """
        status, headers, body = self.get(
            f"/v2/{repository}/manifests/{reference}")
        assert status == 200, (repository, reference, status, body)
        digest = headers["Docker-Content-Digest"]
        assert digest == sha256(body)
        document = json.loads(body)
        if headers["Content-Type"] in INDEX_TYPES:
            images = {}
            for child in document["manifests"]:
                found, image = self.held(repository, child["digest"])
                assert found == child["digest"]
                images.update(image)
            return digest, images
        config = json.loads(self.blob(repository, document["config"])[0])
        unpacked = [self.blob(repository, layer)[1]
                    for layer in document["layers"]]
        assert unpacked == config["rootfs"]["diff_ids"]
        return digest, {config["architecture"]: (
            document["config"]["digest"],
            [layer["digest"] for layer in document["layers"]], unpacked)}

    def blob(self, repository, descriptor):
        """Returns the bytes and the digest of what they unpack to."""
        status, _, body = self.get(
            f"/v2/{repository}/blobs/{descriptor['digest']}")
        assert status == 200, (repository, descriptor, status, body)
        assert len(body) == descriptor["size"]
        assert sha256(body) == descriptor["digest"]
        if body[:2] == b"\x1f\x8b":
            return body, sha256(zlib.decompress(body, 31))
        return body, descriptor["digest"]


class Gate:
    """A relay in front of the server that can stand still.

    hold("up" or "down", n) lets n more bytes pass that way (towards the
    server or towards the client); then every connection freezes and
    `reached` is set, so that a test can kill something in the very middle
    of a transfer. release() cuts what is frozen; new connections pass.
    """

    def __init__(self, port):
        self.target = ("127.0.0.1", port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.reached = threading.Event()
        self.budget = {"up": None, "down": None}
        self.pairs = set()
        self.heads = []
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, way, after):
        with self.lock:
            self.reached.clear()
            self.budget[way] = after

    def release(self):
        with self.lock:
            self.budget = {"up": None, "down": None}
            pairs, self.pairs = self.pairs, set()
        for pair in pairs:
            self._cut(pair)
        self.reached.clear()

    def close(self):
        self.listener.close()
        self.release()

    def asked_ranges(self):
        """The Range headers of the requests so far."""
        return [line for head in self.heads
                for line in re.findall(r"(?im)^Range: (.+?)\r$", head)]

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target)
            except OSError:
                client.close()
                continue
            pair = (client, server)
            with self.lock:
                self.pairs.add(pair)
            for way, source, sink in (("up", client, server),
                                      ("down", server, client)):
                threading.Thread(target=self._pump, daemon=True,
                                 args=(pair, way, source, sink)).start()

    def _pump(self, pair, way, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(256 * 1024):
                if way == "up" and len(data) < 16384:
                    self.heads.append(data.decode("latin-1"))
                while not self._may_pass(way, len(data)):
                    if source.fileno() < 0:
                        return
                    time.sleep(0.02)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
            if way == "up":
                return  # the server may still be answering
        self._cut(pair)

    def _may_pass(self, way, size):
        with self.lock:
            if self.reached.is_set():
                return False
            left = self.budget[way]
            if left is None:
                return True
            if left < size:
                self.reached.set()
                return False
            self.budget[way] = left - size
            return True

    def _cut(self, pair):
        with self.lock:
            self.pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


# The images.

def root_tar():
    """A Debian root file system as a tar, made once and kept in the cache."""
    path = os.path.join(CACHE, "root.tar")
    if os.path.exists(path):
        return path
    os.makedirs(CACHE, exist_ok=True)
    # The archive that this machine installs from; without one debootstrap
    # knows its own.
    site = run("apt-get", "indextargets", "--format", "$(SITE)",
               "Created-By: Packages", "Codename: bookworm").split()[:1]
    tree = os.path.join(CACHE, "tree")
    shutil.rmtree(tree, ignore_errors=True)
    run("debootstrap", "--variant=minbase", "bookworm", tree, *site,
        limit=600)
    run("tar", "-C", tree, "--numeric-owner", "--sort=name", "-cf",
        path + ".new", "--exclude=./proc/*", "--exclude=./sys/*",
        "--exclude=./dev/*", "--exclude=./var/cache/apt/*",
        "--exclude=./var/lib/apt/lists/*", ".")
    shutil.rmtree(tree)
    os.rename(path + ".new", path)
    return path


def small_tar(entries):
    """A tar of {name: bytes}; a name that ends in / is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.mode = 0o755
            entry.mtime = 1700000000
            if name.endswith("/"):
                entry.type = tarfile.DIRTYPE
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


class Images:
    """An OCI layout with `big` (three layers, amd64) and `multi` (an index of
    it and of a small arm64 image), and the same changes as plain files."""

    def __init__(self, folder):
        self.layout = os.path.join(folder, "layout")
        self.blobs = os.path.join(self.layout, "blobs", "sha256")
        self.changes = os.path.join(folder, "changes")
        os.makedirs(self.blobs)
        self.root = root_tar()
        assert os.path.getsize(self.root) >= MIN_ROOT_BYTES
        app = b"#!/bin/sh\necho hello from $(cat /etc/debian_version)\n"
        secret = os.urandom(SECRET_BYTES)
        self.tars = [
            None,
            small_tar({"opt/app/": b"", "opt/app/run": app,
                       "usr/share/.wh.doc": b""}),
            small_tar({"srv/secret": secret})]
        self._write_changes(app, secret)
        self.fingerprint = self._fingerprint(folder)
        self._write_layout()

    def _write_changes(self, app, secret):
        for name, data in (("opt/app/run", app), ("srv/secret", secret)):
            path = os.path.join(self.changes, name)
            os.makedirs(os.path.dirname(path), mode=0o755)
            with open(path, "wb") as file:
                file.write(data)
            os.chmod(path, 0o755)

    def _fingerprint(self, folder):
        tree = os.path.join(folder, "tree")
        os.mkdir(tree)
        run("tar", "-C", tree, "--numeric-owner", "-xpf", self.root)
        shutil.rmtree(os.path.join(tree, "usr/share/doc"))
        run("cp", "-a", self.changes + "/.", tree)
        line = run("sh", "-c", FINGERPRINT, "fingerprint", tree)
        shutil.rmtree(tree)
        return line

    def _write_layout(self):
        with open(self.root, "rb") as file:
            root = file.read()
        self.big = self._image("amd64", [root] + self.tars[1:])
        other = self._image("arm64", [small_tar({
            "etc/": b"", "etc/arch": b"arm64\n"})])
        self.multi = self._put(json.dumps({
            "schemaVersion": 2, "mediaType": INDEX_TYPES[0],
            "manifests": [self.big, other]}).encode(), INDEX_TYPES[0])
        named = [{**descriptor, "annotations": {
            "org.opencontainers.image.ref.name": name,
            "io.containerd.image.name": f"local/heavy:{name}"}}
            for name, descriptor in (("big", self.big),
                                     ("multi", self.multi))]
        self._write("index.json", {"schemaVersion": 2, "manifests": named})
        self._write("oci-layout", {"imageLayoutVersion": "1.0.0"})

    def _image(self, architecture, tars):
        # Level 1: the test is about bytes on the way, not about their number.
        layers = [self._put(gzip.compress(tar, 1, mtime=0),
                            OCI + "layer.v1.tar+gzip") for tar in tars]
        config = self._put(json.dumps({
            "architecture": architecture, "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Cmd": ["/opt/app/run"]},
            "rootfs": {"type": "layers",
                       "diff_ids": [sha256(tar) for tar in tars]},
            "history": [{"created": "2026-01-01T00:00:00Z",
                         "created_by": "test"} for _ in tars],
        }).encode(), OCI + "config.v1+json")
        manifest = self._put(json.dumps({
            "schemaVersion": 2, "mediaType": OCI + "manifest.v1+json",
            "config": config, "layers": layers}).encode(),
            OCI + "manifest.v1+json")
        return {**manifest, "platform": {"architecture": architecture,
                                         "os": "linux"}}

    def _put(self, data, media_type):
        digest = sha256(data)
        with open(os.path.join(self.blobs, digest[7:]), "wb") as file:
            file.write(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def _write(self, name, document):
        with open(os.path.join(self.layout, name), "w") as file:
            json.dump(document, file)

    def config_digest(self):
        with open(os.path.join(self.blobs, self.big["digest"][7:])) as file:
            return json.load(file)["config"]["digest"]

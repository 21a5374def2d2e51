#!/usr/bin/python3
"""Measures a fresh dims on loopback and prints a line a figure. The load is
bounded: SECONDS (default 5) for each rate, BYTES for each transfer.

DIMS_BIN names the binary, as for the end-to-end tests. Clients and server share
the machine's cores, so figures compare only within one machine.
"""

import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "e2e"))

import oci  # noqa: E402
import server  # noqa: E402

SECONDS = int(os.environ.get("SECONDS", 5))
BYTES = 256 << 20
IDLE = 2000
THREADS = 2
BODIES = 20000      # different ones for each wrk thread, so that none exists
BODY = 4096
REPO = "bench/image"

# Each thread pushes bodies of its own, whose digests are lines of a file.
PUSH_LUA = """
local started = 0
function setup(thread)
    thread:set("first", started * %(bodies)d)
    started = started + 1
end
function init()
    digests, next_body = {}, 0
    for line in io.lines("%(digests)s") do digests[#digests + 1] = line end
end
function request()
    local n = first + next_body %% %(bodies)d
    next_body = next_body + 1
    return wrk.format("POST", "/v2/%(repo)s/blobs/uploads/?digest=" .. digests[n + 1],
        {["Content-Type"] = "application/octet-stream"},
        string.rep(string.format("%%08d", n), %(body)d / 8))
end
"""


def show(what, figure, unit):
    print(f"{what:<44} {figure:>10,.0f} {unit}", flush=True)


def rate(what, dims, path, *options):
    """Requests a second, by wrk; an answer that is no success is an error."""
    host, port = dims.address()
    done = subprocess.run(
        ["wrk", f"-t{THREADS}", "-c32", f"-d{SECONDS}s", "-H", f"Accept: {oci.IMAGE}",
         *options, f"http://{host}:{port}{path}"], capture_output=True, text=True)
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    if not found or "Non-2xx" in done.stdout:
        sys.exit(f"bench: {what}: {done.stdout}{done.stderr}")
    show(what, float(found[1]), "requests/s")


def push_small(dims, home):
    bodies = (b"%08d" % n * (BODY // 8) for n in range(THREADS * BODIES))
    digests = home / "digests"
    digests.write_text("".join(f"{oci.digest(b)}\n" for b in bodies))
    script = home / "push.lua"
    script.write_text(PUSH_LUA % {"bodies": BODIES, "body": BODY, "repo": REPO,
                                  "digests": digests})
    rate("push of 4 KiB blobs, durable", dims, "/", "-s", str(script))


def push_large(dims):
    data = os.urandom(1 << 20) * (BYTES >> 20)
    for algorithm in ("sha256", "sha512"):
        name = oci.digest(data, algorithm)
        client = dims.client()
        location = oci.start_upload(client, REPO, f"?digest-algorithm={algorithm}")
        began = time.monotonic()
        answer = client.put(oci.with_query(location, digest=name), data)
        assert answer.status == 201, answer
        show(f"push of one blob, {algorithm}",
             BYTES / (time.monotonic() - began) / 1e6, "MB/s")
    return name


def pull_large(dims, name):
    room = bytearray(1 << 20)
    with socket.create_connection(dims.address()) as conn:
        began = time.monotonic()
        conn.sendall(f"GET /v2/{REPO}/blobs/{name} HTTP/1.1\r\n"
                     "Host: localhost\r\nConnection: close\r\n\r\n".encode())
        got = 0
        while size := conn.recv_into(room):
            got += size
    assert got > BYTES, got
    show("pull of one blob", BYTES / (time.monotonic() - began) / 1e6, "MB/s")


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="dims-bench.") as folder:
        home = Path(folder)
        dims = server.Dims(home)
        try:
            image = oci.make_image(dims.client(), REPO, size=BODY)
            by_tag = f"/v2/{REPO}/manifests/latest"
            rate("manifest by tag", dims, by_tag)
            rate("blob of 4 KiB", dims, f"/v2/{REPO}/blobs/{oci.digest(image.layers[0])}")
            idle = [socket.create_connection(dims.address()) for _ in range(IDLE)]
            rate(f"manifest by tag, {IDLE:,} idle connections", dims, by_tag)
            for conn in idle:
                conn.close()
            push_small(dims, home)
            pull_large(dims, push_large(dims))
            dims.stop()
        finally:
            dims.kill()


if __name__ == "__main__":
    main()

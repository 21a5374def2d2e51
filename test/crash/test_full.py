"""A disk that is full, in bytes or in inodes: what comes is refused in words that
a client shows, what is there is served, and room that is made is used again.
Each test has a small tmpfs of its own, so this needs root."""

import os
import subprocess

import pytest

from oci import (check_image, digest, image_of, make_image, noise, push_blob, push_manifest,
                 start_upload, with_query)
from server import Dims
from wire import head, wait_until


@pytest.fixture
def small_disk(tmp_path):
    mounted = []

    def mount(options):
        folder = tmp_path / "disk"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def served(small_disk):
    servers = []

    def start(options, *args):
        server = Dims(small_disk(options), args)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def check_full(answer):
    assert answer.status == 507, answer
    assert answer.json()["errors"][0]["code"] == "DENIED"


def fill(client, repo, size):
    """Blobs until there is no room; their names."""
    names = []
    for _ in range(1000):
        data = noise(size)
        answer = client.post(f"/v2/{repo}/blobs/uploads/?digest={digest(data)}", data)
        if answer.status != 201:
            check_full(answer)
            return names
        names.append(digest(data))
    raise AssertionError("the disk is never full")


def test_below_min_free_the_rest_goes_on(served):
    server = served("size=100m", "--min-free", "40M", "--gc-grace", "2s")
    client = server.client()
    image = make_image(client, "a")
    fill(client, "b", 4 << 20)
    left = os.statvfs(server.data)
    assert left.f_bavail * left.f_frsize >= 36 << 20
    # The reserve is for this: reading, tagging, deleting.
    check_image(client, "a", "latest", image)
    manifest = client.get("/v2/a/manifests/latest")
    push_manifest(client, "a", "more", manifest.body)
    assert client.get("/v2/a/tags/list").json()["tags"] == ["latest", "more"]
    assert client.delete("/v2/a/manifests/more").status == 202
    # Nothing names the blobs of b: they go, and their room is used again.
    data = noise(8 << 20)
    target = f"/v2/b/blobs/uploads/?digest={digest(data)}"
    wait_until(lambda: client.post(target, data).status == 201, "room")
    assert not [p for p in (server.data / "uploads").iterdir() if p.name.startswith(".")]


def test_a_client_that_is_still_sending_sees_why(served):
    server = served("size=64m", "--min-free", "8M")
    client = server.client()
    conn = server.connect()
    conn.send(head("PATCH", start_upload(client, "a"), {"Transfer-Encoding": "chunked"}))
    piece = b"100000\r\n" + noise(1 << 20) + b"\r\n"
    for _ in range(200):
        if not conn.quiet(0):
            break
        conn.send(piece)
    check_full(conn.answer("PATCH"))
    assert server.client().get("/v2/").status == 200


def test_without_a_reserve_the_disk_itself_says_no(served):
    server = served("size=32m", "--min-free", "0")
    server.expect_stderr(r"store\.error .*No space left")
    client = server.client()
    image = make_image(client, "a")
    fill(client, "b", 1 << 20)
    location = start_upload(client, "a")
    data = noise(4 << 20)
    check_full(client.patch(location, data, chunked=True))
    check_image(client, "a", "latest", image)
    # What failed left nothing half-written behind.
    answer = client.get(location)
    held = int(answer["Range"].partition("-")[2])
    assert answer.status == 204 and held < len(data)
    assert client.delete(location).status == 204
    layer = client.get("/v2/a/manifests/latest").json()["layers"][0]["digest"]
    assert client.head(f"/v2/a/blobs/{layer}").status == 200


def test_out_of_inodes(served):
    server = served("size=64m,nr_inodes=160", "--min-free", "1M")
    server.expect_stderr(r"store\.error .*No space left")
    client = server.client()
    image = make_image(client, "a")
    names = fill(client, "a", 1000)
    check_image(client, "a", "latest", image)
    body = image_of(noise(10))
    check = client.put("/v2/a/manifests/other", str(body).replace("'", '"').encode(),
                       {"Content-Type": body["mediaType"]})
    check_full(check)
    for name in names[:10]:
        assert client.delete(f"/v2/a/blobs/{name}").status == 202
    push_blob(client, "a", noise(1000))
    assert client.get("/v2/a/tags/list").json()["tags"] == ["latest"]


def test_an_upload_goes_on_when_there_is_room_again(served):
    server = served("size=64m", "--min-free", "8M", "--gc-grace", "2s")
    client = server.client()
    location = start_upload(client, "a")
    first, second = noise(1 << 20), noise(12 << 20)
    assert client.patch(location, first).status == 202
    names = fill(client, "b", 4 << 20)
    check_full(client.patch(location, second))
    for name in names:
        assert client.delete(f"/v2/b/blobs/{name}").status in (202, 404)
    assert client.get(location)["Range"] == f"0-{len(first) - 1}"
    assert client.patch(location, second).status == 202
    assert client.put(with_query(location, digest=digest(first + second))).status == 201

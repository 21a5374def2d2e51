"""Uploads over time: interrupted, resumed, abandoned, refused for want of room."""

import os

import pytest

from oci import (digest, image_of, make_image, check_image, noise, push_blob, put_manifest,
                 start_upload, with_query)
from wire import chunks, head, refused, wait_until

DATA = noise(300000)


def offset(client, location):
    """What the server says it has; None while another request holds it."""
    answer = client.get(location)
    if answer.status == 409:
        return None
    assert answer.status == 204, answer
    last = int(answer["Range"].removeprefix("0-"))
    return last + 1 if last else 0


def finish(client, location, start):
    """Send the rest of DATA and check the blob."""
    answer = client.patch(location, DATA[start:],
                          {"Content-Range": f"{start}-{len(DATA) - 1}"})
    assert (answer.status, answer["Range"]) == (202, f"0-{len(DATA) - 1}")
    answer = client.put(with_query(answer["Location"], digest=digest(DATA)))
    assert answer.status == 201
    assert client.get(answer["Location"]).body == DATA


def interrupted(connect, location, sent, fields=None):
    """Send part of a PATCH, and return the connection."""
    conn = connect()
    fields = fields or {"Content-Length": str(len(DATA))}
    conn.send(head("PATCH", location, {**fields, "Expect": "100-continue"}))
    assert conn.head().status == 100
    conn.send(sent)
    return conn


@pytest.mark.parametrize("chunked", [False, True])
def test_client_that_leaves_keeps_what_arrived(api, repo, chunked):
    location = start_upload(api, repo)
    part = DATA[:123456]
    if chunked:
        sent = chunks(part).removesuffix(b"0\r\n\r\n")
        conn = interrupted(api.connect, location, sent, {"Transfer-Encoding": "chunked"})
    else:
        conn = interrupted(api.connect, location, part)
    conn.close()
    wait_until(lambda: offset(api, location) == len(part), "the offset of what arrived")
    finish(api, location, len(part))


def test_client_that_resets_can_go_on_from_the_offset(api, repo):
    location = start_upload(api, repo)
    interrupted(api.connect, location, DATA[:200000]).abort()
    wait_until(lambda: offset(api, location) is not None, "the end of the first request")
    start = offset(api, location)
    assert start <= 200000
    finish(api, location, start)


def test_many_interruptions(api, repo):
    location = start_upload(api, repo)
    for end in range(30000, 300000, 30000):
        start = offset(api, location)
        conn = interrupted(api.connect, location, DATA[start:end],
                           {"Content-Length": str(len(DATA) - start)})
        conn.close()
        wait_until(lambda: offset(api, location) == end, f"offset {end}")
    finish(api, location, 270000)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("crash", [False, True])
def test_upload_goes_on_after_a_restart(dims, algorithm, crash):
    server = dims()
    client = server.client()
    location = start_upload(client, "a", f"?digest-algorithm={algorithm}")
    for at in 0, 100000:
        location = client.patch(location, DATA[at:at + 100000])["Location"]
    server.kill() if crash else server.stop()
    client = dims().client()
    assert offset(client, location) == 200000  # both chunks were acknowledged
    name = digest(DATA, algorithm)
    answer = client.put(with_query(location, digest=name), DATA[200000:])
    assert answer.status == 201
    assert client.get(f"/v2/a/blobs/{name}").body == DATA


def test_upload_cut_off_by_a_crash_goes_on_from_what_was_saved(dims):
    server = dims()
    client = server.client()
    location = client.patch(start_upload(client, "a"), DATA[:50000])["Location"]
    conn = interrupted(server.connect, location, DATA[50000:200000],
                       {"Content-Length": "250000"})
    server.kill()
    conn.close()
    client = dims().client()
    start = offset(client, location)
    assert 50000 <= start <= 200000
    finish(client, location, start)


def test_upload_cut_off_by_a_stop_keeps_what_arrived(dims):
    server = dims("--stop-timeout", "200ms")
    location = start_upload(server.client(), "a")
    conn = interrupted(server.connect, location, DATA[:200000])
    server.expect_stderr("", required=False)  # it may say that it had to cut
    server.stop()
    conn.close()
    client = dims().client()
    start = offset(client, location)
    assert start <= 200000
    finish(client, location, start)


def test_abandoned_upload_expires(dims):
    server = dims("--upload-expire", "1s")
    client = server.client()
    location = client.patch(start_upload(client, "a"), DATA)["Location"]
    uploads = server.data / "uploads"
    assert any(uploads.iterdir())
    wait_until(lambda: not any(uploads.iterdir()), "the upload to expire")
    refused(client.get(location), 404, "BLOB_UPLOAD_UNKNOWN")


def test_upload_in_use_does_not_expire(dims):
    server = dims("--upload-expire", "1s")
    client = server.client()
    old = start_upload(client, "a")
    live = start_upload(client, "a")
    conn = interrupted(server.connect, live, DATA[:1000])
    idle = server.data / "uploads" / old.rpartition("/")[2]
    assert idle.exists()
    # Asking the server would be news of the upload.
    wait_until(lambda: not idle.exists(), "the idle upload to expire")
    assert client.get(old).status == 404
    conn.send(DATA[1000:])
    assert conn.answer("PATCH").status == 202
    answer = client.put(with_query(live, digest=digest(DATA)))
    assert answer.status == 201
    conn.close()


def test_finished_and_cancelled_uploads_leave_no_files(dims):
    server = dims()
    client = server.client()
    make_image(client, "a")
    location = client.patch(start_upload(client, "a"), DATA)["Location"]
    assert client.delete(location).status == 204
    assert client.post(f"/v2/a/blobs/uploads/?digest={digest(b'other')}", DATA).status == 400
    location = client.patch(start_upload(client, "a"), DATA)["Location"]
    refused(client.put(with_query(location, digest=digest(b"other"))), 400, "DIGEST_INVALID")
    wait_until(lambda: not any((server.data / "uploads").iterdir()), "uploads/ to be empty")
    assert not (server.data / "blobs" / "sha256" / digest(DATA)[7:]).exists()


def test_reset_before_the_continue_leaves_nothing_behind(dims):
    server = dims("--workers", "1")
    client = server.client()
    locations = [start_upload(client, "a")]
    files = f"/proc/{server.workers(1)[0]}/fd"
    before = len(os.listdir(files))
    fields = {"Content-Length": str(len(DATA)), "Expect": "100-continue"}
    name = digest(DATA)
    # What counts is a reset between the opening of the upload and the 100: a
    # few of these come then.
    for method in ["PATCH", "PUT"] * 15:
        fresh = [start_upload(client, "a") for _ in range(20)]
        conns = [server.connect() for _ in fresh]
        for conn, location in zip(conns, fresh):
            conn.send(head(method, with_query(location, digest=name), fields))
        for conn in conns:
            conn.abort()
        locations += fresh
    wait_until(lambda: len(os.listdir(files)) == before, "the descriptors to be closed")
    assert [offset(client, location) for location in locations] == [0] * len(locations)
    finish(client, locations[-1], 0)


# Limits

def check_full(answer):
    """507 with the error body that clients show to their user."""
    assert answer.status == 507, answer
    assert answer["Content-Type"] == "application/json"
    assert answer.codes()


@pytest.mark.parametrize("way", ["post", "put", "patch", "stream", "two patches"])
def test_blob_over_max_blob_is_413(dims, way):
    client = dims("--max-blob", "100000").client()
    fits, over = noise(100000), noise(100001)
    push_blob(client, "a", fits)
    if way == "post":
        answer = client.post(f"/v2/a/blobs/uploads/?digest={digest(over)}", over)
    else:
        location = start_upload(client, "a")
        if way == "put":
            answer = client.put(with_query(location, digest=digest(over)), over)
        elif way == "two patches":
            answer = client.patch(location, over[:60000])
            assert answer.status == 202
            answer = client.patch(answer["Location"], over[60000:])
        else:
            answer = client.patch(location, over, chunked=way == "stream")
    refused(answer, 413)
    assert client.head(f"/v2/a/blobs/{digest(over)}").status == 404
    assert client.get(f"/v2/a/blobs/{digest(fits)}").body == fits


@pytest.mark.parametrize("chunked", [False, True])
def test_uploads_over_max_uploads_are_507_until_there_is_room(dims, chunked):
    client = dims("--max-uploads", "1M").client()
    first = client.patch(start_upload(client, "a"), bytes(700000))["Location"]
    second = client.post("/v2/a/blobs/uploads/")
    if second.status == 202:
        check_full(client.patch(second["Location"], bytes(700000), chunked=chunked))
    else:
        check_full(second)
    # A finished blob is no longer an upload.
    assert client.put(with_query(first, digest=digest(bytes(700000)))).status == 201
    data = noise(500000)
    push_blob(client, "a", data)
    location = client.patch(start_upload(client, "a"), data)["Location"]
    assert client.delete(location).status == 204
    push_blob(client, "a", noise(700000))


def test_max_uploads_counts_what_a_former_run_left(dims):
    server = dims()
    client = server.client()
    client.patch(start_upload(client, "a"), bytes(700000))
    server.stop()
    client = dims("--max-uploads", "1M").client()
    answer = client.post("/v2/a/blobs/uploads/")
    if answer.status == 202:
        answer = client.patch(answer["Location"], bytes(700000))
    check_full(answer)


def test_below_min_free_uploads_are_507_and_the_rest_works(dims, tmp_path):
    server = dims()
    image = make_image(server.client(), "a")
    server.stop()
    disk = os.statvfs(tmp_path)
    server = dims("--min-free", disk.f_blocks * disk.f_frsize + 1)
    server.expect_stderr("", required=False)  # it may warn
    client = server.client()
    check_image(client, "a", "latest", image)
    answer = client.post("/v2/a/blobs/uploads/")
    if answer.status == 202:
        answer = client.patch(answer["Location"], DATA)
    check_full(answer)
    check_full(client.post(f"/v2/a/blobs/uploads/?digest={digest(DATA)}", DATA))
    with server.connect() as conn:
        conn.send(head("POST", f"/v2/a/blobs/uploads/?digest={digest(DATA)}",
                       {"Content-Length": str(len(DATA)), "Expect": "100-continue"}))
        answer = conn.answer("POST")
        assert (answer.status, answer.interim) == (507, [])
    # What frees the disk must go on.
    assert client.delete(f"/v2/a/blobs/{digest(image.layers[0])}").status == 202
    assert client.delete("/v2/a/manifests/latest").status == 202


def test_below_min_free_a_complete_upload_can_be_finished_or_cancelled(dims):
    server = dims()
    client = server.client()
    done, dropped = [client.patch(start_upload(client, "a"), DATA)["Location"] for _ in range(2)]
    server.stop()
    server = dims("--min-free", "100T")
    server.expect_stderr("", required=False)  # it may warn
    client = server.client()
    for location in done, dropped:
        assert offset(client, location) == len(DATA)
        check_full(client.patch(location, b"more"))
        check_full(client.patch(location, b"more", chunked=True))
    assert client.delete(dropped).status == 204
    answer = client.put(with_query(done, digest=digest(DATA)))
    assert answer.status == 201
    assert client.get(answer["Location"]).body == DATA


def test_manifests_may_use_half_of_min_free_and_no_more(dims, tmp_path):
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    server = dims("--min-free", free * 3 // 2)
    server.expect_stderr("", required=False)  # it may warn
    client = server.client()
    check_full(client.post(f"/v2/a/blobs/uploads/?digest={digest(DATA)}", DATA))
    assert put_manifest(client, "a", "v1", image_of(noise())).status == 201
    server.stop()
    server = dims("--min-free", free * 3)
    server.expect_stderr("", required=False)
    client = server.client()
    check_full(put_manifest(client, "a", "v2", image_of(noise())))
    assert client.get("/v2/a/tags/list").json()["tags"] == ["v1"]

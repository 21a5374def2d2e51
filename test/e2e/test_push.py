"""Push of blobs: end-4 to end-6, end-11, end-13 and end-14."""

import re
import threading

import pytest

from oci import digest, noise, push_blob, start_upload, with_query
from server import frozen
from wire import chunks, head, refused

ALGORITHMS = ["sha256", "sha512"]
EMPTY_DIGEST = digest(b"")
CHUNKED = {"Transfer-Encoding": "chunked"}


def upload(api, repo, location):
    """(status, offset so far) of an upload: end-13."""
    answer = api.get(location)
    if answer.status != 204:
        return answer.status, None
    assert answer["Location"]
    found = re.fullmatch(r"0-(\d+)", answer["Range"])
    assert found, answer
    return 204, int(found[1])


def check_created(api, repo, answer, data, name):
    assert answer.status == 201, answer
    assert answer["Docker-Content-Digest"] == name
    got = api.get(answer["Location"])
    assert (got.status, got.body) == (200, data)
    assert api.get(f"/v2/{repo}/blobs/{name}").body == data


# end-4a and end-6

def test_post_opens_a_session(api, repo):
    answer = api.post(f"/v2/{repo}/blobs/uploads/")
    assert answer.status == 202
    # One segment after uploads/: the conformance program's credentials cache
    # and some clients look for this form.
    path = answer["Location"].partition("?")[0]
    assert re.fullmatch(re.escape(f"/v2/{repo}/blobs/uploads/") + r"[^/]+", path)
    assert answer["Docker-Upload-UUID"] in path
    assert answer["Range"] in (None, "0-0")


def test_each_session_has_its_own_id(api, repo):
    assert len({start_upload(api, repo) for _ in range(50)}) == 50


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [1, 512, 300000])
def test_post_then_put(api, repo, algorithm, size):
    data = noise(size)
    name = digest(data, algorithm)
    location = start_upload(api, repo)
    answer = api.put(with_query(location, digest=name), data)
    check_created(api, repo, answer, data, name)


def test_put_body_may_be_chunked(api, repo):
    data = noise(200000)
    location = start_upload(api, repo)
    answer = api.put(with_query(location, digest=digest(data)), data, chunked=True)
    check_created(api, repo, answer, data, digest(data))


def test_digest_may_be_percent_encoded_in_the_query(api, repo):
    data = noise()
    location = start_upload(api, repo)
    answer = api.put(with_query(location, digest=digest(data).replace(":", "%3A")), data)
    check_created(api, repo, answer, data, digest(data))


def test_a_finished_session_is_gone(api, repo):
    data = noise()
    location = start_upload(api, repo)
    assert api.put(with_query(location, digest=digest(data)), data).status == 201
    refused(api.get(location), 404, "BLOB_UPLOAD_UNKNOWN")


def test_blob_that_is_there_already_may_be_pushed_again(api, repo):
    data = noise()
    assert push_blob(api, repo, data) == push_blob(api, repo, data)
    assert api.get(f"/v2/{repo}/blobs/{digest(data)}").body == data


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_empty_blob_by_post_and_put(api, repo, algorithm):
    name = digest(b"", algorithm)
    location = start_upload(api, repo)
    answer = api.put(with_query(location, digest=name), b"")
    check_created(api, repo, answer, b"", name)


# end-4b

@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("chunked", [False, True])
def test_single_post(api, repo, algorithm, chunked):
    data = noise(70000)
    name = digest(data, algorithm)
    answer = api.post(f"/v2/{repo}/blobs/uploads/?digest={name}", data, chunked=chunked)
    check_created(api, repo, answer, data, name)


@pytest.mark.parametrize("chunked", [False, True])
def test_single_post_of_the_empty_blob_is_created(api, repo, chunked):
    answer = api.post(f"/v2/{repo}/blobs/uploads/?digest={EMPTY_DIGEST}", b"", chunked=chunked)
    check_created(api, repo, answer, b"", EMPTY_DIGEST)


def test_post_with_digest_but_no_body_opens_an_ordinary_session(api, repo):
    # containerd once announced the digest this way.
    data = noise()
    location = start_upload(api, repo, f"?digest={digest(data)}")
    answer = api.put(with_query(location, digest=digest(data))
                     if "digest=" not in location else location, data)
    check_created(api, repo, answer, data, digest(data))


# end-4c

@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_digest_algorithm_announced_at_the_start(api, repo, algorithm):
    data = noise(100000)
    name = digest(data, algorithm)
    location = start_upload(api, repo, f"?digest-algorithm={algorithm}")
    for part in data[:40000], data[40000:]:
        answer = api.patch(location, part)
        assert answer.status == 202
        location = answer["Location"]
    answer = api.put(with_query(location, digest=name))
    check_created(api, repo, answer, data, name)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha384", "SHA256", "", "../sha256",
                                       "x" * 300])
def test_unsupported_digest_algorithm_is_400(api, repo, algorithm):
    answer = api.post(f"/v2/{repo}/blobs/uploads/?digest-algorithm={algorithm}")
    if algorithm == "" and answer.status == 202:
        return  # nothing asked for
    refused(answer, 400, "DIGEST_INVALID", "UNSUPPORTED", "BLOB_UPLOAD_INVALID")


# end-5, end-13

@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("last_by_put", [False, True])
def test_chunks_in_order(api, repo, algorithm, last_by_put):
    data = noise(3 * 70000 - 5)
    name = digest(data, algorithm)
    location = start_upload(api, repo)
    parts = [data[i:i + 70000] for i in range(0, len(data), 70000)]
    sent = 0
    for part in parts[:-1] if last_by_put else parts:
        span = f"{sent}-{sent + len(part) - 1}"
        answer = api.patch(location, part, {"Content-Range": span})
        sent += len(part)
        assert answer.status == 202
        # Docker fails without a Range that it can parse.
        assert answer["Range"] == f"0-{sent - 1}"
        assert answer["Docker-Upload-UUID"]
        location = answer["Location"]
        assert upload(api, repo, location) == (204, sent - 1)
    target = with_query(location, digest=name)
    if last_by_put:
        answer = api.put(target, parts[-1], {"Content-Range": f"{sent}-{len(data) - 1}"})
    else:
        answer = api.put(target)
    check_created(api, repo, answer, data, name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("chunked", [False, True])
def test_one_stream_without_content_range(api, repo, algorithm, chunked):
    # What docker, podman and crane do.
    data = noise(500001)
    name = digest(data, algorithm)
    answer = api.patch(start_upload(api, repo), data, chunked=chunked)
    assert (answer.status, answer["Range"]) == (202, "0-500000")
    answer = api.put(with_query(answer["Location"], digest=name))
    check_created(api, repo, answer, data, name)


def test_status_of_a_fresh_session(api, repo):
    # Never "0--1": clients parse an integer.
    assert upload(api, repo, start_upload(api, repo)) == (204, 0)


def test_patch_without_bytes_changes_nothing(api, repo):
    location = start_upload(api, repo)
    answer = api.patch(location, b"")
    assert answer.status == 202
    assert re.fullmatch(r"0-\d+", answer["Range"])
    data = noise()
    answer = api.put(with_query(answer["Location"], digest=digest(data)), data)
    check_created(api, repo, answer, data, digest(data))


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("span", ["200-299", "0-99", "99-198", "101-200"])
def test_chunk_out_of_order_is_416_and_the_session_lives_on(api, repo, method, span):
    data = noise(300)
    location = api.patch(start_upload(api, repo), data[:100], {"Content-Range": "0-99"})["Location"]
    target = with_query(location, digest=digest(data)) if method == "PUT" else location
    answer = api.request(method, target, {"Content-Range": span}, noise(100))
    assert answer.status == 416
    # The conformance program goes on with whatever URL it used last.
    assert upload(api, repo, target) == (204, 99)
    answer = api.put(with_query(location, digest=digest(data)), data[100:],
                     {"Content-Range": "100-299"})
    check_created(api, repo, answer, data, digest(data))


def test_first_chunk_must_begin_at_zero(api, repo):
    location = start_upload(api, repo)
    assert api.patch(location, noise(10), {"Content-Range": "10-19"}).status == 416
    assert upload(api, repo, location) == (204, 0)


@pytest.mark.parametrize("span", [
    "abc", "0", "0-", "-9", "9-0", "0-9/10", "bytes 0-9", "+0-9", "0-99999999999999999999",
    "0x0-0x9", ""])
def test_malformed_content_range_is_refused(api, repo, span):
    location = start_upload(api, repo)
    answer = api.patch(location, noise(10), {"Content-Range": span})
    # Some clients send RFC 9110's form, which names the same bytes.
    if span in ("bytes 0-9", "0-9/10", "") and answer.status == 202:
        return
    assert answer.status in (400, 416), answer
    assert upload(api, repo, location) == (204, 0)


@pytest.mark.parametrize("span", ["0-8", "0-10"])
def test_content_range_and_length_that_disagree_are_refused(api, repo, span):
    location = start_upload(api, repo)
    assert api.patch(location, noise(10), {"Content-Range": span}).status in (400, 416)
    assert upload(api, repo, location) == (204, 0)


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_unknown_session_is_404(api, repo, method):
    data = noise()
    push_blob(api, repo, data)
    target = f"/v2/{repo}/blobs/uploads/00000000-0000-4000-8000-000000000000"
    if method == "PUT":
        target += f"?digest={digest(data)}"
    body = data if method in ("PUT", "PATCH") else None
    refused(api.request(method, target, (), body), 404, "BLOB_UPLOAD_UNKNOWN")


def test_session_belongs_to_its_repository(api, repo):
    location = start_upload(api, repo)
    foreign = location.replace(f"/v2/{repo}/", f"/v2/{repo}-other/")
    assert api.get(foreign).status == 404
    assert api.patch(foreign, noise()).status == 404
    assert api.get(location).status == 204


# Digests

@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("way", ["post", "put", "chunks", "chunks and put", "stream"])
def test_wrong_digest_is_400_and_keeps_nothing(api, repo, algorithm, way):
    good, bad = noise(1000), noise(1000)
    name = digest(good, algorithm)
    if way == "post":
        answer = api.post(f"/v2/{repo}/blobs/uploads/?digest={name}", bad)
    else:
        location = start_upload(api, repo)
        rest = bad
        if way != "put":
            part = bad[:600] if way == "chunks and put" else bad
            rest = bad[len(part):]
            spans = {} if way == "stream" else {"Content-Range": f"0-{len(part) - 1}"}
            location = api.patch(location, part, spans, chunked=way == "stream")["Location"]
        answer = api.put(with_query(location, digest=name), rest)
    refused(answer, 400, "DIGEST_INVALID")
    for data in good, bad:
        assert api.head(f"/v2/{repo}/blobs/{digest(data, algorithm)}").status == 404


BAD_DIGESTS = [
    "", "sha256", "sha256:", "sha256:abc", "sha256:" + "A" * 64, "sha256:" + "a" * 63,
    "sha256:" + "a" * 65, "sha256:" + "g" * 64, "sha512:" + "a" * 64, "md5:" + "a" * 32,
    "tarsum.v1+sha256:" + "a" * 64, "a" * 64, ":" + "a" * 64, "sha256:../" + "a" * 61]


@pytest.mark.parametrize("name", BAD_DIGESTS)
def test_invalid_digest_of_a_put_is_400(api, repo, name):
    location = start_upload(api, repo)
    refused(api.put(with_query(location, digest=name), noise()), 400,
            "DIGEST_INVALID", "UNSUPPORTED")


@pytest.mark.parametrize("name", BAD_DIGESTS[1:])
def test_invalid_digest_of_a_post_is_400(api, repo, name):
    answer = api.post(f"/v2/{repo}/blobs/uploads/?digest={name}", noise())
    refused(answer, 400, "DIGEST_INVALID", "UNSUPPORTED")


def test_put_without_a_digest_is_400(api, repo):
    refused(api.put(start_upload(api, repo), noise()), 400, "DIGEST_INVALID", "BLOB_UPLOAD_INVALID")


# end-14

def test_cancel_ends_the_session(api, repo):
    location = api.patch(start_upload(api, repo), noise())["Location"]
    answer = api.delete(location)
    assert answer.status == 204
    refused(api.get(location), 404, "BLOB_UPLOAD_UNKNOWN")
    refused(api.patch(location, noise()), 404, "BLOB_UPLOAD_UNKNOWN")
    assert api.delete(location).status == 404


# end-11

@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_mount_from_another_repository(api, repo, algorithm):
    data = noise()
    name = push_blob(api, f"{repo}/source", data, algorithm)
    answer = api.post(f"/v2/{repo}/target/blobs/uploads/?mount={name}&from={repo}/source")
    assert answer.status == 201
    assert answer["Docker-Content-Digest"] in (name, None)
    got = api.get(answer["Location"])
    assert (got.status, got.body) == (200, data)
    assert api.get(f"/v2/{repo}/target/blobs/{name}").body == data


def test_mount_with_everything_percent_encoded(api, repo):
    data = noise()
    name = push_blob(api, f"{repo}/source", data)
    source = f"{repo}/source".replace("/", "%2F")
    answer = api.post(f"/v2/{repo}/target/blobs/uploads/"
                      f"?from={source}&mount={name.replace(':', '%3A')}")
    assert answer.status == 201


def test_mount_without_from_finds_the_blob_anywhere(api, repo):
    data = noise()
    name = push_blob(api, f"{repo}/source", data)
    answer = api.post(f"/v2/{repo}/target/blobs/uploads/?mount={name}")
    assert answer.status == 201
    assert api.get(answer["Location"]).body == data


@pytest.mark.parametrize("query", [
    "mount={absent}&from={repo}/source", "mount={absent}", "mount={name}&from={repo}/nowhere"])
def test_mount_that_is_not_possible_opens_a_session(api, repo, query):
    # Never 4xx: crane would try again for long, podman gives up.
    name = push_blob(api, f"{repo}/source", noise())
    data = noise()
    query = query.format(absent=digest(data), name=name, repo=repo)
    answer = api.post(f"/v2/{repo}/target/blobs/uploads/?{query}")
    if query.endswith("nowhere") and answer.status == 201:
        return  # found elsewhere, which the spec allows
    assert answer.status == 202
    answer = api.put(with_query(answer["Location"], digest=digest(data)), data)
    check_created(api, f"{repo}/target", answer, data, digest(data))


def test_mount_into_the_same_repository(api, repo):
    name = push_blob(api, repo, noise())
    assert api.post(f"/v2/{repo}/blobs/uploads/?mount={name}&from={repo}").status in (201, 202)


@pytest.mark.parametrize("query", ["mount=sha256:abc&from=x", "mount=&from=x",
                                   "mount=../x&from=../y", "mount=sha256&from=x",
                                   "mount=blake3:" + "a" * 64 + "&from=x",
                                   "mount=md5:" + "a" * 32])
def test_mount_of_an_invalid_digest_opens_a_session(api, repo, query):
    data = noise()
    location = start_upload(api, repo, f"?{query}")
    answer = api.put(with_query(location, digest=digest(data)), data)
    check_created(api, repo, answer, data, digest(data))


@pytest.mark.parametrize("source", ["../../{}", "{}/", "UPPER", "%00", "x" * 300])
def test_mount_from_an_illegal_name_opens_a_session(api, repo, source):
    name = push_blob(api, repo, noise())
    start_upload(api, f"{repo}/t", f"?mount={name}&from={source.format(repo)}")
    assert api.head(f"/v2/{repo}/t/blobs/{name}").status == 404


# Several at once

def test_two_sessions_for_the_same_blob_both_succeed(api, repo):
    data = noise()
    targets = [with_query(start_upload(api, repo), digest=digest(data)) for _ in range(2)]
    for target in targets:
        check_created(api, repo, api.put(target, data), data, digest(data))


def test_parallel_pushes_do_not_mix(shared, api, repo):
    blobs = [noise(400000 + i) for i in range(8)]
    failures = []

    def push(data):
        client = shared.client()
        try:
            location = start_upload(client, repo)
            for at in range(0, len(data), 100000):
                location = client.patch(location, data[at:at + 100000])["Location"]
            assert client.put(with_query(location, digest=digest(data))).status == 201
        except BaseException as failure:
            failures.append(failure)
        finally:
            client.close()

    threads = [threading.Thread(target=push, args=(b,)) for b in blobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for data in blobs:
        assert api.get(f"/v2/{repo}/blobs/{digest(data)}").body == data


def test_many_threads_push_the_same_blob(shared, api, repo):
    data = noise(100000)
    failures = []

    def push():
        client = shared.client()
        try:
            push_blob(client, repo, data)
        except BaseException as failure:
            failures.append(failure)
        finally:
            client.close()

    threads = [threading.Thread(target=push) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert api.get(f"/v2/{repo}/blobs/{digest(data)}").body == data


def test_two_clients_on_one_upload_the_second_gets_409(api, repo):
    data = noise(1000)
    location = start_upload(api, repo)
    with api.connect() as first:
        first.send(head("PATCH", location, {"Content-Length": "1000",
                                            "Expect": "100-continue"}, api.host))
        assert first.head().status == 100  # from here on the first one holds it
        first.send(data[:500])
        refused(api.patch(location, data), 409)
        refused(api.put(with_query(location, digest=digest(data)), data), 409)
        assert api.get(location).status in (204, 409)
        first.send(data[500:])
        answer = first.answer("PATCH")
        assert (answer.status, answer["Range"]) == (202, "0-999")
    answer = api.put(with_query(location, digest=digest(data)))
    check_created(api, repo, answer, data, digest(data))


def test_an_answered_request_has_let_go_of_the_upload(shared, repo):
    # The next one may come over another connection, to another worker.
    clients = [shared.client() for _ in range(4)]
    location = start_upload(clients[0], repo)
    for i in range(200):
        answer = clients[i % 4].patch(location, b"x" * 100)
        assert (answer.status, answer["Range"]) == (202, f"0-{i * 100 + 99}")
        assert clients[(i + 1) % 4].get(location).status == 204
    answer = clients[1].put(with_query(location, digest=digest(b"x" * 20000)))
    assert answer.status == 201
    for client in clients:
        client.close()


def test_upload_and_download_can_share_a_pipeline(api, repo):
    data = noise(1000)
    location = start_upload(api, repo)
    name = digest(data)
    with api.connect() as conn:
        conn.send(head("PATCH", location, {"Transfer-Encoding": "chunked"}, api.host)
                  + chunks(data, 100)
                  + head("PUT", with_query(location, digest=name), {"Content-Length": "0"},
                         api.host)
                  + head("GET", f"/v2/{repo}/blobs/{name}", (), api.host))
        assert conn.answer().status == 202
        assert conn.answer().status == 201
        assert conn.answer().body == data


@pytest.mark.parametrize("coding", [CHUNKED, {"Content-Length": "5"}])
def test_what_follows_a_body_may_come_with_its_end(dims, coding):
    # More than 64 KiB of the next request come in the segments of this one.
    server = dims("--workers", "1")
    data = noise(120000)
    location = start_upload(server.client(), "a")
    with server.connect() as conn:
        conn.send(head("PATCH", location, coding))
        assert conn.quiet()  # the server is reading the body now
        body = chunks(b"hello") if coding is CHUNKED else b"hello"
        target = with_query(location, digest=digest(b"hello" + data))
        with frozen(server.workers(1)[0]):
            conn.send(body + head("PUT", target, {"Content-Length": str(len(data))}) + data
                      + head("GET", "/v2/"))
        assert conn.answer("PATCH").status == 202
        assert conn.answer("PUT").status == 201
        assert conn.answer().status == 200

"""HTTP/1.1 as it should be: keep-alive, pipelines, chunks, Expect, methods."""

import re
import threading

import pytest

from oci import (digest, dump, image_of, make_image, noise, push_blob, push_manifest, put_manifest,
                 start_upload, with_query)
from server import frozen, running
from wire import Closed, Conn, chunks, head, refused, wait_until


@pytest.fixture
def conn(api):
    with api.connect() as conn:
        yield conn


# Connections

def test_connection_is_kept_alive(api, repo):
    image = make_image(api, repo)
    first = api.conn
    for target in ("/v2/", f"/v2/{repo}/manifests/latest", f"/v2/{repo}/manifests/absent",
                   "/nowhere", f"/v2/{repo}/blobs/{digest(image.config)}", f"/v2/{repo}/tags/list"):
        api.get(target)
        api.head(target)
        assert api.conn is first, target


def test_connection_close_is_honoured(conn):
    conn.send(head("GET", "/v2/", {"Connection": "close"}))
    answer = conn.answer()
    assert (answer.status, answer["Connection"].lower()) == (200, "close")
    conn.expect_close()


@pytest.mark.parametrize("value", ["Close", "keep-alive, close", "close, x", "CLOSE"])
def test_connection_options_are_a_list_without_case(conn, value):
    conn.send(head("GET", "/v2/", {"Connection": value}))
    assert conn.answer().status == 200
    conn.expect_close()


@pytest.mark.parametrize("values", [("x", "close"), ("keep-alive", "close"), ("close", "x"),
                                    ("keep-alive", "x, Close")])
def test_connection_options_may_come_in_several_headers(conn, values):
    conn.send(head("GET", "/v2/", [("Connection", v) for v in values]))
    answer = conn.answer()
    assert (answer.status, answer["Connection"].lower()) == (200, "close")
    conn.expect_close()


def test_http_1_0_closes_after_the_answer(conn):
    conn.send(head("GET", "/v2/", version="HTTP/1.0", host=None))
    assert conn.answer().status == 200
    conn.expect_close()


def test_http_1_0_gets_no_chunks(conn, api, repo):
    make_image(api, repo)
    conn.send(head("GET", f"/v2/{repo}/tags/list", version="HTTP/1.0"))
    answer = conn.answer()
    assert answer.status == 200 and answer["Transfer-Encoding"] is None


def test_http_1_0_keep_alive_when_asked(conn):
    for _ in range(2):
        conn.send(head("GET", "/v2/", {"Connection": "keep-alive"}, version="HTTP/1.0"))
        answer = conn.answer()
        assert answer.status == 200
        if (answer["Connection"] or "").lower() != "keep-alive":
            conn.expect_close()  # not offering it is just as good
            return


def test_pipelined_requests_are_answered_in_order(conn, api, repo):
    blobs = [noise(i * 100) for i in range(1, 20)]
    names = [push_blob(api, repo, b) for b in blobs]
    conn.send(b"".join(head("GET", f"/v2/{repo}/blobs/{n}", (), api.host) for n in names * 5))
    for data in blobs * 5:
        assert conn.answer().body == data


def test_pipeline_mixes_methods_bodies_and_errors(conn, api, repo):
    body = dump(image_of(noise()))
    length = {"Content-Length": str(len(body))}
    path = f"/v2/{repo}/manifests/v1"
    conn.send(head("PUT", path, length) + body + head("HEAD", path) + head("GET", path)
              + head("GET", "/nowhere") + head("DELETE", path) + head("GET", path)
              + head("PUT", path, {"Transfer-Encoding": "chunked"}) + chunks(body, 50)
              + head("GET", path))
    for method, status in [("PUT", 201), ("HEAD", 200), ("GET", 200), ("GET", 404), ("DELETE", 202),
                           ("GET", 404), ("PUT", 201), ("GET", 200)]:
        answer = conn.answer(method)
        assert answer.status == status
    assert answer.body == body


def test_bytes_may_come_one_at_a_time(conn, api, repo):
    body = dump(image_of(noise()))
    path = f"/v2/{repo}/manifests/v1"
    data = (head("PUT", path, {"Transfer-Encoding": "chunked"}, api.host) + chunks(body, 7)
            + head("GET", path, (), api.host))
    for i in range(len(data)):
        conn.send(data[i:i + 1])
    assert conn.answer("PUT").status == 201
    assert conn.answer().body == body


def test_empty_lines_before_a_request_are_ignored(conn):
    # RFC 9112 2.2: a server SHOULD ignore at least one.
    conn.send(b"\r\n" + head("GET", "/v2/") + b"\r\n" + head("GET", "/v2/"))
    assert conn.answer().status == 200
    assert conn.answer().status == 200


def test_empty_line_may_come_in_two_pieces(conn):
    conn.send(b"\r")
    assert conn.quiet()
    conn.send(b"\n" + head("GET", "/v2/"))
    assert conn.answer().status == 200
    conn.send(b"\r")
    assert conn.quiet()
    conn.send(b"\n\r")
    assert conn.quiet()
    conn.send(b"\n" + head("GET", "/v2/"))
    assert conn.answer().status == 200


def test_client_that_has_finished_sending_still_gets_its_answer(conn):
    conn.send(head("GET", "/v2/"))
    conn.finish()
    assert conn.answer().status == 200
    conn.expect_close()


def test_client_that_connects_and_leaves_does_no_harm(api):
    for data in b"", b"G", b"GET /v2/ HTTP/1.1\r\n", head("GET", "/v2/"):
        for leave in Conn.close, Conn.abort:
            conn = api.connect()
            conn.send(data)
            leave(conn)
    assert api.get("/v2/").status == 200


def test_slow_reader_does_not_hold_up_the_others(dims):
    server = dims("--workers", "1")
    client = server.client()
    data = noise(1 << 20) * 32
    name = push_blob(client, "a", data)
    with server.connect() as slow:
        slow.send(head("GET", f"/v2/a/blobs/{name}"))
        for _ in range(20):
            assert client.get("/v2/").status == 200
            assert client.head(f"/v2/a/blobs/{name}").status == 200
        assert slow.answer().body == data


def test_many_idle_connections_do_not_hold_up_the_others(shared, api):
    idle = [shared.connect() for _ in range(200)]
    for conn in idle[::2]:
        conn.send(b"GET /v2/ HT")
    for _ in range(20):
        assert api.get("/v2/").status == 200
    for conn in idle[::2]:
        conn.send(b"TP/1.1\r\nHost: x\r\n\r\n")
    for conn in idle[::2]:
        assert conn.answer().status == 200
    for conn in idle:
        conn.close()


# Headers and targets

def test_header_names_have_no_case_and_values_may_be_padded(conn, api, repo):
    body = dump(image_of(noise()))
    conn.send(f"PUT /v2/{repo}/manifests/v1 HTTP/1.1\r\nhOsT:x\r\n"
              f"CONTENT-LENGTH:\t {len(body)} \t\r\ncontent-type:application/json\r\n\r\n".encode()
              + body)
    assert conn.answer().status == 201


def test_header_values_may_hold_high_bytes(conn):
    conn.send(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Name: caf\xc3\xa9 \xff\r\nX-Empty:\r\n\r\n")
    assert conn.answer().status == 200


def test_absolute_target_means_the_same(conn, api):
    # RFC 9112 3.2.2: a server MUST accept it.
    conn.send(head("GET", f"http://{api.host}/v2/", (), api.host))
    assert conn.answer().status == 200


def test_higher_minor_version_is_answered_as_1_1_or_refused(conn):
    conn.send(head("GET", "/v2/", version="HTTP/1.2"))
    assert conn.answer().status in (200, 505)


def test_host_may_be_anything_that_is_a_host(conn):
    for host in "localhost", "registry.example.org:5000", "[::1]:80", "10.0.0.1":
        conn.send(head("GET", "/v2/", host=host))
        assert conn.answer().status == 200


# Chunked bodies

CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.mark.parametrize("coded", [
    b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    b"b\r\nhello world\r\n0\r\n\r\n",
    b"B\r\nhello world\r\n0\r\n\r\n",
    b"000000000000b\r\nhello world\r\n000\r\n\r\n",
    b"5;a=b\r\nhello\r\n6;x;y=\"z;\"\r\n world\r\n0;last\r\n\r\n",
    b"b\r\nhello world\r\n0\r\nX-Trailer: 1\r\nY: 2\r\n\r\n",
])
def test_chunks_with_extensions_and_trailers(conn, api, repo, coded):
    location = start_upload(api, repo)
    conn.send(head("PATCH", location, CHUNKED) + coded + head("GET", "/v2/"))
    answer = conn.answer("PATCH")
    assert (answer.status, answer["Range"]) == (202, "0-10")
    assert conn.answer().status == 200
    answer = api.put(with_query(location, digest=digest(b"hello world")))
    assert answer.status == 201


@pytest.mark.parametrize("value", ["Chunked", "CHUNKED", " chunked "])
def test_chunked_has_no_case(conn, api, repo, value):
    location = start_upload(api, repo)
    conn.send(head("PATCH", location, {"Transfer-Encoding": value}) + b"1\r\nx\r\n0\r\n\r\n")
    assert conn.answer("PATCH").status == 202


def test_trailers_do_not_become_headers(conn, api, repo):
    body = dump(image_of(noise()))
    conn.send(head("PUT", f"/v2/{repo}/manifests/v1", CHUNKED)
              + b"%x\r\n%s\r\n0\r\n" % (len(body), body)
              + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
              + head("GET", "/v2/"))
    assert conn.answer("PUT").status in (201, 400)
    if not conn.is_closed():
        assert conn.answer().status == 200


def test_tiny_chunks(conn, api, repo):
    data = noise(20000)
    location = start_upload(api, repo)
    conn.send(head("PATCH", location, CHUNKED) + chunks(data, 1))
    assert conn.answer("PATCH")["Range"] == "0-19999"
    assert api.put(with_query(location, digest=digest(data))).status == 201


def test_manifests_may_be_pipelined_in_chunks(dims):
    server = dims("--workers", "1")
    bodies = [dump(image_of(noise(), annotations={"x": "y" * n})) for n in (300000, 150000, 9)]
    with server.connect() as conn:
        conn.send(head("PUT", "/v2/a/manifests/v0", CHUNKED) + chunks(bodies[0])[:-10])
        assert conn.quiet()  # a large buffer is waiting for the end of the first
        with frozen(server.workers(1)[0]):
            conn.send(chunks(bodies[0])[-10:]
                      + head("PUT", "/v2/a/manifests/v1", CHUNKED) + chunks(bodies[1], 50000)
                      + head("PUT", "/v2/a/manifests/v2", CHUNKED) + chunks(bodies[2], 9)
                      + head("GET", "/v2/a/manifests/v1"))
        for body in bodies:
            answer = conn.answer("PUT")
            assert (answer.status, answer["Docker-Content-Digest"]) == (201, digest(body))
        assert conn.answer().body == bodies[1]


def test_stalled_manifests_do_not_hold_up_the_others(dims):
    server = dims("--workers", "1")
    client = server.client()
    stalled = [server.connect() for _ in range(20)]
    for conn in stalled:
        conn.send(head("PUT", "/v2/a/manifests/stalled", CHUNKED) + b"1\r\n{\r\n")
    assert all(conn.quiet(0.01) for conn in stalled)
    body = dump(image_of(noise(), annotations={"x": "y" * 100000}))
    for chunked in False, True:
        assert put_manifest(client, "a", "v1", body, chunked=chunked).status == 201
    for conn in stalled:
        conn.send(chunks(body[1:]))
        assert conn.answer("PUT").status == 201
        conn.close()


# Expect (RFC 9110 10.1.1)

def expecting(length, **more):
    return {"Expect": "100-continue", "Content-Length": str(length), **more}


@pytest.mark.parametrize("how", ["upload", "manifest"])
def test_continue_comes_before_the_body_is_sent(conn, api, repo, how):
    body = dump(image_of(noise()))
    if how == "upload":
        method, target, status = "PATCH", start_upload(api, repo), 202
    else:
        method, target, status = "PUT", f"/v2/{repo}/manifests/v1", 201
    conn.send(head(method, target, expecting(len(body))))
    assert conn.head().status == 100
    conn.send(body)
    answer = conn.answer(method)
    assert (answer.status, answer.interim) == (status, [])
    conn.send(head("GET", "/v2/"))
    assert conn.answer().status == 200


def test_continue_for_a_chunked_body(conn, api, repo):
    conn.send(head("PATCH", start_upload(api, repo), {"Expect": "100-Continue", **CHUNKED}))
    assert conn.head().status == 100
    conn.send(chunks(b"hello", 2))
    assert conn.answer("PATCH").status == 202


def test_body_that_comes_without_waiting_is_taken_too(conn, api, repo):
    conn.send(head("PATCH", start_upload(api, repo), expecting(5)) + b"hello")
    assert conn.answer("PATCH").status == 202


def test_no_continue_without_a_body(conn, api, repo):
    conn.send(head("POST", f"/v2/{repo}/blobs/uploads/", expecting(0)))
    answer = conn.answer("POST")
    assert (answer.status, answer.interim) == (202, [])


def test_http_1_0_gets_no_continue(conn, api, repo):
    conn.send(head("PATCH", start_upload(api, repo), expecting(5), version="HTTP/1.0"))
    assert conn.quiet()
    conn.send(b"hello")
    answer = conn.answer("PATCH")
    assert (answer.status, answer.interim) == (202, [])


def test_other_expectations_are_417(conn, api, repo):
    conn.send(head("PATCH", start_upload(api, repo), {"Expect": "tea", "Content-Length": "5"}))
    assert conn.answer("PATCH").status == 417


UNKNOWN = "/v2/{}/blobs/uploads/00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize("method, target, length, status", [
    ("PATCH", UNKNOWN, 5, 404),
    ("PUT", UNKNOWN + "?digest=" + digest(b"hello"), 5, 404),
    ("PUT", "/v2/{}/manifests/v1", 5 << 20, 413),
    ("PUT", "/v2/{}/tags/list", 5, 405),
    ("PUT", "/nowhere", 5, (404, 405)),
    ("POST", "/v2/{}/blobs/uploads/?digest=bad", 5, 400),
])
def test_refusal_instead_of_continue(conn, repo, method, target, length, status):
    conn.send(head(method, target.format(repo), expecting(length)))
    answer = conn.answer(method)
    assert answer.interim == []
    assert answer.status in (status if isinstance(status, tuple) else (status,))


# An answer that comes while the client is still sending

@pytest.mark.parametrize("method, target, status", [
    ("PATCH", UNKNOWN, 404),
    ("PUT", "/v2/{}/manifests/v1", 413),
    ("POST", "/v2/{}/blobs/uploads/?digest=bad", 400),
    ("POST", "/v2/{}/tags/list", 405),
])
@pytest.mark.parametrize("chunked", [False, True])
def test_early_answer_is_readable_by_a_client_that_sends_on(conn, repo, method, target, status,
                                                            chunked):
    if chunked and status == 413:
        status = (413, 411)
    body = bytes(1 << 20)
    fields = CHUNKED if chunked else {"Content-Length": str(len(body) * 16)}
    conn.send(head(method, target.format(repo), fields))
    part = b"100000\r\n" + body + b"\r\n" if chunked else body
    for _ in range(16):
        conn.send(part)  # a reset here would take the answer with it
    if chunked:
        conn.send(b"0\r\n\r\n")
    answer = conn.answer(method)
    assert answer.status in (status if isinstance(status, tuple) else (status,))


def test_small_unread_body_does_not_cost_the_connection_its_order(conn, repo):
    # Either the body is read away, or the connection closes; never is the
    # body taken for a request.
    trap = head("GET", "/trap")
    conn.send(head("PATCH", UNKNOWN.format(repo), {"Content-Length": str(len(trap))}) + trap
              + head("GET", "/v2/"))
    assert conn.answer("PATCH").status == 404
    try:
        assert conn.answer().status == 200
    except Closed:
        pass


# Methods

@pytest.mark.parametrize("target", ["/nope", "/v3/", "/v2", "/v2/x", "/v2/a/b", "/v2/a/manifests/",
                                    "/v2/a/blobs/",
                                    "/v2/a/tags/", "/v2/a/tags/list/", "/v2/a/nope/v1", "/v2//",
                                    "/favicon.ico"])
def test_unknown_path_is_404(api, target):
    answer = api.get(target)
    if target == "/v2":
        assert answer.status in (200, 301, 307, 308, 404)  # some servers redirect
    else:
        assert answer.status == 404, answer


ROUTES = [
    ("/v2/", {"GET", "HEAD"}),
    ("/v2/_catalog", {"GET", "HEAD"}),
    ("/v2/{}/tags/list", {"GET", "HEAD"}),
    ("/v2/{}/referrers/" + digest(b""), {"GET", "HEAD"}),
    ("/v2/{}/blobs/" + digest(b""), {"GET", "HEAD", "DELETE"}),
    ("/v2/{}/manifests/v1", {"GET", "HEAD", "PUT", "DELETE"}),
    ("/v2/{}/blobs/uploads/", {"POST"}),
    ("/v2/{}/blobs/uploads/00000000-0000-4000-8000-000000000000",
     {"GET", "PATCH", "PUT", "DELETE"}),
]


@pytest.mark.parametrize("target, methods", ROUTES, ids=[t for t, _ in ROUTES])
def test_wrong_method_is_405_with_allow(api, repo, target, methods):
    make_image(api, repo, "v1")
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} - methods:
        answer = api.request(method, target.format(repo))
        if method == "HEAD" and "GET" in methods:
            continue
        if answer.status == 404 and target.endswith("uploads/") and method in ("GET", "HEAD"):
            continue  # where there is nothing to read, 404 is as good
        assert answer.status == 405, (method, answer)
        allowed = {m.strip() for m in answer["Allow"].split(",")}
        assert methods - {"HEAD"} <= allowed, answer
        assert method not in allowed
        if method != "HEAD":
            refused(answer, 405, "UNSUPPORTED")


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "BREW", "get", "G", "X" * 100])
def test_unknown_method_is_refused(conn, method):
    conn.send(head(method, "/v2/"))
    assert conn.answer().status in (400, 405, 501)


@pytest.mark.parametrize("target", ["/v2/", "/", "/v2/a/tags/list", "/v2/a/manifests/v1", "*"])
def test_options_says_what_is_allowed(conn, target):
    conn.send(head("OPTIONS", target) + head("GET", "/v2/"))
    answer = conn.answer("OPTIONS")
    assert answer.status in (200, 204)
    if target != "*":
        assert "GET" in answer["Allow"] or "GET" in answer["Access-Control-Allow-Methods"]
    assert conn.answer().status == 200


def test_head_of_everything_has_no_body(conn, api, repo):
    make_image(api, repo)
    for target in ("/", "/v2/", "/v2/_catalog", f"/v2/{repo}/tags/list",
                   f"/v2/{repo}/manifests/latest", f"/v2/{repo}/manifests/absent", "/nowhere",
                   f"/v2/{repo}/referrers/{digest(b'')}"):
        conn.send(head("HEAD", target) + head("GET", target))
        got = conn.answer("HEAD")
        full = conn.answer("GET")
        assert got.status == full.status, target
        if got["Content-Length"] is not None and full["Content-Length"] is not None:
            assert got["Content-Length"] == full["Content-Length"], target


# Foreign pages

@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1",
                                    "http://localhost"])
@pytest.mark.parametrize("method, path", [
    ("POST", "blobs/uploads/"), ("PUT", "manifests/v2"), ("DELETE", "manifests/v1"),
    ("DELETE", "blobs/" + digest(b""))])
def test_change_from_a_foreign_origin_is_403(api, repo, origin, method, path):
    # Else any web page could empty a registry on loopback.
    make_image(api, repo, "v1")
    body = dump(image_of()) if method == "PUT" else None
    answer = api.request(method, f"/v2/{repo}/{path}", {"Origin": origin}, body)
    refused(answer, 403, "DENIED")
    assert api.get(f"/v2/{repo}/tags/list").json()["tags"] == ["v1"]


def test_change_from_the_own_origin_is_allowed(api, repo):
    answer = put_manifest(api, repo, "v1", image_of())
    assert answer.status == 201
    assert api.request("DELETE", f"/v2/{repo}/manifests/v1",
                       {"Origin": f"http://{api.host}"}).status == 202


def test_reading_is_allowed_from_anywhere_but_not_shown_to_the_page(api, repo):
    make_image(api, repo)
    answer = api.get(f"/v2/{repo}/manifests/latest", {"Origin": "https://evil.example"})
    assert answer.status == 200
    assert answer["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize("value", ["on", "off"])
def test_cors_lets_pages_read_what_is_not_the_registry(dims, value):
    client = dims("--cors", value).client()
    page = {"Origin": "https://page.example"}
    asked = {**page, "Access-Control-Request-Method": "GET"}
    allowed = client.get("/", page)["Access-Control-Allow-Origin"]
    assert (allowed in ("*", "https://page.example")) == (value == "on")
    answer = client.request("OPTIONS", "/", asked)
    assert answer.status in (200, 204)
    assert (answer["Access-Control-Allow-Origin"] is not None) == (value == "on")
    assert client.get("/v2/", page)["Access-Control-Allow-Origin"] is None
    for method in "PUT", "DELETE", "POST":
        answer = client.request("OPTIONS", "/v2/a/manifests/v1",
                                {**page, "Access-Control-Request-Method": method})
        assert answer["Access-Control-Allow-Origin"] is None


# Listeners

def test_ipv6_loopback_shares_the_port(dims):
    server = dims()
    url = server.ready_line()
    assert url == f"http://[::1]:{server.port}"
    image = make_image(server.client(), "a")
    assert server.client(url).get("/v2/a/manifests/latest").body == image.manifest


def test_unix_socket(dims, tmp_path):
    path = str(tmp_path / "s")
    server = dims("--listen", f"unix:{path}", port=None)
    assert server.urls == [f"unix:{path}"]
    client = server.client()
    image = make_image(client, "a")
    assert client.get("/v2/a/manifests/latest").body == image.manifest


@pytest.mark.parametrize("crash", [False, True])
def test_unix_socket_of_a_server_that_is_gone_is_taken_over(dims, tmp_path, crash):
    path = str(tmp_path / "s")
    first = dims("--listen", f"unix:{path}", port=None)
    first.kill() if crash else first.stop()
    assert dims("--listen", f"unix:{path}", port=None).client().get("/v2/").status == 200


def test_several_listeners(dims, tmp_path):
    path = str(tmp_path / "s")
    server = dims("--listen", "127.0.0.1:0", "--listen", f"unix:{path}", "--listen", "[::1]:0",
                  port=None)
    urls = [server.urls[0], server.ready_line(), server.ready_line()]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", urls[0])
    assert urls[1] == f"unix:{path}"
    assert re.fullmatch(r"http://\[::1\]:\d+", urls[2])
    for url in urls:
        assert server.client(url).get("/v2/").status == 200


# Load

def test_parallel_pulls_are_all_right(shared, api, repo):
    data = noise(3 << 20)
    name = push_blob(api, repo, data)
    good = []

    def pull():
        client = shared.client()
        good.append(all(client.get(f"/v2/{repo}/blobs/{name}").body == data for _ in range(4)))
        client.close()

    threads = [threading.Thread(target=pull) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 8


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_any_number_of_workers_serves(dims, workers):
    server = dims("--workers", workers)
    wait_until(lambda: len(server.children()) == workers, "the workers")
    for _ in range(workers * 2):
        client = server.client()
        name = push_manifest(client, "a", "v1", image_of(noise()))
        assert client.get(f"/v2/a/manifests/{name}").status == 200


def test_connections_over_the_limit_wait_or_are_refused_and_the_server_lives(dims):
    server = dims("--workers", "1", "--max-connections", "8")
    server.expect_stderr(r"conn", required=False)
    held = []
    for _ in range(8):
        conn = server.connect()
        conn.send_some(head("GET", "/v2/"))
        held.append(conn)
    extra = [server.connect() for _ in range(4)]
    for conn in extra:
        conn.send_some(head("GET", "/v2/"))
    served = 0
    for conn in held[:6]:
        served += conn.answer().status == 200
    assert served == 6
    for conn in held + extra:
        conn.close()
    wait_until(lambda: server.client().get("/v2/").status == 200, "service after the crowd")


@pytest.fixture(scope="module")
def tight(tmp_path_factory):
    with running(tmp_path_factory.mktemp("tight"), "--max-blob", "1M") as server:
        yield server


@pytest.mark.parametrize("chunked", [False, True])
def test_blob_over_the_limit_is_413_while_the_client_sends_on(tight, chunked):
    client = tight.client()
    location = start_upload(client, "a")
    with tight.connect() as conn:
        body = bytes(1 << 20)
        fields = CHUNKED if chunked else {"Content-Length": str(8 << 20)}
        conn.send(head("PATCH", location, fields))
        for _ in range(8):
            conn.send(b"100000\r\n" + body + b"\r\n" if chunked else body)
        if chunked:
            conn.send(b"0\r\n\r\n")
        assert conn.answer("PATCH").status == 413


@pytest.mark.parametrize("target", ["{location}",
                                    "/v2/a/blobs/uploads/?digest=" + digest(bytes(1 << 21))])
def test_blob_over_the_limit_is_413_instead_of_continue(tight, target):
    location = start_upload(tight.client(), "a")
    method = "PATCH" if target == "{location}" else "POST"
    with tight.connect() as conn:
        conn.send(head(method, target.format(location=location), expecting(2 << 20)))
        answer = conn.answer(method)
        assert (answer.status, answer.interim) == (413, [])

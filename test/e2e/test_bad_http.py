"""Malformed and ambiguous requests (RFC 9112): one answer, then the connection
closes, and what follows on it is never taken for a request."""

import pytest

from oci import digest, dump, image_of, noise, start_upload
from wire import head

# Would be answered with 200 if the server lost its place.
SMUGGLED = b"GET /v2/ HTTP/1.1\r\nHost: smuggled\r\n\r\n"


def check_refused(api, raw, statuses=(400,), more=SMUGGLED, half_close=False):
    with api.connect() as conn:
        conn.send_some(raw + more)
        if half_close:
            conn.finish()
        answer = conn.answer()
        assert answer.status in statuses, answer
        assert answer.interim == []
        conn.expect_close()
    assert api.get("/v2/").status == 200


def lines(*fields, request="GET /v2/ HTTP/1.1"):
    return b"\r\n".join(f if isinstance(f, bytes) else f.encode("latin-1")
                        for f in (request, *fields, "", ""))


# The request line

@pytest.mark.parametrize("request_line", [
    "GET /v2/", "GET", "GET  /v2/ HTTP/1.1", "GET /v2/  HTTP/1.1", " GET /v2/ HTTP/1.1",
    "GET /v2/ HTTP/1.1 ",
    "GET\t/v2/\tHTTP/1.1", "GET /v2/ x HTTP/1.1", "GET v2/ HTTP/1.1", "GET  HTTP/1.1",
    "G\x00T /v2/ HTTP/1.1",
    "GET /v2/\x00 HTTP/1.1", "GET /v2/\x7f HTTP/1.1", "GET /v2/\x01 HTTP/1.1", "G(T /v2/ HTTP/1.1",
    "GET /v2/ http/1.1",
    "GET /v2/ HTTP/1.1x", "GET /v2/ HTTP/1", "GET /v2/ HTTP/11", "GET /v2/ HTTP/1.",
    "GET /v2/ HTTP/01.1",
    "GET /v2/ HTTP/1.10", "GET /v2/ FTP/1.1", "GET /v2/ HTTP/ 1.1", "GET /v2/ HTTP/-1.1",
    "GET /v2/#x HTTP/1.1", "\x16\x03\x01",
    ": x", "GET /v2/ HTTP/2.0", "GET /v2/ HTTP/0.9", "PRI * HTTP/2.0",
])
def test_malformed_request_line(api, request_line):
    check_refused(api, lines("Host: x", request=request_line), (400, 404, 405, 501, 505))


def test_raw_high_bytes_in_the_target(api):
    with api.connect() as conn:
        conn.send(lines("Host: x", request="GET /v2/\xc3\xa9/tags/list HTTP/1.1"))
        assert conn.answer().status in (400, 404)


def test_tls_on_a_plain_port(api):
    check_refused(api, bytes.fromhex("16030100a5010000a10303") + bytes(160) + b"\n\n", more=b"")


# Headers

@pytest.mark.parametrize("field", [
    b" Folded: x", b"\tFolded: x", b"X: 1\r\n folded", b"X: 1\r\n\tfolded", b"X : 1", b"X\t: 1",
    b": 1", b"novalue", b"X Y: 1",
    b"X: a\x00b", b"X\x00: 1", b"X: a\rb", b"\rX: 1", b"X: a\r", b"X(: 1", b"X\xe9: 1", b"X: \x01",
    b"X: \x7f", b'"X": 1', b"X:\x0b1",
    b"Transfer-Encoding\x0b: chunked", b"Content-Length\xa0: 5", b" ",
])
def test_malformed_header(api, field):
    check_refused(api, lines("Host: x", field))


@pytest.mark.parametrize("raw", [
    b"GET /v2/ HTTP/1.1\nHost: x\r\n\r\n", b"GET /v2/ HTTP/1.1\r\nHost: x\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\n", b"GET /v2/ HTTP/1.1\nHost: x\n\n",
    b"\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /v2/ HTTP/1.1\r\nX: 1\nHost: x\r\n\r\n",
])
def test_bare_line_feed(api, raw):
    check_refused(api, raw)


@pytest.mark.parametrize("raw", [
    b"GET /v2/ HTTP/1.1\rHost: x\r\n\r\n", b"GET /v2/ HTTP/1.1\r\nHost: x\r\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: 1\rY: 2\r\n\r\n",
    b"GET /v2/\r HTTP/1.1\r\nHost: x\r\n\r\n",
])
def test_bare_carriage_return(api, raw):
    check_refused(api, raw)


@pytest.mark.parametrize("fields", [
    [], ["Host: x", "Host: x"], ["Host: x", "Host: y"], ["Host: x", "hOST: x"], ["Host: a b"],
    ["Host: a/b"], ["Host: x,y"], ["Host: x@y"], ["Host: x:port"],
], ids=str)
def test_missing_double_or_invalid_host(api, fields):
    check_refused(api, lines(*fields))


def test_huge_header(api):
    check_refused(api, lines("Host: x", "X: " + "y" * (1 << 20)), (400, 431))


def test_too_many_headers(api):
    check_refused(api, lines("Host: x", *[f"X-{i}: y" for i in range(20000)]), (400, 431))


def test_huge_target(api):
    check_refused(api, lines("Host: x", request=f"GET /v2/{'x' * (1 << 20)} HTTP/1.1"),
                  (400, 414, 431))


def test_huge_method(api):
    check_refused(api, lines("Host: x", request=f"{'X' * (1 << 20)} / HTTP/1.1"),
                  (400, 405, 414, 431, 501))


@pytest.mark.parametrize("opening, unit", [
    (b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ", b"y" * 4096),
    (b"GET /v2/ HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n" * 700),
    (b"GET /", b"y" * 4096),
    (b"", b"y" * 4096),
])
def test_endless_head_is_cut_off(api, opening, unit):
    with api.connect() as conn:
        conn.send(opening)
        for _ in range(256):
            if not conn.send_some(unit):
                break
        answer = conn.answer()
        assert answer.status in (400, 414, 431)


def test_endless_empty_lines_are_cut_off_or_ignored(api):
    with api.connect() as conn:
        for _ in range(64):
            if not conn.send_some(b"\r\n" * 2048):
                break
        conn.send_some(SMUGGLED)
        assert conn.answer().status in (200, 400, 431)


# Lengths

PATCH = "PATCH {} HTTP/1.1"


@pytest.fixture
def patch(api, repo):
    """PATCH to a live upload with the fields given."""
    location = start_upload(api, repo)

    def build(*fields):
        return lines("Host: x", *fields, request=PATCH.format(location))

    yield build
    # Nothing of what was refused may have got into the upload.
    assert api.get(location)["Range"] == "0-0"


@pytest.mark.parametrize("value", [
    "-1", "+5", "5 5", "0x5", "5a", "a", "5.0", "1e1", "", "99999999999999999999999",
    "18446744073709551621",
    "9223372036854775808", "4294967301x", "\u00b2", "5,6", "5, 6", "-0", "'5'", "5;",
])
def test_malformed_content_length(api, patch, value):
    check_refused(api, patch(f"Content-Length: {value}"), (400, 413))


@pytest.mark.parametrize("fields", [
    ["Content-Length: 5", "Content-Length: 6"], ["Content-Length: 5", "Content-Length: 5"],
    ["Content-Length: 0", "Content-Length: 35"], ["Content-Length: 5, 5"],
    ["content-length: 5", "CONTENT-LENGTH: 5"],
], ids=str)
def test_two_content_lengths(api, patch, fields):
    check_refused(api, patch(*fields))


@pytest.mark.parametrize("fields", [
    ["Content-Length: 5", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Content-Length: 5"],
    ["Content-Length: 0", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: identity", "Content-Length: 0"],
    ["Transfer-Encoding: x", "Content-Length: 5"],
], ids=str)
def test_content_length_beside_transfer_encoding(api, patch, fields):
    check_refused(api, patch(*fields) + b"0\r\n\r\n", (400, 501))


@pytest.mark.parametrize("fields", [
    ["Transfer-Encoding: gzip"], ["Transfer-Encoding: gzip, chunked"],
    ["Transfer-Encoding: chunked, gzip"],
    ["Transfer-Encoding: chunked, chunked"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"], ["Transfer-Encoding: identity"],
    ["Transfer-Encoding: xchunked"], ["Transfer-Encoding: chunkedx"],
    ["Transfer-Encoding: chunked;q=1"],
    ["Transfer-Encoding: 'chunked'"], ["Transfer-Encoding:"], ["Transfer-Encoding: ,"],
], ids=str)
def test_transfer_encoding_other_than_chunked(api, patch, fields):
    check_refused(api, patch(*fields) + b"0\r\n\r\n", (400, 501))


def test_http_1_0_with_chunks_closes(api, repo):
    # RFC 9112 6.1: the framing is to be treated as faulty.
    location = start_upload(api, repo)
    with api.connect() as conn:
        conn.send(lines("Host: x", "Transfer-Encoding: chunked",
                        request=f"PATCH {location} HTTP/1.0")
                  + b"0\r\n\r\n" + SMUGGLED)
        assert conn.answer("PATCH").status in (202, 400, 501)
        conn.expect_close()


def test_body_of_a_get_is_not_taken_for_a_request(api):
    trap = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    with api.connect() as conn:
        conn.send(head("GET", "/v2/", {"Content-Length": str(len(trap))}) + trap)
        answer = conn.answer()
        assert answer.status in (200, 400, 413)
        if not conn.is_closed():
            conn.send_some(head("GET", "/v2/", {"Connection": "close"}))
            assert b"404" not in conn.rest()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_body_without_a_length_is_no_body(api, repo, method):
    # RFC 9112 6.3: without either header a request has none.
    target = start_upload(api, repo) if method != "POST" else f"/v2/{repo}/blobs/uploads/"
    with api.connect() as conn:
        conn.send(head(method, target) + head("GET", "/v2/"))
        assert conn.answer(method).status in (202, 400, 411)
        if not conn.is_closed():
            assert conn.answer().status == 200


# Chunks

@pytest.mark.parametrize("coded", [
    b"-1\r\n", b"+5\r\nhello\r\n", b"0x5\r\nhello\r\n", b" 5\r\nhello\r\n", b"g\r\n", b"\r\n",
    b"5h\r\nhello\r\n", b"ffffffffffffffff\r\n", b"10000000000000005\r\nhello\r\n",
    b"fffffffffffffffffffffffffffffff0\r\n",
    b"8000000000000000\r\nhello\r\n", b"5\nhello\r\n", b"5\r\nhello\n", b"5\r\nhelloX\r\n",
    b"5\r\nhelloworld\r\n",
    b"5\rhello\r\n", b"5\r\nhello\r\r\n", b";a=b\r\nhello\r\n", b"5;a\nb\r\nhello\r\n",
    b"5;a\rb\r\nhello\r\n",
    b"5;\x00\r\nhello\r\n", b"5,\r\nhello\r\n", b"5 5\r\nhello\r\n", b"\xb5\r\nhello\r\n",
    b"5;" + b"x" * 100000 + b"\r\nhello\r\n", b"0" * 100000 + b"5\r\nhello\r\n", b"zz\r\n",
], ids=lambda b: repr(b[:24]))
def test_malformed_chunk(api, repo, coded):
    location = start_upload(api, repo)
    # An upload keeps what came before the fault, so this one begins with it.
    check_refused(api, lines("Host: x", "Transfer-Encoding: chunked",
                             request=PATCH.format(location))
                  + coded + b"0\r\n\r\n", (400, 413, 431))


@pytest.mark.parametrize("trailer", [
    b"X: 1\n\r\n", b" folded: 1\r\n\r\n", b"X : 1\r\n\r\n", b"nocolon\r\n\r\n", b"X: \x00\r\n\r\n",
    b"X: 1\rY: 2\r\n\r\n", b"\n",
    b"X: " + b"y" * 200000 + b"\r\n\r\n", b"X: y\r\n" * 20000 + b"\r\n",
], ids=lambda b: repr(b[:24]))
def test_malformed_trailer(api, repo, trailer):
    body = dump(image_of(noise()))
    target = f"PUT /v2/{repo}/manifests/v1 HTTP/1.1"
    raw = lines("Host: x", "Transfer-Encoding: chunked", request=target)
    raw += b"%x\r\n%s\r\n0\r\n" % (len(body), body) + trailer
    check_refused(api, raw, (400, 413, 431))
    assert api.get(f"/v2/{repo}/manifests/v1").status == 404


def test_fault_after_good_chunks_keeps_what_arrived(api, repo):
    location = start_upload(api, repo)
    check_refused(api, lines("Host: x", "Transfer-Encoding: chunked",
                             request=PATCH.format(location))
                  + b"5\r\nhello\r\nzz\r\n")
    assert api.get(location)["Range"] in ("0-4", "0-0")


# Truncated bodies

@pytest.mark.parametrize("fields, body", [
    ("Content-Length: 100", b"{}"), ("Content-Length: 100", b""),
    ("Transfer-Encoding: chunked", b"5\r\nhel"),
    ("Transfer-Encoding: chunked", b"5\r\nhello\r\n"), ("Transfer-Encoding: chunked", b"5"),
    ("Transfer-Encoding: chunked", b"0\r\n"), ("Transfer-Encoding: chunked", b""),
])
def test_truncated_manifest(api, repo, fields, body):
    raw = lines("Host: x", fields, request=f"PUT /v2/{repo}/manifests/v1 HTTP/1.1") + body
    check_refused(api, raw, more=b"", half_close=True)
    assert api.get(f"/v2/{repo}/manifests/v1").status == 404


@pytest.mark.parametrize("fields, body", [
    ("Content-Length: 100", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n")])
def test_truncated_upload(api, repo, fields, body):
    location = start_upload(api, repo)
    raw = lines("Host: x", fields, request=PATCH.format(location)) + body
    check_refused(api, raw, more=b"", half_close=True)


def test_truncated_single_post_stores_nothing(api, repo):
    data = noise(100)
    raw = lines("Host: x", "Content-Length: 200",
                request=f"POST /v2/{repo}/blobs/uploads/?digest={digest(data)} HTTP/1.1") + data
    check_refused(api, raw, more=b"", half_close=True)
    assert api.head(f"/v2/{repo}/blobs/{digest(data)}").status == 404


@pytest.mark.parametrize("raw", [b"GET /v2/ HTTP/1.1\r\nHost: x\r\n", b"GET /v2/ HT", b"G"])
def test_truncated_head_gets_400_or_nothing(api, raw):
    with api.connect() as conn:
        conn.send(raw)
        conn.finish()
        assert conn.rest()[:12] in (b"", b"HTTP/1.1 400")

"""Pull: end-1, end-2 and end-3, ranges and conditional requests."""

import re

import pytest

from oci import (EMPTY, IMAGE, check_image, digest, dump, image_of, make_image, noise,
                 push_blob, push_manifest)
from wire import refused

BLOB = noise(2048)


@pytest.fixture
def blob(api, repo):
    return f"/v2/{repo}/blobs/{push_blob(api, repo, BLOB)}"


@pytest.fixture
def image(api, repo):
    return make_image(api, repo)


# end-1

@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_v2_root_says_that_the_api_is_here(api, method):
    answer = api.request(method, "/v2/")
    assert answer.status == 200
    assert answer["Docker-Distribution-API-Version"] == "registry/2.0"


def test_root_page_answers_200_because_probes_use_it(api):
    assert api.get("/").status == 200


def test_answers_carry_a_date(api):
    # RFC 9110 6.6.1: an origin server with a clock MUST send Date.
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", api.get("/v2/")["Date"])


# end-2

def test_blob_get_returns_the_bytes_with_digest_and_length(api, blob):
    answer = api.get(blob)
    assert (answer.status, answer.body) == (200, BLOB)
    assert answer["Docker-Content-Digest"] == digest(BLOB)
    assert answer["Content-Length"] == "2048"
    assert answer["Content-Type"] == "application/octet-stream"
    assert answer["Accept-Ranges"] == "bytes"


def test_blob_head_has_the_headers_of_get_and_no_body(api, blob):
    answer = api.head(blob)
    assert answer.status == 200
    assert answer["Docker-Content-Digest"] == digest(BLOB)
    assert answer["Content-Length"] == "2048"
    assert answer["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_missing_blob_is_404_blob_unknown(api, repo, method):
    push_blob(api, repo, noise())
    answer = api.request(method, f"/v2/{repo}/blobs/{digest(noise())}")
    assert answer.status == 404
    if method == "GET":
        refused(answer, 404, "BLOB_UNKNOWN")


def test_blob_of_an_unknown_repository_is_404(api, repo):
    refused(api.get(f"/v2/{repo}/blobs/{digest(BLOB)}"), 404, "BLOB_UNKNOWN", "NAME_UNKNOWN")


def test_blob_is_only_served_by_the_repository_that_holds_it(api, repo, blob):
    assert api.get(blob).status == 200
    assert api.get(f"/v2/{repo}/other/blobs/{digest(BLOB)}").status == 404


def test_empty_blob_is_served_with_length_zero(api, repo):
    name = push_blob(api, repo, b"")
    for method in "GET", "HEAD":
        answer = api.request(method, f"/v2/{repo}/blobs/{name}")
        assert (answer.status, answer.body) == (200, b"")
        assert answer["Content-Length"] == "0"
        assert answer["Docker-Content-Digest"] == name


def test_large_blob_arrives_whole(api, repo):
    data = noise(1 << 20) * 24 + b"end"
    name = push_blob(api, repo, data)
    assert api.get(f"/v2/{repo}/blobs/{name}").body == data


def test_blob_is_never_content_encoded(api, repo):
    data = b"a" * 100000
    name = push_blob(api, repo, data)
    answer = api.get(f"/v2/{repo}/blobs/{name}", {"Accept-Encoding": "gzip, deflate, br, zstd"})
    assert answer["Content-Encoding"] is None
    assert answer.body == data


def test_blob_by_sha512(api, repo):
    data = noise()
    name = push_blob(api, repo, data, "sha512")
    answer = api.get(f"/v2/{repo}/blobs/{name}")
    assert (answer.status, answer.body) == (200, data)
    assert answer["Docker-Content-Digest"] == name


def test_ns_parameter_of_a_mirror_request_does_no_harm(api, repo, image):
    answer = api.get(f"/v2/{repo}/manifests/latest?ns=registry.example.org")
    assert (answer.status, answer.body) == (200, image.manifest)
    layer = digest(image.layers[0])
    assert api.get(f"/v2/{repo}/blobs/{layer}?ns=registry.example.org").body == image.layers[0]


# Ranges: RFC 9110 section 14, and what the conformance program asks for

@pytest.mark.parametrize("wanted, first, last", [
    ("500-1499", 500, 1499),
    ("500-", 500, 2047),
    ("-500", 1548, 2047),
    ("2000-5000", 2000, 2047),
    ("0-0", 0, 0),
    ("2047-2047", 2047, 2047),
    ("0-2047", 0, 2047),
    ("0-99999999999", 0, 2047),
])
def test_range_gives_206_with_exact_content_range(api, blob, wanted, first, last):
    answer = api.get(blob, {"Range": f"bytes={wanted}"})
    assert answer.status == 206
    assert answer["Content-Range"] == f"bytes {first}-{last}/2048"
    assert answer["Content-Length"] == str(last - first + 1)
    assert answer["Docker-Content-Digest"] == digest(BLOB)
    assert answer.body == BLOB[first:last + 1]


def test_suffix_range_longer_than_the_blob_gives_all_of_it(api, blob):
    answer = api.get(blob, {"Range": "bytes=-5000"})
    assert answer.status in (200, 206)
    assert answer.body == BLOB


@pytest.mark.parametrize("wanted", [
    "5000-10000", "2048-", "2048-2048", "-0",
    "500-0",  # malformed by RFC 9110, but the conformance program wants 416
])
def test_range_outside_of_the_blob_is_416_with_its_size(api, blob, wanted):
    answer = api.get(blob, {"Range": f"bytes={wanted}"})
    assert answer.status == 416
    assert answer["Content-Range"] == "bytes */2048"


@pytest.mark.parametrize("value", ["items=0-1", "octets=0-9"])
def test_unknown_range_unit_is_ignored(api, blob, value):
    answer = api.get(blob, {"Range": value})
    assert (answer.status, answer.body) == (200, BLOB)


@pytest.mark.parametrize("value", [
    "bytes=", "bytes=abc", "bytes=1", "bytes=--1", "bytes=1-2-3", "bytes", "bytes=0x1-2",
    "bytes=+1-2", "bytes=,", "bytes 0-1"])
def test_malformed_range_is_ignored_or_refused(api, blob, value):
    answer = api.get(blob, {"Range": value})
    assert answer.status in (200, 400, 416)
    assert answer.status != 200 or answer.body == BLOB


@pytest.mark.parametrize("value", [
    "bytes=0-99999999999999999999", "bytes=-99999999999999999999", "bytes=99999999999999999999-",
    "bytes=18446744073709551616-18446744073709551617"])
def test_range_numbers_that_overflow_do_not_wrap(api, blob, value):
    answer = api.get(blob, {"Range": value})
    assert answer.status in (200, 206, 400, 416)
    assert answer.status not in (200, 206) or answer.body == BLOB


def test_head_ignores_range(api, blob):
    # RFC 9110 14.2: only GET has ranges.
    answer = api.head(blob, {"Range": "bytes=0-9"})
    assert answer.status == 200
    assert answer["Content-Length"] == "2048"


def test_range_of_the_empty_blob_cannot_be_satisfied(api, repo):
    name = push_blob(api, repo, b"")
    answer = api.get(f"/v2/{repo}/blobs/{name}", {"Range": "bytes=0-0"})
    assert answer.status == 416
    assert answer["Content-Range"] == "bytes */0"


def check_parts(answer, wanted):
    assert answer.status == 206
    assert answer["Content-Range"] is None  # RFC 9110 15.3.7.2: only in the parts
    parts = answer.parts()
    assert [p[0]["content-range"] for p in parts] == [
        f"bytes {first}-{last}/2048" for first, last in wanted]
    for (first, last), (fields, body) in zip(wanted, parts):
        assert body == BLOB[first:last + 1]
        assert fields.get("content-type", "application/octet-stream") == "application/octet-stream"


def test_several_ranges_come_as_multipart_byteranges(api, blob):
    answer = api.get(blob, {"Range": "bytes=0-9,100-199,-5"})
    check_parts(answer, [(0, 9), (100, 199), (2043, 2047)])


def test_several_ranges_may_be_written_with_blanks(api, blob):
    answer = api.get(blob, {"Range": "bytes=0-9 , 100-199,\t300-300"})
    check_parts(answer, [(0, 9), (100, 199), (300, 300)])


def test_of_several_ranges_those_outside_of_the_blob_are_left_out(api, blob):
    answer = api.get(blob, {"Range": "bytes=0-9,5000-6000,20-29"})
    check_parts(answer, [(0, 9), (20, 29)])


def test_several_ranges_all_outside_of_the_blob_are_416(api, blob):
    answer = api.get(blob, {"Range": "bytes=3000-3001,5000-6000"})
    assert answer.status == 416
    assert answer["Content-Range"] == "bytes */2048"


def test_many_overlapping_ranges_do_not_multiply_the_answer(api, blob):
    answer = api.get(blob, {"Range": "bytes=" + ",".join(["0-"] * 500)})
    assert answer.status in (200, 206, 400, 416)
    assert len(answer.body) < 20 * len(BLOB)


def test_connection_goes_on_after_a_multipart_answer(api, blob):
    api.get(blob, {"Range": "bytes=0-9,100-199"})
    conn = api.conn
    assert api.get(blob).body == BLOB
    assert api.conn is conn


@pytest.mark.parametrize("same, status", [(True, 206), (False, 200)])
def test_if_range_decides_between_the_part_and_the_whole(api, blob, same, status):
    etag = api.head(blob)["ETag"] if same else '"something else"'
    answer = api.get(blob, {"Range": "bytes=0-9", "If-Range": etag})
    assert answer.status == status
    assert answer.body == (BLOB[:10] if same else BLOB)


# end-3

@pytest.mark.parametrize("by", ["tag", "digest"])
def test_manifest_get_returns_the_bytes_as_pushed(api, repo, image, by):
    reference = "latest" if by == "tag" else image.digest
    answer = api.get(f"/v2/{repo}/manifests/{reference}")
    assert (answer.status, answer.body) == (200, image.manifest)
    assert answer["Content-Type"] == IMAGE
    assert answer["Content-Length"] == str(len(image.manifest))
    assert answer["Docker-Content-Digest"] == image.digest


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_manifest_head_has_type_length_and_digest(api, repo, image, by):
    reference = "latest" if by == "tag" else image.digest
    answer = api.head(f"/v2/{repo}/manifests/{reference}")
    assert answer.status == 200
    assert answer["Content-Type"] == IMAGE
    assert answer["Content-Length"] == str(len(image.manifest))
    assert answer["Docker-Content-Digest"] == image.digest


def test_image_is_pulled_whole(api, repo, image):
    check_image(api, repo, "latest", image)


@pytest.mark.parametrize("reference", ["absent", digest(b"absent")])
def test_missing_manifest_is_404_manifest_unknown(api, repo, image, reference):
    # containers/image looks for signatures this way and wants this very code.
    refused(api.get(f"/v2/{repo}/manifests/{reference}"), 404, "MANIFEST_UNKNOWN")
    assert api.head(f"/v2/{repo}/manifests/{reference}").status == 404


@pytest.mark.parametrize("reference", ["latest", digest(b"absent")])
def test_manifest_of_an_unknown_repository_is_404(api, repo, reference):
    refused(api.get(f"/v2/{repo}/manifests/{reference}"), 404, "NAME_UNKNOWN", "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("reference", [
    "sha256:baddigeststring", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65,
    "md5:" + "a" * 32, "sha512:" + "a" * 64])
def test_manifest_by_an_invalid_digest_is_400_or_404(api, repo, image, reference):
    refused(api.get(f"/v2/{repo}/manifests/{reference}"), (400, 404))


@pytest.mark.parametrize("accept", [
    "application/vnd.docker.distribution.manifest.v2+json", "text/html", f"{IMAGE}, */*", "*/*"])
def test_manifest_is_never_converted_by_accept(api, repo, image, accept):
    answer = api.get(f"/v2/{repo}/manifests/latest", {"Accept": accept})
    assert (answer.status, answer.body) == (200, image.manifest)
    assert answer["Content-Type"] == IMAGE


def test_manifest_is_served_from_where_it_was_pushed_only(api, repo, image):
    assert api.get(f"/v2/{repo}/other/manifests/{image.digest}").status == 404


# ETag and If-None-Match

def test_etag_is_the_quoted_digest(api, repo, image):
    for reference in "latest", image.digest:
        answer = api.get(f"/v2/{repo}/manifests/{reference}")
        assert answer["ETag"] == f'"{image.digest}"'
    layer = digest(image.layers[0])
    assert api.head(f"/v2/{repo}/blobs/{layer}")["ETag"] == f'"{layer}"'


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', '"x", "{}"', '"a,b" , W/"{}"', "*"])
def test_if_none_match_of_what_is_there_is_304(api, repo, image, method, form):
    for target in (f"manifests/latest|{image.digest}",
                   f"blobs/{digest(image.layers[0])}|{digest(image.layers[0])}"):
        path, name = target.split("|")
        answer = api.request(method, f"/v2/{repo}/{path}", {"If-None-Match": form.format(name)})
        assert answer.status == 304
        assert answer["ETag"] == f'"{name}"'


def test_if_none_match_of_something_else_is_200(api, repo, image):
    answer = api.get(f"/v2/{repo}/manifests/latest", {"If-None-Match": '"sha256:other"'})
    assert (answer.status, answer.body) == (200, image.manifest)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("form", ['"{}"', "*"])
def test_if_none_match_of_what_is_not_there_is_404(api, repo, image, method, form):
    name = digest(noise())
    for kind in "blobs", "manifests":
        answer = api.request(method, f"/v2/{repo}/{kind}/{name}",
                             {"If-None-Match": form.format(name)})
        assert answer.status == 404


def test_if_none_match_sees_a_moved_tag(api, repo, image):
    etag = api.head(f"/v2/{repo}/manifests/latest")["ETag"]
    other = image_of(annotations={"n": "2"}, config_type=EMPTY)
    push_manifest(api, repo, "latest", other)
    answer = api.get(f"/v2/{repo}/manifests/latest", {"If-None-Match": etag})
    assert (answer.status, answer.body) == (200, dump(other))

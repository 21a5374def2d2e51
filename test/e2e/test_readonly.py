"""--read-only: everything can be read, nothing changed.

Changes answer 405 UNSUPPORTED: where deletion is disabled the spec demands 400
or 405, of which 405 is the one that says "not on this server", and a push is
refused the same way so that one rule holds for all. UNSUPPORTED (code-13) is
the spec's code for an operation that a registry does not have."""

import pytest

from oci import (check_image, digest, image_of, make_image, noise, push_blob, push_manifest,
                 put_manifest, start_upload)
from server import running
from wire import head, refused


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    home = tmp_path_factory.mktemp("read-only")
    with running(home) as server:
        client = server.client()
        image = make_image(client, "a", "v1")
        subject = {"mediaType": "a/b", "size": 1, "digest": image.digest}
        push_manifest(client, "a", "sig", image_of(noise(), subject=subject))
        location = client.patch(start_upload(client, "a"), noise())["Location"]
    with running(home, "--read-only") as server:
        yield server, server.client(), image, location


def test_reads_work(reading):
    server, client, image, _ = reading
    assert client.get("/v2/").status == 200
    check_image(client, "a", "v1", image)
    check_image(client, "a", image.digest, image)
    assert client.head("/v2/a/manifests/v1").status == 200
    assert client.get("/v2/a/tags/list").json()["tags"] == ["sig", "v1"]
    assert client.get("/v2/_catalog").json()["repositories"] == ["a"]
    assert len(client.get(f"/v2/a/referrers/{image.digest}").json()["manifests"]) == 1
    layer = digest(image.layers[0])
    assert client.get(f"/v2/a/blobs/{layer}", {"Range": "bytes=0-9"}).body == image.layers[0][:10]
    assert client.get("/v2/b/tags/list").status == 404


def test_changes_are_405_unsupported(reading):
    _, client, image, location = reading
    layer = digest(image.layers[0])
    for method, target, body in [
            ("POST", "/v2/a/blobs/uploads/", None),
            ("POST", f"/v2/a/blobs/uploads/?digest={digest(b'x')}", b"x"),
            ("POST", f"/v2/b/blobs/uploads/?mount={layer}&from=a", None),
            ("PATCH", location, b"x"),
            ("PUT", f"{location}?digest={digest(b'x')}", b"x"),
            ("DELETE", location, None),
            ("PUT", "/v2/a/manifests/v1", image.manifest),
            ("DELETE", "/v2/a/manifests/v1", None),
            ("DELETE", f"/v2/a/manifests/{image.digest}", None),
            ("DELETE", f"/v2/a/blobs/{layer}", None)]:
        answer = client.request(method, target, (), body)
        refused(answer, 405, "UNSUPPORTED")
        assert method not in [m.strip() for m in answer["Allow"].split(",")]
    check_image(client, "a", "v1", image)


def test_change_is_refused_instead_of_continue(reading):
    server, *_ = reading
    with server.connect() as conn:
        conn.send(head("PUT", "/v2/a/manifests/v1", {"Content-Length": "100",
                                                     "Expect": "100-continue"}))
        answer = conn.answer("PUT")
        assert (answer.status, answer.interim) == (405, [])


def test_switch_by_environment(dims):
    client = dims(env={"DIMS_READ_ONLY": "on"}).client()
    refused(client.post("/v2/a/blobs/uploads/"), 405, "UNSUPPORTED")


def test_nothing_is_read_only_by_default(dims):
    client = dims().client()
    push_blob(client, "a", noise())
    assert put_manifest(client, "a", "v1", image_of()).status == 201

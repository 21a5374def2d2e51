"""Content management: end-9 and end-10."""

import pytest

from oci import (check_image, digest, dump, image_of, make_image, noise, push_blob, push_manifest,
                 put_manifest)
from wire import refused


def tags(api, repo):
    return api.get(f"/v2/{repo}/tags/list").json()["tags"]


@pytest.fixture
def image(api, repo):
    return make_image(api, repo, "v1")


def test_deleted_tag_is_gone_at_once_and_the_manifest_stays(api, repo, image):
    push_manifest(api, repo, "v2", image.manifest)
    assert api.delete(f"/v2/{repo}/manifests/v1").status == 202
    for method in "GET", "HEAD":
        assert api.request(method, f"/v2/{repo}/manifests/v1").status == 404
    check_image(api, repo, "v2", image)
    check_image(api, repo, image.digest, image)
    assert tags(api, repo) == ["v2"]


def test_repository_without_tags_keeps_an_empty_list(api, repo, image):
    assert api.delete(f"/v2/{repo}/manifests/v1").status == 202
    assert tags(api, repo) == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_deleting_a_manifest_by_digest_removes_its_tags(api, repo, image, algorithm):
    body = dump(image_of(noise()))
    name = digest(body, algorithm)
    assert put_manifest(api, repo, f"{name}?tag=x&tag=y&tag=z", body).status == 201
    assert api.delete(f"/v2/{repo}/manifests/{name}").status == 202
    for reference in name, "x", "y", "z":
        refused(api.get(f"/v2/{repo}/manifests/{reference}"), 404, "MANIFEST_UNKNOWN")
    assert tags(api, repo) == ["v1"]
    check_image(api, repo, "v1", image)


def test_delete_is_seen_at_once_by_every_worker(shared, repo):
    clients = [shared.client() for _ in range(6)]
    for i in range(10):
        name = push_manifest(clients[0], repo, "v1", image_of(noise()))
        for client in clients:
            assert client.get(f"/v2/{repo}/manifests/v1").status == 200
        assert clients[i % 6].delete(f"/v2/{repo}/manifests/{name}").status == 202
        for client in clients:
            assert client.get(f"/v2/{repo}/manifests/v1").status == 404
            assert client.get(f"/v2/{repo}/manifests/{name}").status == 404
    for client in clients:
        client.close()


@pytest.mark.parametrize("reference", ["absent", digest(b"absent"), digest(b"absent", "sha512")])
def test_deleting_a_missing_manifest_is_404(api, repo, image, reference):
    refused(api.delete(f"/v2/{repo}/manifests/{reference}"), 404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("reference", ["v1", digest(b"absent")])
def test_deleting_from_an_unknown_repository_is_404(api, repo, reference):
    refused(api.delete(f"/v2/{repo}/manifests/{reference}"), 404, "NAME_UNKNOWN",
            "MANIFEST_UNKNOWN")


def test_deleted_manifest_may_be_pushed_again(api, repo, image):
    for _ in range(3):
        assert api.delete(f"/v2/{repo}/manifests/{image.digest}").status == 202
        push_manifest(api, repo, "v1", image.manifest)
        check_image(api, repo, "v1", image)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_deleted_blob_is_gone_at_once(api, repo, algorithm):
    name = push_blob(api, repo, noise(), algorithm)
    assert api.delete(f"/v2/{repo}/blobs/{name}").status == 202
    for method in "GET", "HEAD":
        assert api.request(method, f"/v2/{repo}/blobs/{name}").status == 404
    refused(api.delete(f"/v2/{repo}/blobs/{name}"), 404, "BLOB_UNKNOWN")


def test_deleted_blob_may_be_pushed_again(api, repo):
    data = noise()
    for _ in range(3):
        name = push_blob(api, repo, data)
        assert api.get(f"/v2/{repo}/blobs/{name}").body == data
        assert api.delete(f"/v2/{repo}/blobs/{name}").status == 202


def test_deleting_a_missing_blob_is_404(api, repo, image):
    refused(api.delete(f"/v2/{repo}/blobs/{digest(noise())}"), 404, "BLOB_UNKNOWN")
    refused(api.delete(f"/v2/{repo}/nowhere/blobs/{digest(noise())}"), 404, "BLOB_UNKNOWN",
            "NAME_UNKNOWN")


def test_deleting_a_blob_leaves_other_repositories_alone(api, repo):
    data = noise()
    name = push_blob(api, f"{repo}/a", data)
    push_blob(api, f"{repo}/b", data)
    assert api.post(f"/v2/{repo}/c/blobs/uploads/?mount={name}&from={repo}/a").status == 201
    assert api.delete(f"/v2/{repo}/a/blobs/{name}").status == 202
    assert api.get(f"/v2/{repo}/a/blobs/{name}").status == 404
    for other in "b", "c":
        assert api.get(f"/v2/{repo}/{other}/blobs/{name}").body == data


def test_deleting_a_manifest_leaves_other_repositories_alone(api, repo, image):
    push_manifest(api, f"{repo}/sub", "v1", image.manifest)
    assert api.delete(f"/v2/{repo}/manifests/{image.digest}").status == 202
    assert api.get(f"/v2/{repo}/sub/manifests/v1").body == image.manifest


@pytest.mark.parametrize("path", ["manifests/sha256:abc", "blobs/sha256:abc", "blobs/latest",
                                  "manifests/..", "blobs/sha256:" + "A" * 64])
def test_deleting_by_an_invalid_reference_is_400_or_404(api, repo, image, path):
    answer = api.delete(f"/v2/{repo}/{path}")
    assert answer.status in (400, 404), answer


def test_manifest_pushed_by_both_digests_is_deleted_one_by_one(api, repo):
    body = dump(image_of(noise()))
    names = [digest(body, a) for a in ("sha256", "sha512")]
    for name in names:
        assert put_manifest(api, repo, name, body).status == 201
    assert api.delete(f"/v2/{repo}/manifests/{names[0]}").status == 202
    assert api.get(f"/v2/{repo}/manifests/{names[0]}").status == 404
    assert api.get(f"/v2/{repo}/manifests/{names[1]}").body == body

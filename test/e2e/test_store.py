"""The folder: a person can read it with ls, and trust it."""

import json
import os
import re
import shutil

import pytest

from oci import (check_image, digest, dump, image_of, index_of, make_image, noise, push_blob,
                 push_manifest, put_manifest)
from server import running
from wire import wait_until


def hexpart(name):
    return name.partition(":")[2]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A server with an image in a repository of two components."""
    with running(tmp_path_factory.mktemp("store")) as server:
        client = server.client()
        image = make_image(client, "team/app", "v1")
        yield server, client, image, server.data / "repos" / "team" / "app" / "_oci"


def test_format_file_says_what_this_is(stored):
    server, *_ = stored
    assert (server.data / "format").read_text().strip() == "dims 1"


def test_repository_is_an_oci_layout(stored):
    _, _, image, folder = stored
    layout = json.loads((folder / "oci-layout").read_text())
    assert layout == {"imageLayoutVersion": "1.0.0"}
    for data in [image.manifest, image.config, *image.layers]:
        assert (folder / "blobs" / "sha256" / hexpart(digest(data))).read_bytes() == data


def view(folder):
    try:
        return json.loads((folder / "index.json").read_text())
    except FileNotFoundError:
        return None


def refs(folder):
    """{tag: digest} as the view has it."""
    index = view(folder)
    return index and {m["annotations"]["org.opencontainers.image.ref.name"]: m["digest"]
                      for m in index["manifests"] if "annotations" in m}


def test_index_json_follows_within_seconds(stored):
    _, client, image, folder = stored
    wait_until(lambda: (refs(folder) or {}).get("v1") == image.digest, "the view")
    index = view(folder)
    assert index["schemaVersion"] == 2
    entry = next(m for m in index["manifests"] if m["digest"] == image.digest)
    assert entry["size"] == len(image.manifest)
    assert entry["mediaType"] == json.loads(image.manifest)["mediaType"]
    other = push_manifest(client, "team/app", "v2", image_of(noise()))
    wait_until(lambda: refs(folder).get("v2") == other, "the second tag in the view")
    assert client.delete("/v2/team/app/manifests/v2").status == 202
    wait_until(lambda: "v2" not in refs(folder), "the view without the tag")
    assert refs(folder)["v1"] == image.digest


def test_index_json_keeps_untagged_manifests_reachable(stored):
    _, client, _, folder = stored
    body = dump(index_of())
    name = push_manifest(client, "team/app", digest(body), body)
    wait_until(lambda: name in str(view(folder)), "the untagged manifest in the view")


def test_blobs_are_hard_links_into_the_pool(stored):
    server, _, image, folder = stored
    for data in [image.manifest, image.config, *image.layers]:
        name = hexpart(digest(data))
        own = (folder / "blobs" / "sha256" / name).stat()
        pool = (server.data / "blobs" / "sha256" / name).stat()
        assert (own.st_dev, own.st_ino) == (pool.st_dev, pool.st_ino)


def test_the_same_blob_is_stored_once(stored):
    server, client, image, _ = stored
    push_blob(client, "other", image.layers[0])
    name = digest(image.layers[0])
    assert client.post(f"/v2/third/blobs/uploads/?mount={name}&from=other").status == 201
    pool = (server.data / "blobs" / "sha256" / hexpart(name)).stat()
    for repo in "other", "third":
        own = (server.data / "repos" / repo / "_oci" / "blobs" / "sha256" / hexpart(name)).stat()
        assert own.st_ino == pool.st_ino
    assert pool.st_nlink == 4


def test_sha512_blobs_have_their_own_folder(stored):
    server, client, _, folder = stored
    data = noise()
    name = push_blob(client, "team/app", data, "sha512")
    assert (folder / "blobs" / "sha512" / hexpart(name)).read_bytes() == data
    assert (server.data / "blobs" / "sha512" / hexpart(name)).exists()


def test_tags_and_manifests_have_small_records(stored):
    _, client, image, folder = stored
    subject = {"mediaType": "a/b", "size": 1, "digest": image.digest}
    name = push_manifest(client, "team/app", "sig", image_of(noise(), subject=subject))
    assert image.digest in (folder / "tags" / "v1").read_text()
    for manifest in image.digest, name:
        record = folder / "manifests" / hexpart(manifest)
        assert 0 < record.stat().st_size < 4096
        assert "application/vnd.oci.image.manifest.v1+json" in record.read_text()
    found = [p.name for p in (folder / "referrers").rglob("*") if p.is_file()]
    assert any(hexpart(name) in p for p in found)
    assert client.delete("/v2/team/app/manifests/sig").status == 202
    assert not (folder / "tags" / "sig").exists()


def test_deleted_blob_leaves_the_repository(stored):
    _, client, _, folder = stored
    name = push_blob(client, "team/app", noise())
    path = folder / "blobs" / "sha256" / hexpart(name)
    assert path.exists()
    assert client.delete(f"/v2/team/app/blobs/{name}").status == 202
    assert not path.exists()


def test_nothing_is_left_of_temporary_files(stored):
    server, client, *_ = stored
    make_image(client, "team/app", "again")
    wait_until(lambda: not any((server.data / "uploads").iterdir()), "uploads/ to be empty")


def test_files_can_be_copied_and_served_elsewhere(dims, tmp_path):
    first = dims()
    image = make_image(first.client(), "a/b", "v1")
    first.stop()
    shutil.copytree(first.data, tmp_path / "copy")  # loses the hard links
    client = dims(dir="copy").client()
    check_image(client, "a/b", "v1", image)
    push_blob(client, "a/b", image.layers[0])
    push_blob(client, "c", image.layers[0])
    assert client.get(f"/v2/c/blobs/{digest(image.layers[0])}").body == image.layers[0]


@pytest.mark.parametrize("crash", [False, True])
def test_what_was_acknowledged_survives_a_restart(dims, crash):
    server = dims()
    client = server.client()
    image = make_image(client, "a", "v1")
    body = dump(image_of(noise()))
    big = digest(body, "sha512")
    assert put_manifest(client, "a/b", f"{big}?tag=x", body).status == 201
    subject = {"mediaType": "a/b", "size": 1, "digest": image.digest}
    signature = push_manifest(client, "a", "sig", image_of(noise(), subject=subject))
    gone = push_manifest(client, "a", "gone", image_of(noise()))
    assert client.delete(f"/v2/a/manifests/{gone}").status == 202
    server.kill() if crash else server.stop()
    client = dims().client()
    check_image(client, "a", "v1", image)
    answer = client.get("/v2/a/b/manifests/x")
    assert (answer.body, answer["Docker-Content-Digest"]) == (body, big)
    assert client.get("/v2/_catalog").json()["repositories"] == ["a", "a/b"]
    assert client.get("/v2/a/tags/list").json()["tags"] == ["sig", "v1"]
    listed = client.get(f"/v2/a/referrers/{image.digest}").json()["manifests"]
    assert [m["digest"] for m in listed] == [signature]
    assert client.get(f"/v2/a/manifests/{gone}").status == 404


def test_view_is_caught_up_after_a_crash(dims):
    server = dims()
    name = push_manifest(server.client(), "a", "v1", image_of(noise()))
    server.kill()  # within the two seconds before the view is written
    server = dims()
    folder = server.data / "repos" / "a" / "_oci"
    wait_until(lambda: (refs(folder) or {}).get("v1") == name, "the view after the crash")


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_pool_entry_of_the_wrong_size_is_replaced_by_a_new_push(dims, size):
    server = dims()
    client = server.client()
    data = noise(1000)
    name = push_blob(client, "a", data)
    pool = server.data / "blobs" / "sha256" / hexpart(name)
    os.truncate(pool, size)
    push_blob(client, "b", data)
    assert client.get(f"/v2/b/blobs/{name}").body == data
    assert pool.read_bytes() == data
    push_blob(client, "a", data)
    assert client.get(f"/v2/a/blobs/{name}").body == data


def test_lost_pool_is_no_loss_to_the_repositories(dims):
    # The pool is there for deduplication and is never read from.
    server = dims()
    client = server.client()
    image = make_image(client, "a")
    for path in (server.data / "blobs" / "sha256").iterdir():
        path.unlink()
    check_image(client, "a", "latest", image)
    push_blob(client, "b", image.layers[0])
    assert client.get(f"/v2/b/blobs/{digest(image.layers[0])}").body == image.layers[0]


# Who may use the folder

def test_folder_is_made_with_its_parents(dims, tmp_path):
    assert dims(dir="x").client().get("/v2/").status == 200
    assert (tmp_path / "x" / "format").exists()


def test_second_dims_on_the_folder_is_refused(dims, fails):
    server = dims()
    error = fails("-p", "0", "--dir", server.data, status=1)
    assert str(server.data) in error
    assert server.client().get("/v2/").status == 200


@pytest.mark.parametrize("text", ["dims 2\n", "dims 10\n", "dims 1.1\n", "something else\n", "\n"])
def test_newer_or_foreign_format_is_refused_and_left_alone(dims, fails, text):
    server = dims()
    server.stop()
    path = server.data / "format"
    path.write_text(text)
    before = sorted(os.listdir(server.data))
    error = fails("-p", "0", "--dir", server.data, status=1)
    assert re.search("format|version|newer", error), error
    assert path.read_text() == text
    assert sorted(os.listdir(server.data)) == before


def test_default_folder_is_dims_data(dims, tmp_path):
    make_image(dims(dir=None).client(), "a")
    assert (tmp_path / "dims-data" / "format").exists()

"""What nobody names any more goes, what somebody was promised stays: collection and fsck."""

import os
import re
import subprocess

import pytest

from oci import (IMAGE, INDEX, descriptor, digest, dump, image_of, index_of, make_image, noise,
                 push_blob, push_manifest, put_manifest, start_upload, with_query)
from server import BINARY, environment
from wire import wait_until


def command(server, *args):
    done = subprocess.run([BINARY, *args, "--dir", str(server.data), "--log-level", "warn"],
                          capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stderr == ""
    return done.returncode, done.stdout


def stored(server, repo, name):
    path = server.data / "repos" / repo / "_oci/blobs/sha256" / name[7:]
    return path.exists()


def pooled(server, name):
    return (server.data / "blobs/sha256" / name[7:]).exists()


def age(server, repo, name, seconds=7200):
    path = server.data / "repos" / repo / "_oci/blobs/sha256" / name[7:]
    time = path.stat().st_mtime - seconds
    os.utime(path, (time, time))


def push(client, repo, tag, data):
    """An image of one layer; (manifest's digest, layer's digest)."""
    body = dump(image_of(data))
    push_blob(client, repo, b"{}")
    push_blob(client, repo, data)
    push_manifest(client, repo, tag, body)
    return digest(body), digest(data)


def test_deleting_a_manifest_frees_its_layers(dims):
    server = dims("--gc-grace", "2s")
    client = server.client()
    manifest, layer = push(client, "a", "v1", noise(5000))
    assert client.delete(f"/v2/a/manifests/{manifest}").status == 202
    wait_until(lambda: not stored(server, "a", layer), "the layer to go")
    wait_until(lambda: not pooled(server, layer), "the pool to let go")
    assert client.get(f"/v2/a/blobs/{layer}").status == 404


def test_layers_that_another_manifest_names_stay(dims):
    server = dims("--gc-grace", "2s")
    client = server.client()
    shared, own = noise(3000), noise(3000)
    push_blob(client, "a", shared)
    kept, layer = push(client, "a", "kept", shared)
    gone, other = push(client, "a", "gone", own)
    assert client.delete(f"/v2/a/manifests/{gone}").status == 202
    wait_until(lambda: not stored(server, "a", other), "the other layer to go")
    assert client.get(f"/v2/a/blobs/{layer}").body == shared
    assert client.get(f"/v2/a/manifests/{kept}").status == 200


def test_a_layer_in_another_repository_stays_there(dims):
    server = dims("--gc-grace", "2s")
    client = server.client()
    data = noise(4000)
    gone, layer = push(client, "a", "v1", data)
    push(client, "b/c", "v1", data)
    assert client.delete(f"/v2/a/manifests/{gone}").status == 202
    wait_until(lambda: not stored(server, "a", layer), "the layer to go")
    assert client.get(f"/v2/b/c/blobs/{layer}").body == data
    assert pooled(server, layer)


def test_young_blobs_stay_for_the_grace_period(dims):
    server = dims("--gc-grace", "1h")
    client = server.client()
    data, old = noise(1000), noise(1000)
    push_blob(client, "a", data)
    push_blob(client, "a", old)
    age(server, "a", digest(old))
    status, said = command(server, "gc")
    assert status == 0 and "removed 0 untagged manifests and 1 blobs, 1000 bytes" in said
    assert stored(server, "a", digest(data)) and not stored(server, "a", digest(old))


def test_being_told_that_it_exists_keeps_a_blob(dims):
    server = dims("--gc-grace", "1h")
    client = server.client()
    by_head, by_mount, by_push, by_nobody = [noise(1000) for _ in range(4)]
    for data in by_head, by_mount, by_push, by_nobody:
        push_blob(client, "a", data)
        age(server, "a", digest(data))
    assert client.head(f"/v2/a/blobs/{digest(by_head)}").status == 200
    assert client.post(f"/v2/b/blobs/uploads/?mount={digest(by_mount)}&from=a").status == 201
    push_blob(client, "a", by_push)
    assert command(server, "gc")[0] == 0
    assert [stored(server, "a", digest(d)) for d in (by_head, by_mount, by_push, by_nobody)] == [
        True, True, True, False]


def test_a_blob_is_young_from_its_commit_on_however_old_its_bytes_are(dims):
    server = dims("--gc-grace", "1h")
    client = server.client()
    data = noise(1000)
    location = client.patch(start_upload(client, "a"), data)["Location"]
    upload = server.data / "uploads" / location.rpartition("/")[2]
    os.utime(upload, (1, 1))
    assert client.put(with_query(location, digest=digest(data))).status == 201
    assert "and 0 blobs" in command(server, "gc", "--gc-grace", "1h")[1]
    assert client.get(f"/v2/a/blobs/{digest(data)}").body == data


@pytest.mark.parametrize("left", [0, 100])
def test_a_manifest_cut_short_does_not_cost_its_layers(dims, left):
    server = dims()
    client = server.client()
    manifest, layer = push(client, "a", "v1", noise(1000))
    age(server, "a", layer)
    path = server.data / "repos/a/_oci/blobs/sha256" / manifest[7:]
    os.truncate(path, left)
    done = subprocess.run([BINARY, "gc", "--dir", str(server.data)], capture_output=True,
                          text=True, env=environment(), timeout=60)
    assert done.returncode == 1 and "gc.incomplete" in done.stderr
    assert stored(server, "a", layer)
    assert "and 1 blobs" not in done.stdout


def test_pushing_an_untagged_manifest_again_renews_its_time(dims):
    server = dims()
    client = server.client()
    bodies = [dump(image_of(noise(100))) for _ in range(2)]
    for body in bodies:
        push_manifest(client, "a", digest(body), body)
        os.utime(server.data / "repos/a/_oci/manifests" / digest(body)[7:], (1, 1))
    push_manifest(client, "a", digest(bodies[0]), bodies[0])
    assert "removed 1 untagged" in command(server, "gc", "--gc-untagged", "7d")[1]
    assert [client.get(f"/v2/a/manifests/{digest(b)}").status for b in bodies] == [200, 404]


def test_dry_run_says_what_would_go_and_changes_nothing(dims):
    server = dims()
    client = server.client()
    data = noise(2000)
    push_blob(client, "a", data)
    age(server, "a", digest(data))
    before = sorted(p for p in server.data.rglob("*"))
    assert "would remove 0 untagged manifests and 1 blobs, 2000 bytes" in command(
        server, "gc", "--dry-run")[1]
    assert sorted(p for p in server.data.rglob("*")) == before
    assert "removed 0 untagged manifests and 1 blobs, 2000 bytes" in command(server, "gc")[1]
    assert "removed 0 untagged manifests and 0 blobs, 0 bytes" in command(server, "gc")[1]


def test_references_are_found_in_any_member_and_however_json_writes_them(dims):
    server = dims()
    client = server.client()
    odd, escaped = noise(500), noise(600)
    for data in odd, escaped:
        push_blob(client, "a", data)
        age(server, "a", digest(data))
    text = digest(escaped).replace("a", "\\u0061")
    body = ('{"schemaVersion":2,"own":{"deep":["%s"]},"other":"%s"}' % (digest(odd), text)).encode()
    assert put_manifest(client, "a", "v1", body, "application/vnd.example.odd+json").status == 201
    assert "and 0 blobs" in command(server, "gc")[1]


def test_untagged_manifests_stay_unless_asked(dims):
    server = dims()
    client = server.client()
    first, layer = push(client, "a", "v1", noise(1000))
    push(client, "a", "v1", noise(1000))
    for name in first, layer:
        age(server, "a", name, 30 * 86400)
    record = server.data / "repos/a/_oci/manifests" / first[7:]
    os.utime(record, (1, 1))
    assert "removed 0 untagged" in command(server, "gc")[1]
    assert client.get(f"/v2/a/manifests/{first}").status == 200
    assert "removed 1 untagged manifests and 1 blobs" in command(
        server, "gc", "--gc-untagged", "7d")[1]
    assert client.get(f"/v2/a/manifests/{first}").status == 404
    assert client.get("/v2/a/manifests/v1").status == 200


def test_untagged_children_and_referrers_of_what_is_tagged_stay(dims):
    server = dims()
    client = server.client()
    image = image_of(noise(100))
    child = dump(image)
    push_manifest(client, "a", digest(child), child)
    index = dump(index_of(image))
    push_manifest(client, "a", "multi", index, INDEX)
    signature = dump({**image_of(noise(100)), "subject": descriptor(index, INDEX)})
    push_manifest(client, "a", digest(signature), signature)
    loose = dump(image_of(noise(100)))
    push_manifest(client, "a", digest(loose), loose)
    for record in (server.data / "repos/a/_oci/manifests").iterdir():
        os.utime(record, (1, 1))
    assert "removed 1 untagged" in command(server, "gc", "--gc-untagged", "1d")[1]
    for kept in child, index, signature:
        assert client.get(f"/v2/a/manifests/{digest(kept)}").status == 200
    assert client.get(f"/v2/a/manifests/{digest(loose)}").status == 404


def test_what_a_crash_left_in_the_trash_is_put_back(dims):
    server = dims()
    client = server.client()
    data = noise(700)
    push_blob(client, "a/b", data)
    server.stop()
    trash = server.data / "trash/a+b"
    trash.mkdir()
    blob = server.data / "repos/a/b/_oci/blobs/sha256" / digest(data)[7:]
    blob.rename(trash / ("sha256-" + digest(data)[7:]))
    server = dims(home=server.home)
    assert server.client().get(f"/v2/a/b/blobs/{digest(data)}").body == data
    assert not trash.exists()


def test_a_blob_cut_short_is_never_served_and_a_push_mends_it(dims):
    server = dims()
    server.expect_stderr("blob.damaged")
    client = server.client()
    data = noise(9000)
    push_blob(client, "a", data)
    path = server.data / "repos/a/_oci/blobs/sha256" / digest(data)[7:]
    os.truncate(path, 4096)
    assert client.get(f"/v2/a/blobs/{digest(data)}").status == 404
    assert client.head(f"/v2/a/blobs/{digest(data)}").status == 404
    assert client.post(f"/v2/b/blobs/uploads/?mount={digest(data)}&from=a").status == 202
    push_blob(client, "a", data)
    assert client.get(f"/v2/a/blobs/{digest(data)}").body == data


def test_fsck_of_a_sound_folder_is_clean(dims):
    server = dims()
    client = server.client()
    make_image(client, "a")
    make_image(client, "b/c")
    status, said = command(server, "fsck")
    assert status == 0
    assert re.search(r"2 repositories, 2 manifests, \d+ blobs, \d+ bytes read: "
                     r"0 damaged, 0 repaired, 0 broken, 0 missing, 0 foreign", said), said


def test_fsck_finds_wrong_bytes_and_repair_makes_room_for_a_push(dims):
    server = dims()
    client = server.client()
    data = noise(5000)
    manifest, layer = push(client, "a", "v1", data)
    path = server.data / "repos/a/_oci/blobs/sha256" / layer[7:]
    with open(path, "r+b") as f:
        f.seek(1000)
        f.write(b"rotten")
    status, said = command(server, "fsck")
    assert status == 1 and "damaged: " in said and layer[7:] in said
    assert path.exists()
    status, said = command(server, "fsck", "--repair")
    assert status == 0 and "named but not here" in said
    assert client.get(f"/v2/a/blobs/{layer}").status == 404
    push_blob(client, "a", data)
    assert client.get(f"/v2/a/blobs/{layer}").body == data
    assert command(server, "fsck")[0] == 0


def test_fsck_repair_of_a_manifest_that_workers_remember(dims):
    server = dims()
    client = server.client()
    manifest, _ = push(client, "a", "v1", noise(100))
    body = client.get("/v2/a/manifests/v1").body
    wait_until(lambda: client.get("/v2/a/manifests/v1").status == 200, "an answer")
    path = server.data / "repos/a/_oci/blobs/sha256" / manifest[7:]
    with open(path, "r+b") as f:
        f.write(b"[")
    # The bytes are gone until somebody pushes them: no success to tell of.
    status, said = command(server, "fsck", "--repair")
    assert status == 1 and "2 repaired, 1 broken" in said
    server.expect_stderr("store.error|manifest.damaged", required=False)
    assert client.get("/v2/a/manifests/v1").status == 404
    push_manifest(client, "a", "v1", body)
    assert client.get("/v2/a/manifests/v1").body == body


def test_fsck_finds_damaged_records_lost_referrers_and_foreign_files(dims):
    server = dims()
    client = server.client()
    image = dump(image_of(noise(100)))
    push_manifest(client, "a", "v1", image)
    signature = dump({**image_of(noise(100)), "subject": descriptor(image, IMAGE)})
    push_manifest(client, "a", "sig", signature)
    repo = server.data / "repos/a/_oci"
    (repo / "tags/bad").write_text("nonsense\n")
    entry = next((repo / "referrers").glob("*/*"))
    entry.unlink()
    (repo / "blobs/sha256/README").write_text("hello")
    (server.data / "notes.txt").write_text("hello")
    done = subprocess.run([BINARY, "fsck", "--dir", str(server.data)], capture_output=True,
                          text=True, env=environment(), timeout=60)
    said = done.stdout
    assert done.returncode == 1 and "store.damaged" in done.stderr
    assert "damaged tag: repos/a/_oci/tags/bad" in said
    assert "referrer not listed" in said
    assert "foreign: repos/a/_oci/blobs/sha256/README" in said and "foreign: notes.txt" in said
    subprocess.run([BINARY, "fsck", "--repair", "--dir", str(server.data)], check=True,
                   capture_output=True, env=environment(), timeout=60)
    assert client.get(f"/v2/a/referrers/{digest(image)}").json()["manifests"][0]["digest"] == \
        digest(signature)
    assert client.get("/v2/a/tags/list").json()["tags"] == ["sig", "v1"]


def test_commands_of_a_folder_that_is_none(tmp_path):
    for args in ["gc"], ["fsck"]:
        done = subprocess.run([BINARY, *args, "--dir", str(tmp_path)], capture_output=True,
                              text=True, env=environment(), timeout=20)
        assert done.returncode == 1 and done.stderr.startswith("dims: ")

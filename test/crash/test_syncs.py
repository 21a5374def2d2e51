"""strace shows: before a 201 is sent, the file and every name on the way to it
have been synced."""

import json
import re
import subprocess

import pytest

import durable
from oci import descriptor, digest, image_of, noise, put_manifest, start_upload, with_query
from server import Dims

REPO = "brand-new/and/deep"
SERVED = re.compile("/_oci/(blobs|manifests|tags|referrers)/")


def hexpart(name):
    return name.partition(":")[2]


def blob_path(name, repo=REPO):
    return f"repos/{repo}/_oci/blobs/sha256/{hexpart(name)}"


# Each sends its last request and returns the answer with the files that it
# vouches for. They may be called again after a failure.

def blob_by_put(client, data):
    location = start_upload(client, REPO)
    answer = client.patch(location, data)
    if answer.status != 202:
        return answer, []
    name = digest(data)
    return client.put(with_query(answer["Location"], digest=name)), [blob_path(name)]


def blob_by_post(client, data):
    name = digest(data)
    return client.post(f"/v2/{REPO}/blobs/uploads/?digest={name}", data), [blob_path(name)]


def mount(client, data):
    name = digest(data)
    answer = client.post(f"/v2/source/blobs/uploads/?digest={name}", data)
    if answer.status != 201:
        return answer, []
    return (client.post(f"/v2/{REPO}/blobs/uploads/?mount={name}&from=source"),
            [blob_path(name), blob_path(name, "source")])


def manifest(client, data):
    body = json.dumps(image_of(data)).encode()
    name = digest(body)
    return (put_manifest(client, REPO, name, body),
            [blob_path(name), f"repos/{REPO}/_oci/manifests/{hexpart(name)}"])


def tag(client, data):
    body = json.dumps(image_of(data)).encode()
    name = digest(body)
    return (put_manifest(client, REPO, "v1", body),
            [blob_path(name), f"repos/{REPO}/_oci/manifests/{hexpart(name)}",
             f"repos/{REPO}/_oci/tags/v1"])


def referrer(client, data):
    subject = descriptor(b"{}", "application/vnd.oci.image.manifest.v1+json")
    body = json.dumps(image_of(data, subject=subject)).encode()
    name = digest(body)
    folder = f"repos/{REPO}/_oci/referrers/sha256-{hexpart(subject['digest'])}"
    return (put_manifest(client, REPO, name, body),
            [blob_path(name), f"repos/{REPO}/_oci/manifests/{hexpart(name)}",
             f"{folder}/{hexpart(name)}"])


PUSHES = [blob_by_put, blob_by_post, mount, manifest, tag, referrer]


class Traced:
    """A server under strace, and the model of its disk."""

    def __init__(self, home, *more):
        self.home = home
        self.log = home / "strace.log"
        self.server = Dims(home, ["--workers", "2"], prefix=durable.command(self.log, *more))

    def follow(self, model, asked):
        """Yields the model's view of asked, a list a 201, in their order."""
        self.server.stop()
        created = 0
        for line in model.events(self.log):
            if " 201 " in line:
                data = self.server.data
                yield [m for m in (model.missing(data / p, data) for p in asked[created]) if m]
                created += 1
        assert created == len(asked), f"{created} answers in the log, {len(asked)} were read"


@pytest.mark.parametrize("push", PUSHES, ids=lambda f: f.__name__)
def test_everything_is_synced_before_201_is_sent(tmp_path, push):
    traced = Traced(tmp_path)
    answer, files = push(traced.server.client(), noise())
    assert answer.status == 201, answer
    earlier = [[]] if push is mount else []
    model = durable.Trace(tmp_path)
    *_, missing = traced.follow(model, [*earlier, files])
    assert not missing, "\n".join(missing)
    # Nothing half-written ever has a name under which it is served.
    assert not [p for p in model.early if SERVED.search(p)]


def test_a_new_folder_is_there_to_stay(tmp_path):
    log = tmp_path / "strace.log"
    server = Dims(tmp_path, dir="some/new/data", prefix=durable.command(log))
    server.stop()
    model = durable.Trace(tmp_path)
    list(model.events(log))
    assert not model.missing(server.data / "format")


@pytest.mark.parametrize("when", range(2, 14))
@pytest.mark.parametrize("push", PUSHES, ids=lambda f: f.__name__)
def test_push_after_a_failed_sync_takes_nothing_for_granted(tmp_path, push, when):
    model = durable.Trace(tmp_path)
    traced = Traced(tmp_path)    # so that the start below makes few calls
    list(traced.follow(model, []))
    # Of every thread, one fsync fails.
    traced = Traced(tmp_path, "-e", f"inject=fsync:error=EIO:when={when}")
    traced.server.expect_stderr(r"store\.error", required=False)
    client, data, asked = traced.server.client(), noise(), []
    for _ in range(20):
        answer, files = push(client, data)
        if push is mount and files:
            asked.append([])
        if answer.status == 201:
            break
        assert answer.status == 500, answer
    asked.append(files)
    assert answer.status == 201, answer
    *_, missing = traced.follow(model, asked)
    assert not missing, "\n".join(missing)


SCRIPT = """
import os
def say(name):
    os.write(1, b"HTTP/1.1 " + name)
def sync(folder):
    os.fsync(os.open(folder, os.O_RDONLY))
os.mkdir("TOP/sub")
file = os.open("TOP/sub/a", os.O_CREAT | os.O_WRONLY)
os.write(file, b"x")
say(b"sub/a")
sync("TOP")
say(b"sub/a")
sync("TOP/sub")
say(b"sub/a")
os.fdatasync(file)
say(b"sub/a")
os.rename("TOP/sub/a", "TOP/sub/b")
say(b"sub/b")
sync("TOP/sub")
say(b"sub/b")
os.link("TOP/sub/b", "TOP/sub/c")
say(b"sub/c")
os.write(file, b"x")
say(b"sub/b")
"""


def test_model_notices_what_is_missing(tmp_path):
    log = tmp_path / "log"
    top = tmp_path / "top"
    top.mkdir()
    script = SCRIPT.replace("TOP", str(top))
    subprocess.run([*durable.command(log), "/usr/bin/python3", "-c", script],
                   check=True, stdout=subprocess.DEVNULL)
    model = durable.Trace(top)
    found = [model.missing(top / line.split()[1]) for line in model.events(log)]
    assert found == [
        f"{top} was not synced since it got sub",
        f"{top}/sub was not synced since it got a",
        f"{top}/sub/a was not synced since it was written",
        None,
        f"{top}/sub was not synced since it got b",
        None,
        f"{top}/sub was not synced since it got c",
        f"{top}/sub/b was not synced since it was written"]

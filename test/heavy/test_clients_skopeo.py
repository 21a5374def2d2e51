"""skopeo beyond copy: inspect, list-tags, sync, delete, and `_oci` as it is."""
import json
import os

import pytest

from clients import Skopeo, check_layout
from rig import wait_for

VIEW_LIMIT_S = 15   # index.json follows the last change by two seconds


@pytest.fixture
def skopeo(machines):
    return machines(Skopeo, True)


@pytest.fixture
def pushed(skopeo, server):
    """The repository with the tags `1` and `2`."""
    for tag in ("1", "2"):
        skopeo.run(skopeo.push(f"{server.host}/skopeo/app:{tag}"))
    return f"{server.host}/skopeo/app"


def test_inspect(skopeo, pushed, images, step):
    with step("skopeo", "inspect, --raw, --config"):
        # One image of the index, with the repository's tags.
        said = json.loads(skopeo.do("inspect", "--tls-verify=false",
                                    f"docker://{pushed}:1"))
        assert said["Digest"] == images.multi["digest"]
        assert said["RepoTags"] == ["1", "2"]
        assert said["Architecture"] == "amd64" and len(said["Layers"]) == 3
        raw = skopeo.do("inspect", "--tls-verify=false", "--raw",
                        f"docker://{pushed}@{images.big['digest']}")
        assert len(raw) == images.big["size"]
        config = json.loads(skopeo.do("inspect", "--tls-verify=false",
                                      "--config", f"docker://{pushed}:1"))
        assert config["config"]["Cmd"] == ["/opt/app/run"]


def test_list_tags(skopeo, pushed, step):
    with step("skopeo", "list-tags"):
        said = json.loads(skopeo.do("list-tags", "--tls-verify=false",
                                    f"docker://{pushed}"))
        assert said["Tags"] == ["1", "2"]


def test_copy_between_repositories(skopeo, pushed, server, images, step):
    with step("skopeo", "copy --all from repository to repository"):
        skopeo.do("copy", "--all", "--src-tls-verify=false",
                  "--dest-tls-verify=false", f"docker://{pushed}:1",
                  f"docker://{server.host}/skopeo/copy:1")
        assert (server.held("skopeo/copy", "1")[0]
                == images.multi["digest"])


def test_copy_as_docker_schema2(skopeo, pushed, server, images, step):
    with step("skopeo", "copy --format v2s2"):
        skopeo.do("copy", "--format", "v2s2", "--src-tls-verify=false",
                  "--dest-tls-verify=false", f"docker://{pushed}:1",
                  f"docker://{server.host}/skopeo/v2s2:1")
        _, headers, _ = server.get("/v2/skopeo/v2s2/manifests/1")
        assert headers["Content-Type"] == (
            "application/vnd.docker.distribution.manifest.v2+json")
        assert server.held("skopeo/v2s2", "1")[1]["amd64"][2] == (
            server.held("skopeo/app", "1")[1]["amd64"][2])


def test_sync_to_folder_and_back(skopeo, pushed, server, images, step):
    folder = os.path.join(skopeo.folder, "synced")
    with step("skopeo", "sync to a folder and into another repository"):
        skopeo.do("sync", "--all", "--src", "docker", "--dest", "dir",
                  "--src-tls-verify=false", pushed, folder)
        assert sorted(os.listdir(folder)) == ["app:1", "app:2"]
        skopeo.do("sync", "--all", "--src", "dir", "--dest", "docker",
                  "--dest-tls-verify=false", folder,
                  f"{server.host}/skopeo/synced")
        for tag in ("1", "2"):
            assert (server.held("skopeo/synced/app", tag)[0]
                    == images.multi["digest"])


def test_repository_folder_is_a_layout(skopeo, pushed, server, images, step):
    """What dims keeps, read without dims."""
    layout = os.path.join(server.data, "repos/skopeo/app/_oci")
    copy = os.path.join(skopeo.folder, "from-layout")

    def tags_in_view():
        with open(os.path.join(layout, "index.json")) as file:
            return {entry.get("annotations", {}).get(
                "org.opencontainers.image.ref.name")
                for entry in json.load(file)["manifests"]}

    with step("skopeo", "read a repository's _oci folder as oci:"):
        wait_for("index.json", lambda: tags_in_view() >= {"1", "2"},
                 VIEW_LIMIT_S)
        skopeo.do("copy", "--all", "--preserve-digests", f"oci:{layout}:2",
                  f"oci:{copy}:2")
        check_layout(copy, images)
        said = json.loads(skopeo.do("inspect", f"oci:{layout}:1"))
        assert said["Digest"] == images.multi["digest"]


def test_delete(skopeo, pushed, server, images, step):
    """skopeo deletes by digest: both tags go; others keep their blobs."""
    skopeo.do("copy", "--all", "--src-tls-verify=false",
              "--dest-tls-verify=false", f"docker://{pushed}:1",
              f"docker://{server.host}/skopeo/kept:1")
    with step("skopeo", "delete"):
        skopeo.do("delete", "--tls-verify=false", f"docker://{pushed}:1")
        assert server.tags("skopeo/app") == []
        skopeo.do("inspect", "--tls-verify=false", f"docker://{pushed}:2",
                  fails=True, says="manifest unknown")
        assert server.held("skopeo/kept", "1")[0] == images.multi["digest"]
    with step("skopeo", "push again after the delete"):
        skopeo.run(skopeo.push(f"{pushed}:1"))
        assert server.held("skopeo/app", "1")[0] == images.multi["digest"]

"""Clients that Debian does not package: tried where they are on PATH."""
import json
import os
import shutil

import pytest

from rig import run


@pytest.fixture
def tool(request, not_tried, tmp_path):
    """Returns do(...), which runs the program that the test is named after."""
    name = request.node.name.removeprefix("test_")
    path = shutil.which(name)
    if path is None:
        not_tried(name, "not tried: it is not on PATH")
        pytest.skip(f"{name} is not on PATH")
    environment = dict(os.environ, HOME=str(tmp_path),
                       DOCKER_CONFIG=str(tmp_path), COSIGN_PASSWORD="")

    def do(*arguments, **more):
        return run(path, *arguments, env=environment, cwd=tmp_path, **more)
    return do


def test_crane(tool, server, images, seed, tmp_path, step):
    name = f"{server.host}/crane/app"
    with step("crane", "push, digest, tag, pull, copy, ls, catalog, delete"):
        tool("push", "--insecure", "--index", images.layout, f"{name}:l")
        tool("copy", "--insecure", f"{server.host}/{seed}", f"{name}:1")
        assert tool("digest", "--insecure", f"{name}:1").strip() == (
            images.multi["digest"])
        tool("tag", "--insecure", f"{name}:1", "2")
        assert tool("ls", "--insecure", name).split() == ["1", "2", "l"]
        assert "crane/app" in tool("catalog", "--insecure",
                                   server.host).split()
        tool("pull", "--insecure", "--format", "oci", f"{name}:2", "pulled")
        tool("validate", "--insecure", "--remote", f"{name}:2")
        tool("delete", "--insecure", f"{name}@{images.multi['digest']}")
        assert server.tags("crane/app") == ["l"]


def test_oras(tool, server, images, seed, tmp_path, step):
    (tmp_path / "note.txt").write_text("signed off\n")
    name = f"{server.host}/oras/app"
    with step("oras", "cp, attach, discover, push, pull, blob, delete"):
        tool("cp", "-r", "--from-plain-http", "--to-plain-http",
             f"{server.host}/{seed}", f"{name}:1")
        tool("attach", "--plain-http", "--artifact-type", "test/note",
             f"{name}:1", "note.txt:text/plain")
        found = json.loads(tool("discover", "--plain-http", "--format",
                                "json", f"{name}:1"))
        assert "test/note" in json.dumps(found)
        # The referrers API is there, so no fallback tag was written.
        assert server.tags("oras/app") == ["1"]
        tool("push", "--plain-http", f"{name}:note", "note.txt:text/plain")
        tool("pull", "--plain-http", "-o", "out", f"{name}:note")
        assert (tmp_path / "out/note.txt").read_text() == "signed off\n"
        tool("manifest", "delete", "--plain-http", "-f", f"{name}:note")
        assert server.tags("oras/app") == ["1"]


def test_regctl(tool, server, images, seed, step):
    name = f"{server.host}/regctl/app"
    with step("regctl", "copy in chunks, digest, tags, delete a tag"):
        # Small chunks, so that a layer takes many PATCH requests.
        tool("registry", "set", "--tls", "disabled", "--blob-chunk",
             "1000000", "--blob-max", "1000000", server.host)
        tool("image", "copy", f"ocidir://{images.layout}:multi", f"{name}:1")
        assert tool("image", "digest", f"{name}:1").strip() == (
            images.multi["digest"])
        server.held("regctl/app", "1")
        tool("image", "copy", f"{name}:1", f"{name}:2")
        tool("tag", "delete", f"{name}:1")
        assert tool("tag", "ls", name).split() == ["2"]
        assert tool("repo", "ls", server.host)


def test_helm(tool, server, tmp_path, step):
    with step("helm", "create, package, push, pull, show"):
        tool("create", "chart")
        tool("package", "chart")
        place = f"oci://{server.host}/helm"
        tool("push", "chart-0.1.0.tgz", place, "--plain-http")
        (tmp_path / "out").mkdir()
        tool("pull", f"{place}/chart", "--version", "0.1.0", "--plain-http",
             "-d", "out")
        assert ((tmp_path / "out/chart-0.1.0.tgz").read_bytes()
                == (tmp_path / "chart-0.1.0.tgz").read_bytes())
        tool("show", "chart", f"{place}/chart", "--version", "0.1.0",
             "--plain-http")


def test_cosign(tool, server, images, seed, step):
    image = (f"{server.host}/{seed.split(':')[0]}"
             f"@{images.multi['digest']}")
    with step("cosign", "sign and verify with a key"):
        tool("generate-key-pair")
        tool("sign", "--key", "cosign.key", "--tlog-upload=false", "-y",
             "--allow-http-registry", image)
        tool("verify", "--key", "cosign.pub", "--insecure-ignore-tlog",
             "--allow-http-registry", image)

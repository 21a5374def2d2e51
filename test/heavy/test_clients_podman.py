"""podman and buildah beyond push and pull."""
import json
import os

import pytest

from clients import Buildah, Podman

every_kind = pytest.mark.parametrize("kind", (Podman, Buildah),
                                     ids=("podman", "buildah"))


def test_search_through_the_catalog(machines, server, seed, step):
    podman = machines(Podman, True)
    podman.run(podman.push(f"{server.host}/podman/found:1"))
    with step("podman", "search, search --list-tags"):
        found = podman.do("search", "--tls-verify=false", "--format",
                          "{{.Name}}", f"{server.host}/podman/f").split()
        assert found == [f"{server.host}/podman/found"]
        everything = podman.do("search", "--tls-verify=false", "--limit",
                               "100", "--format", "{{.Name}}",
                               f"{server.host}/").split()
        assert f"{server.host}/{seed.split(':')[0]}" in everything
        assert podman.do("search", "--tls-verify=false", "--list-tags",
                         f"{server.host}/podman/found").split()[-1] == "1"


@every_kind
def test_multi_arch_manifest(kind, machines, server, seed, images, step):
    """An index is fetched, given a new name and pushed whole."""
    client = machines(kind, True)
    name = f"{kind.name}-list"
    with step(kind.name, "manifest create, add, push --all"):
        client.do("manifest", "create", name)
        client.do("manifest", "add", "--all", "--tls-verify=false", name,
                  f"docker://{server.host}/{seed}")
        client.do("manifest", "push", "--all", "--tls-verify=false", name,
                  f"docker://{server.host}/{kind.name}/multi:1")
        _, held = server.held(f"{kind.name}/multi", "1")
        assert held == server.held(*seed.split(":"))[1]
    client.do("manifest", "rm", name)


@every_kind
def test_zstd_layers(kind, machines, server, gate, step):
    """Through the gate: by the usual name the gzip ones would be mounted."""
    client = machines(kind, True)
    target = f"docker://{gate.host}/{kind.name}/zstd:1"
    with step(kind.name, "push with zstd layers"):
        client.do("push", "--tls-verify=false", "--compression-format",
                  "zstd", client.image[7:], target)
        manifest = json.loads(server.get(
            f"/v2/{kind.name}/zstd/manifests/1")[2])
        for layer in manifest["layers"]:
            assert layer["mediaType"].endswith("+zstd")
            server.blob(f"{kind.name}/zstd", layer)


def test_build_on_top(machines, server, seed, step):
    """FROM an image in the server; only the new layer travels back."""
    buildah = machines(Buildah, False)
    with open(os.path.join(buildah.folder, "Containerfile"), "w") as file:
        file.write(f"FROM {server.host}/{seed}\n"
                   "RUN echo built > /opt/built\n")
    target = f"{server.host}/buildah/built:1"
    with step("buildah", "build FROM the server, push the result"):
        buildah.do("build", "--isolation", "chroot", "--tls-verify=false",
                   "-t", target, buildah.folder)
        buildah.do("push", "--tls-verify=false", target)
        base = server.held(*seed.split(":"))[1]["amd64"]
        built = server.held("buildah/built", "1")[1]["amd64"]
        assert built[2][:3] == base[2] and len(built[2]) == 4
    buildah.forget(target)

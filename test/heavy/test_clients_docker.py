"""The Docker engine beyond push and pull."""
import pytest

from clients import Docker
from rig import INDEX_TYPES

REPOSITORY = "docker/app"


@pytest.fixture
def docker(machines):
    return machines(Docker, True)


@pytest.fixture
def pushed(docker, server):
    """The image in the server, and its digest there."""
    docker.run(docker.push(f"{server.host}/{REPOSITORY}:1"))
    return server.held(REPOSITORY, "1")[0]


def test_localhost_as_in_the_readme(docker, machines, server, step):
    reference = f"localhost:{server.port}/docker/readme"
    there = machines(Docker, False)
    with step("docker", "push and run by the name localhost"):
        docker.run(docker.push(reference))
        assert there.do("run", "--rm", "--network", "none",
                        reference).startswith("hello from 12")
    there.forget(reference)


def test_second_repository_mounts(docker, server, pushed, step):
    with step("docker", "push to a second repository: layers mounted"):
        output = docker.run(docker.push(f"{server.host}/docker/second:1"))
        assert output.count(f"Mounted from {REPOSITORY}") == 3
        assert server.held("docker/second", "1")[0] == pushed


def test_push_of_all_tags(docker, server, pushed, step):
    with step("docker", "push --all-tags"):
        for tag in ("2", "3"):
            docker.push(f"{server.host}/{REPOSITORY}:{tag}")
        output = docker.do("push", "--all-tags",
                           f"{server.host}/{REPOSITORY}")
        assert "Layer already exists" in output
        assert server.tags(REPOSITORY) == ["1", "2", "3"]


def test_pull_by_digest(machines, server, pushed, docker, step):
    there = machines(Docker, False)
    reference = f"{server.host}/{REPOSITORY}@{pushed}"
    with step("docker", "pull by digest"):
        there.run(there.pull(reference))
        assert there.identity(reference) == docker.image
    there.forget(reference)


def test_manifest_list(docker, server, pushed, seed, images, step):
    """docker's own manifest lists; the second architecture is a stranger."""
    name = f"{server.host}/{REPOSITORY}"
    with step("docker", "manifest create, annotate, push, inspect"):
        docker.do("manifest", "create", "--insecure", f"{name}:list",
                  f"{name}@{pushed}")
        docker.do("manifest", "annotate", "--variant", "v2", f"{name}:list",
                  f"{name}@{pushed}")
        docker.do("manifest", "push", "--insecure", "--purge", f"{name}:list")
        digest, held = server.held(REPOSITORY, "list")
        assert held["amd64"][0] == docker.image
        _, headers, _ = server.get(f"/v2/{REPOSITORY}/manifests/{digest}")
        assert headers["Content-Type"] in INDEX_TYPES
        assert '"variant": "v2"' in docker.do(
            "manifest", "inspect", "--insecure", f"{name}:list")


def test_unknown_tag_is_said_plainly(docker, server, pushed, step):
    with step("docker", "pull of an unknown tag fails plainly"):
        docker.do("pull", f"{server.host}/{REPOSITORY}:missing", fails=True,
                  says="manifest unknown")

"""containerd's ctr beyond push and pull."""
from clients import Ctr


def test_pull_one_platform_by_digest(machines, server, seed, images, step):
    ctr = machines(Ctr, False)
    repository = seed.split(":")[0]
    reference = f"{server.host}/{repository}@{images.multi['digest']}"
    with step("ctr", "pull the other architecture by digest"):
        ctr.do("images", "pull", "--plain-http", "--platform", "linux/arm64",
               "--snapshotter", "native", reference)
        assert "linux/arm64" in ctr.do("images", "list",
                                       f"name=={reference}")
    ctr.forget(reference)


def test_content_by_name(machines, server, seed, images, step):
    ctr = machines(Ctr, False)
    reference = f"{server.host}/{seed}"
    with step("ctr", "content fetch, every blob checked"):
        ctr.do("content", "fetch", "--plain-http", "--all-platforms",
               reference)
        have = ctr.do("content", "list", "-q").split()
        held = server.held(*seed.split(":"))[1]
        for config, layers, _ in held.values():
            assert {config, *layers} <= set(have)
    ctr.forget(reference)


def test_push_from_repository_to_repository(machines, server, images, step):
    """The second push names the first repository to mount from."""
    ctr = machines(Ctr, True)
    with step("ctr", "push to a second repository"):
        for name in ("ctr/first", "ctr/second"):
            ctr.run(ctr.push(f"{server.host}/{name}:1"))
            assert server.held(name, "1")[0] == images.multi["digest"]

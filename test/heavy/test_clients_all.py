"""What every client must do: push, pull what it pushed, pull an index, and
recover when it or the server is killed in the middle of a big layer."""
import pytest

from clients import MANDATORY
from rig import MIB, wait_for

MIDDLE = 20 * MIB       # of about 90; the biggest layer alone has 40
REACH_LIMIT_S = 60
RETRY_LIMIT_S = 90      # docker waits 5, 10, 15... seconds between its tries

every_client = pytest.mark.parametrize(
    "kind", MANDATORY, ids=[kind.name for kind in MANDATORY])


def check_held(server, images, client, repository):
    """The server has exactly the image that the client pushed."""
    digest, held = server.held(repository, "1")
    assert held["amd64"][0] == client.image
    if client.layers_kept:
        assert digest == images.multi["digest"]


@every_client
def test_push_then_pull_elsewhere(kind, server, images, machines, step):
    here, there = machines(kind, True), machines(kind, False)
    repository = f"team/{kind.name}/app"
    reference = f"{server.host}/{repository}:1"
    with step(kind.name, "push 3 layers"):
        here.run(here.push(reference))
        check_held(server, images, here, repository)
    with step(kind.name, "push again"):
        here.run(here.push(reference))
        assert server.tags(repository) == ["1"]
    with step(kind.name, "pull on another machine, compare files"):
        there.run(there.pull(reference))
        there.verify(reference, here.image)


@every_client
def test_pull_from_index(kind, server, images, machines, seed, step):
    client = machines(kind, False)
    reference = f"{server.host}/{seed}"
    with step(kind.name, "pull a multi-arch index, compare files"):
        client.run(client.pull(reference))
        client.verify(reference, images.config_digest())


@every_client
def test_push_interrupted_by_clients_death(kind, server, images, machines,
                                           gate, step):
    client = machines(kind, True)
    repository = f"cut/{kind.name}-client"
    command = client.push(f"{gate.host}/{repository}:1")
    with step(kind.name, "push, client killed, pushed again"):
        client.crash(start_and_hold(client, command, gate, "up"))
        gate.release()
        assert server.tags(repository) == []
        client.settle()
        client.run(command)
        check_held(server, images, client, repository)


@every_client
def test_push_interrupted_by_servers_death(kind, server, images, machines,
                                           gate, step):
    client = machines(kind, True)
    repository = f"cut/{kind.name}-server"
    command = client.push(f"{gate.host}/{repository}:1")
    with step(kind.name, "push, server killed, retried"):
        kill_server(client, command, server, gate, "up")
        check_held(server, images, client, repository)


@every_client
def test_pull_interrupted_by_clients_death(kind, server, images, machines,
                                           gate, seed, step):
    client = machines(kind, False)
    reference = f"{gate.host}/{seed}"
    command = client.pull(reference)
    with step(kind.name, "pull, client killed, pulled again"):
        client.crash(start_and_hold(client, command, gate, "down"))
        gate.release()
        client.settle()
        client.run(command)
        if "client" in kind.goes_on_after:
            assert gate.asked_ranges()
        client.verify(reference, images.config_digest())


@every_client
def test_pull_interrupted_by_servers_death(kind, server, images, machines,
                                           gate, seed, step):
    client = machines(kind, False)
    reference = f"{gate.host}/{seed}"
    with step(kind.name, "pull, server killed, retried"):
        kill_server(client, client.pull(reference), server, gate, "down")
        if "server" in kind.goes_on_after:
            assert gate.asked_ranges()
        client.verify(reference, images.config_digest())


def start_and_hold(client, command, gate, way):
    """Starts a transfer; returns once it stands still in its middle."""
    gate.hold(way, MIDDLE)
    process = client.spawn(command)
    wait_for("the middle of the transfer", lambda: gate.reached.is_set()
             or process.poll() is not None, REACH_LIMIT_S)
    assert process.poll() is None, "it ended before its middle"
    return process


def kill_server(client, command, server, gate, way):
    """Kills the server under a transfer; the client gets there in the end,
    by itself or, as some never try again, when it is started once more."""
    process = start_and_hold(client, command, gate, way)
    server.kill()
    server.start()
    gate.release()
    if process.wait(RETRY_LIMIT_S) != 0:
        client.run(command)

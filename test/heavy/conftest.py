"""Fixtures of the client tests, and the table at the end of their output."""
import contextlib
import os
import shutil
import tempfile
import time

import pytest

import clients
import rig

MEMORY_NEEDED = 12 << 30
ROWS = []       # (client, action, result, seconds), in the order of the run


@pytest.fixture(scope="session")
def step():
    """with step("docker", "push"): ... adds a line to the table."""
    @contextlib.contextmanager
    def timed(client, action):
        begin = time.monotonic()
        result = "FAILED"
        try:
            yield
            result = "ok"
        finally:
            ROWS.append((client, action, result,
                         f"{time.monotonic() - begin:.1f}"))
    return timed


@pytest.fixture(scope="session")
def not_tried():
    def add(client, reason):
        ROWS.append((client, "everything", reason, "-"))
    return add


def pytest_terminal_summary(terminalreporter):
    table = [("client", "action", "result", "seconds")] + ROWS
    widths = [max(map(len, column)) for column in zip(*table)]
    terminalreporter.section("clients")
    for row in table:
        terminalreporter.write_line("  ".join(
            cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    yield rig.Images(str(folder))
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def only_server(tmp_path_factory):
    """One server for all: what one client left must not trouble the next."""
    folder = tmp_path_factory.mktemp("server")
    server = rig.Server(str(folder))
    yield server
    status = server.stop()
    assert (status, server.said()) == (0, "")
    shutil.rmtree(folder)


@pytest.fixture
def server(only_server):
    """It runs, even if the test before could not bring it back."""
    if only_server.process.poll() is not None:
        only_server.start()
    return only_server


@pytest.fixture
def gate(server):
    """A new port each time, so that no client finds a blob to mount and
    every byte travels."""
    gate = rig.Gate(server.port)
    yield gate
    gate.close()


@pytest.fixture(scope="session")
def seed(only_server, images, tmp_path_factory):
    """Puts `multi` into the server, for those who only pull."""
    skopeo = clients.Skopeo(str(tmp_path_factory.mktemp("seed") / "skopeo"),
                            images, True)
    skopeo.run(skopeo.push(f"{only_server.host}/seed/multi:1"))
    assert only_server.held("seed/multi", "1")[0] == images.multi["digest"]
    return "seed/multi:1"


@pytest.fixture(scope="session")
def machines(images):
    """machines(Docker, filled) gives a client; made once, closed at the end."""
    top = tempfile.mkdtemp(prefix="dims-clients-", dir=clients_folder())
    made = {}

    def machine(kind, filled):
        if (kind, filled) not in made:
            folder = os.path.join(top, f"{kind.name}-{int(filled)}")
            made[kind, filled] = kind(folder, images, filled)
        return made[kind, filled]
    yield machine
    for client in made.values():
        client.close()
    rig.unmount_below(top)
    shutil.rmtree(top)


def clients_folder():
    """Memory, where there is plenty: the clients copy whole root file systems
    a lot, and their disks are not what is tested."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage("/dev/shm").free > MEMORY_NEEDED:
            return "/dev/shm"
    return None

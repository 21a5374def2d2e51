"""Fixtures of the end-to-end tests. They run the binary that ships:
$DIMS_BIN, else ./dims at the top of the checkout.

api, repo   a client of one server that the whole session shares, and a
            repository name of the test's own: for what needs no options
dims        starts a server of the test's own; stopped and checked at its end
fails       runs a server that is to refuse to start
"""

import itertools
import re

import pytest

from server import Dims, Outcome, running

counter = itertools.count(1)


@pytest.fixture
def repo(request):
    name = re.sub(r"[^a-z0-9]+", "-", request.node.originalname.lower()).strip("-")
    return f"t{next(counter)}/{name[:60].rstrip('-')}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    with running(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture
def api(shared):
    seen = len(shared.stray_stderr())
    client = shared.client()
    yield client
    client.close()
    shared.clients.remove(client)
    stray = shared.stray_stderr()[seen:]
    # Reported by the test that caused it, and not once more at the very end.
    for line in stray:
        shared.expect_stderr(re.escape(line))
    assert not stray, "unexpected on stderr:\n" + "\n".join(stray)


@pytest.fixture
def dims(tmp_path):
    servers = []

    def start(*args, home=tmp_path, **more):
        server = Dims(home, args, **more)
        servers.append(server)
        return server

    yield start
    failures = []
    for server in servers:
        try:
            if server.process.returncode is None:
                server.stop()
            else:
                server.check_stderr()
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "\n".join(failures)


@pytest.fixture
def fails(tmp_path):
    """Run dims with arguments that it has to refuse: quickly, in one line."""

    def run(*args, status, env=None, **more):
        done = Outcome(args, tmp_path, env, seconds=5, **more)
        assert done.status == status, done
        assert done.out == "", done
        assert re.fullmatch(r"dims: [^\n]+\n", done.err), done
        assert done.seconds < 2, done
        return done.err

    return run

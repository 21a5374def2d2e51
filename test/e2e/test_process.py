"""Signals, workers, systemd."""

import fcntl
import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest

from oci import check_image, digest, make_image, noise, push_blob, start_upload, with_query
from wire import Client, Closed, head, wait_until


def refuses(server):
    """True once nobody accepts connections any more."""
    try:
        server.connect().close()
        return False
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # it waited to be accepted when the listener was closed


def begin_patch(server, location, data, sent):
    conn = server.connect()
    conn.send(head("PATCH", location, {"Content-Length": str(len(data)), "Expect": "100-continue"}))
    assert conn.head().status == 100
    conn.send(data[:sent])
    return conn


# Stopping

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_is_quick_and_clean_when_nothing_is_under_way(dims, number):
    server = dims()
    idle = [server.connect() for _ in range(3)]
    client = server.client()
    client.get("/v2/")
    began = time.monotonic()
    server.signal(number)
    assert server.wait_stopped() == 0
    assert time.monotonic() - began < 2
    for conn in idle:
        conn.expect_close()
    assert client.conn.is_closed()


def test_stop_lets_a_request_finish_and_takes_no_new_ones(dims):
    server = dims()
    data = noise(200000)
    location = start_upload(server.client(), "a")
    conn = begin_patch(server, location, data, 100000)
    server.signal(signal.SIGTERM)
    wait_until(lambda: refuses(server), "new connections to be refused")
    assert server.process.poll() is None
    conn.send(data[100000:])
    answer = conn.answer("PATCH")
    assert (answer.status, answer["Connection"]) == (202, "close")
    conn.expect_close()
    assert server.wait_stopped() == 0
    client = dims().client()
    assert client.put(with_query(location, digest=digest(data))).status == 201


def test_stop_lets_a_download_finish(dims):
    server = dims()
    data = noise(1 << 20) * 16
    name = push_blob(server.client(), "a", data)
    conn = server.connect()
    conn.send(head("GET", f"/v2/a/blobs/{name}"))
    assert conn.head().status == 200
    server.close_clients()
    server.signal(signal.SIGTERM)
    wait_until(lambda: refuses(server), "new connections to be refused")
    assert conn.exactly(len(data)) == data
    assert server.wait_stopped() == 0


def test_stop_does_not_wait_longer_than_stop_timeout(dims):
    server = dims("--stop-timeout", "300ms")
    server.expect_stderr("", required=False)  # it may say what it cut off
    conn = begin_patch(server, start_upload(server.client(), "a"), noise(1000), 10)
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait_stopped() == 0
    assert 0.2 < time.monotonic() - began < 5
    conn.rest()


def test_second_signal_while_stopping_does_no_harm(dims):
    server = dims("--stop-timeout", "300ms")
    server.expect_stderr("", required=False)
    conn = begin_patch(server, start_upload(server.client(), "a"), noise(1000), 10)
    for _ in range(3):
        server.signal(signal.SIGTERM)
    assert server.wait_stopped() == 0
    conn.close()


def test_reload_while_stopping_does_not_delay_the_stop(dims):
    server = dims("--workers", "1")
    data = noise(1000)
    conn = begin_patch(server, start_upload(server.client(), "a"), data, 10)
    server.close_clients()
    server.signal(signal.SIGTERM)
    wait_until(lambda: refuses(server), "new connections to be refused")
    server.signal(signal.SIGHUP)
    time.sleep(0.1)  # a reload that is not ignored starts a worker now
    conn.send(data[10:])
    assert conn.answer("PATCH").status == 202
    began = time.monotonic()
    assert server.wait_stopped() == 0
    assert time.monotonic() - began < 3
    conn.close()


def test_port_is_free_at_once_after_a_stop(dims):
    server = dims()
    port = server.port
    client = server.client()
    client.get("/v2/")
    conn = client.conn
    client.conn = None
    server.stop()
    assert dims(port=port).client().get("/v2/").status == 200
    conn.close()


def test_start_right_after_a_kill_of_everything(dims):
    server = dims()
    port = server.port
    for _ in range(20):
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()  # the workers may still be about to die
        server = dims(port=port)
    assert server.client().get("/v2/").status == 200


# Workers

def test_killed_worker_is_replaced_and_logged(dims):
    server = dims("--workers", "2")
    image = make_image(server.client(), "a")
    before = server.workers(2)
    server.expect_stderr(r" worker\.died ")
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(server.children()) == 2 and before[0] not in server.children(),
               "a new worker")
    wait_until(lambda: "worker.died" in server.stderr(), "the log line")
    assert before[1] in server.children()
    for _ in range(8):
        check_image(server.client(), "a", "latest", image)


def test_killed_worker_costs_its_own_connections_only(dims):
    server = dims("--workers", "2")
    server.expect_stderr(r" worker\.died ")
    conns = [server.connect() for _ in range(12)]
    for conn in conns:
        conn.send(head("GET", "/v2/"))
        assert conn.answer().status == 200
    os.kill(server.workers(2)[0], signal.SIGKILL)
    # Logged once it is reaped, which is when the last of its threads is gone.
    wait_until(lambda: "worker.died" in server.stderr(), "the death")
    alive = [c for c in conns if not c.is_closed()]
    for conn in alive:
        conn.send(head("GET", "/v2/"))
        assert conn.answer().status == 200
    wait_until(lambda: len(server.children()) == 2, "a new worker")
    assert server.client().get("/v2/").status == 200


def test_all_workers_killed_at_once_are_replaced(dims):
    server = dims("--workers", "2")
    server.expect_stderr(r" worker\.died ")
    image = make_image(server.client(), "a")
    before = server.workers(2)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(server.children()) == 2 and not set(before) & set(server.children()),
               "new workers")
    check_image(server.client(), "a", "latest", image)


def test_upload_in_a_worker_that_dies_can_go_on(dims):
    server = dims("--workers", "1")
    server.expect_stderr(r" worker\.died ")
    client = server.client()
    data = noise(100000)
    location = client.patch(start_upload(client, "a"), data[:50000])["Location"]
    os.kill(server.workers(1)[0], signal.SIGKILL)
    client = server.client()
    answer = wait_until(lambda: client.get(location), "an answer")
    assert answer["Range"] == "0-49999"
    answer = client.put(with_query(location, digest=digest(data)), data[50000:])
    assert answer.status == 201


def test_workers_die_with_the_supervisor(dims):
    server = dims()
    port = server.port
    image = make_image(server.client(), "a")
    server.close_clients()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_until(lambda: not server.group(), "the workers to end")
    server.kill()
    check_image(dims(port=port).client(), "a", "latest", image)


# SIGHUP

def test_reload_takes_new_values_and_keeps_connections(dims, tmp_path):
    conf = tmp_path / "conf"
    conf.write_text("max-blob = 1000\n")
    server = dims("--config", conf)
    client = server.client()
    data = noise(2000)
    target = f"/v2/a/blobs/uploads/?digest={digest(data)}"
    assert client.post(target, data).status == 413
    location = start_upload(client, "a")
    conn = begin_patch(server, location, data[:900], 500)
    before = server.workers(2)
    conf.write_text("max-blob = 5000\n")
    server.signal(signal.SIGHUP)
    wait_until(lambda: set(server.children()) - set(before), "new workers")
    # The request under way ends in its old worker as if nothing had been.
    conn.send(data[500:900])
    answer = conn.answer("PATCH")
    assert (answer.status, answer["Range"]) == (202, "0-899")
    conn.close()
    wait_until(lambda: not set(server.children()) & set(before), "the old workers to end")
    assert Client(server.address()).post(target, data).status == 201


def test_reload_never_refuses_a_connection(dims):
    server = dims("--workers", "2")
    before = set(server.workers(2))
    server.signal(signal.SIGHUP)
    while before & set(server.children()):
        client = server.client()
        assert client.get("/v2/").status == 200
        client.close()
    server.workers(2)


def test_reload_of_a_bad_file_keeps_the_old_values(dims, tmp_path):
    conf = tmp_path / "conf"
    conf.write_text("max-blob = 1000\n")
    server = dims("--config", conf)
    conf.write_text("max-blob = nonsense\n")
    server.expect_stderr(r"max-blob")
    server.signal(signal.SIGHUP)
    wait_until(lambda: "max-blob" in server.stderr(), "the complaint")
    data = noise(2000)
    client = server.client()
    assert client.post(f"/v2/a/blobs/uploads/?digest={digest(data)}", data).status == 413


def test_many_reloads_in_a_row(dims):
    server = dims("--workers", "2")
    for _ in range(5):
        server.signal(signal.SIGHUP)
        assert server.client().get("/v2/").status == 200
    server.close_clients()
    wait_until(lambda: len(server.children()) == 2, "two workers")
    assert server.client().get("/v2/").status == 200


# systemd

def activated(dims, sockets, pid="$$", **more):
    """Start with sockets passed in as systemd does. LISTEN_PID must be the
    process's own id: the shell writes its own there, and becomes dims."""

    def place():
        # First out of the way, because the targets may be among the sources.
        high = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 100) for s in sockets]
        for i, fd in enumerate(high):
            os.dup2(fd, 3 + i)

    script = f'LISTEN_PID={pid} LISTEN_FDS={len(sockets)} exec "$0" "$@"'
    return dims(prefix=["/bin/sh", "-c", script], preexec_fn=place,
                pass_fds=range(3, 3 + len(sockets)), **more)


def listener(address=("127.0.0.1", 0)):
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.bind(address)
    sock.listen(64)
    return sock


def test_socket_activation(dims):
    with listener() as sock:
        early = Client(sock.getsockname()).connect()  # waits in the queue
        early.send(head("GET", "/v2/"))
        server = activated(dims, [sock], port=None)
        assert server.address() == sock.getsockname()
        assert early.answer().status == 200
        early.close()
        make_image(server.client(), "a")


def test_socket_activation_with_several_sockets(dims, tmp_path):
    path = str(tmp_path / "s")
    with listener() as one, listener(path) as two:
        server = activated(dims, [one, two], port=None)
        urls = [server.urls[0], server.ready_line()]
        assert {server.address(u) for u in urls} == {one.getsockname(), path}
        for url in urls:
            assert server.client(url).get("/v2/").status == 200


def test_activated_socket_outlives_a_stop(dims, tmp_path):
    # It is systemd's: a stop must neither shut it down nor remove its path.
    path = str(tmp_path / "s")
    with listener(path) as sock:
        activated(dims, [sock], port=None).stop()
        assert os.path.exists(path)
        waiting = Client(path).connect()
        waiting.send(head("GET", "/v2/"))
        activated(dims, [sock], port=None)
        assert waiting.answer().status == 200
        waiting.close()


def test_activated_sockets_send_small_answers_at_once(dims):
    # Accepted sockets inherit it, and systemd does not set it unless told to.
    with listener() as sock:
        assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        activated(dims, [sock], port=None)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_sockets_meant_for_another_process_are_ignored(dims):
    with listener() as sock:
        server = activated(dims, [sock], pid="1")
        assert server.address() != sock.getsockname()
        assert server.client().get("/v2/").status == 200


def test_readiness_is_notified(dims, tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(20)
        server = dims(env={"NOTIFY_SOCKET": path})
        assert b"READY=1" in sock.recv(4096).split(b"\n")
        assert server.client().get("/v2/").status == 200


def test_readiness_socket_that_is_gone_does_no_harm(dims, tmp_path):
    server = dims(env={"NOTIFY_SOCKET": str(tmp_path / "absent")})
    server.expect_stderr("", required=False)  # it may warn
    assert server.client().get("/v2/").status == 200


# Limits

def test_connections_over_the_limit_wait_for_one_to_end(dims):
    server = dims("--max-connections", "3", "--workers", "2")
    held = [server.client() for _ in range(3)]
    for client in held:
        assert client.get("/v2/").status == 200
    late = server.connect()
    late.send(head("GET", "/v2/"))
    assert late.quiet()
    held[0].conn.close()
    assert late.answer("GET").status == 200


def test_connections_from_one_address_are_limited(dims):
    server = dims("--max-per-address", "2", "--workers", "2")
    held = [server.client() for _ in range(2)]
    for client in held:
        assert client.get("/v2/").status == 200
    server.connect().expect_close()
    held[0].conn.close()

    def served():
        conn = server.connect()
        conn.send(head("GET", "/v2/"))
        try:
            return conn.answer("GET").status == 200
        except (ConnectionError, Closed):
            return False
        finally:
            conn.close()
    wait_until(served, "room for another connection")


def test_a_worker_that_dies_gives_its_connections_back(dims):
    server = dims("--max-connections", "4", "--workers", "2")
    server.expect_stderr("worker.died")
    held = [server.client() for _ in range(4)]
    for client in held:
        assert client.get("/v2/").status == 200
    for pid in server.workers(2):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(server.children()) == 2, "new workers")
    for client in [server.client() for _ in range(4)]:
        assert client.get("/v2/").status == 200


def test_limit_of_zero_connections_is_none(dims):
    server = dims("--max-connections", "0", "--workers", "1")
    held = [server.client() for _ in range(50)]
    for client in held:
        assert client.get("/v2/").status == 200


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def test_crowd_that_wants_all_descriptors_waits(dims):
    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    server = dims("--workers", "1", preexec_fn=few)
    client = server.client()
    image = make_image(client, "a")
    crowd = [server.connect() for _ in range(100)]
    worker = server.workers(1)[0]
    before = cpu_seconds(worker)
    time.sleep(0.5)
    assert cpu_seconds(worker) - before < 0.25, "it spins"
    # Who is in has descriptors left for files, and pushes and pulls.
    check_image(client, "a", "latest", image)
    make_image(client, "b")
    for conn in crowd:
        conn.close()
    check_image(server.client(), "a", "latest", image)

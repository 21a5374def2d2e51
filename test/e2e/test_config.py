"""The command line, the file, the environment, and what is refused at the start."""

import os
import pty
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from oci import digest, make_image, noise, push_blob
from server import BINARY, Outcome, environment
from wire import wait_until

OPTIONS = ["port", "listen", "dir", "config", "workers", "min-free", "max-blob", "upload-expire",
           "max-uploads", "read-only", "log-level", "log-format", "run-as", "stop-timeout",
           "max-connections", "cors", "help", "version"]

# For each option that has a form: values that it cannot have.
BAD = {
    "port": ["x", "-1", "65536", "99999999999999999999", "80x", "1.5"],
    "listen": ["300.1.1.1", "[::1", "127.0.0.1:x", "127.0.0.1:65536", "unix:"],
    "workers": ["x", "-1", "1.5"],
    "min-free": ["x", "-1", "1X", "M", "99999999999999999999", "20000000T", "1 M"],
    "max-blob": ["x", "-1", "1MBB"],
    "upload-expire": ["x", "-1s", "1y2", "s", "99999999999999999999d"],
    "max-uploads": ["x", "-1"],
    "read-only": ["maybe", "2"],
    "log-level": ["loud", "INFO2", "warn,info"],
    "log-format": ["xml"],
    "stop-timeout": ["x", "-1s"],
    "max-connections": ["x", "-1"],
    "cors": ["maybe"],
}
PAIRS = [(o, v) for o, values in BAD.items() for v in values]


def variable(option):
    return "DIMS_" + option.upper().replace("-", "_")


def named(error, option, value):
    """The line says what is wrong: the option, or at least its bad value."""
    assert option in error or variable(option) in error or value.rpartition(":")[2] in error, error


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Help

def test_help_lists_every_option(tmp_path):
    done = Outcome(["--help"], tmp_path)
    assert (done.status, done.err) == (0, "")
    for option in OPTIONS:
        assert re.search(rf"--{option}\b", done.out), option
    assert re.search(r"(?<![\w-])-p\b", done.out) and re.search(r"(?<![\w-])-d\b", done.out)


def test_version(tmp_path):
    done = Outcome(["--version"], tmp_path)
    assert (done.status, done.err) == (0, "")
    assert re.fullmatch(r"dims \d\S*\n", done.out)


def test_help_and_version_touch_nothing(tmp_path):
    for flag in "--help", "--version":
        Outcome([flag], tmp_path)
    assert os.listdir(tmp_path) == []


# What is refused

@pytest.mark.parametrize("args", [
    ["--nope"], ["--nope=1"], ["-z"], ["--"], ["-"], ["--dir"], ["--port"], ["-p"], ["extra"],
    ["--port=0", "extra"], ["--dirx", "x"], ["--di", "x", "y"], [""], ["--workers"]], ids=str)
def test_unknown_option_or_missing_value_is_2(fails, args):
    if args == ["--"]:
        args = ["--", "extra"]
    fails(*args, status=2)


@pytest.mark.parametrize("option, value", PAIRS)
def test_bad_value_of_a_flag_is_2(fails, option, value):
    named(fails(f"--{option}={value}", status=2), option, value)


@pytest.mark.parametrize("option, value", PAIRS)
def test_bad_value_in_the_environment_is_2(fails, option, value):
    named(fails(status=2, env={variable(option): value}), option, value)


@pytest.mark.parametrize("option, value", PAIRS)
def test_bad_value_in_the_file_is_2(fails, tmp_path, option, value):
    (tmp_path / "conf").write_text(f"# first\n\n{option} = {value}\n")
    named(fails("--config", "conf", status=2), option, value)


@pytest.mark.parametrize("text", ["nope = 1", "port", "= 1", "[section]", "port 8000", "po rt = 1",
                                  "config = other", "\x00", "help = on"])
def test_malformed_file_is_2_with_the_line(fails, tmp_path, text):
    (tmp_path / "conf").write_text(text + "\n")
    assert "conf" in fails("--config", "conf", status=2)


@pytest.mark.parametrize("path", ["absent", "/", "/dev/null/x", ""])
def test_config_file_that_cannot_be_read(fails, tmp_path, path):
    fails("--config", path, status=2)


def test_unknown_variables_of_ours_are_not_silent_or_ignored(tmp_path):
    # Other tools may have DIMS_ variables of their own: both ways are right,
    # only a crash is not.
    done = Outcome(["--version"], tmp_path, {"DIMS_NOPE": "1"})
    assert done.status in (0, 2)


@pytest.mark.parametrize("path", ["file", "file/below", "/dev/null/x", "/proc/nope", "loop"])
def test_folder_that_cannot_be_used(fails, tmp_path, path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    fails("-p", "0", "--dir", path, status=1)


def test_unreadable_folder(fails, tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    someone = {"user": "nobody"} if os.getuid() == 0 else {}  # root may read everything
    fails("-p", "0", "--dir", tmp_path / "closed", status=1, **someone)


def test_port_in_use(fails):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in fails("-p", port, "--dir", "data", status=1)


def test_port_of_another_dims(dims, fails):
    server = dims()
    assert str(server.port) in fails("-p", server.port, "--dir", "other", status=1)
    assert server.client().get("/v2/").status == 200


def test_unix_socket_of_another_dims(dims, fails, tmp_path):
    path = tmp_path / "s"
    server = dims("--listen", f"unix:{path}", port=None)
    fails("--listen", f"unix:{path}", "--dir", "other", status=1)
    assert server.client().get("/v2/").status == 200


def test_file_in_the_place_of_a_unix_socket_is_not_removed(fails, tmp_path):
    (tmp_path / "precious").write_text("x")
    fails("--listen", f"unix:{tmp_path}/precious", "--dir", "data", status=1)
    assert (tmp_path / "precious").read_text() == "x"


def test_address_that_is_not_ours(fails):
    fails("--listen", "192.0.2.1:0", "--dir", "data", status=1)


def test_unix_socket_path_that_is_too_long(tmp_path):
    done = Outcome(["--listen", "unix:/tmp/" + "x" * 200, "--dir", "data"], tmp_path)
    assert done.status in (1, 2)
    assert re.fullmatch(r"dims: [^\n]+\n", done.err)


def test_unknown_user(tmp_path):
    done = Outcome(["-p", "0", "--dir", "data", "--run-as", "no-such-user"], tmp_path)
    assert done.status in (1, 2)
    assert re.fullmatch(r"dims: [^\n]*no-such-user[^\n]*\n", done.err)


# Where values come from

def test_port_by_flag_file_and_environment_in_order(dims, tmp_path):
    ports = [free_port() for _ in range(4)]
    conf = tmp_path / "conf"
    conf.write_text(f"port = {ports[1]}\n")
    steps = [
        (["-p", ports[3]], {"DIMS_PORT": str(ports[2]), "PORT": str(ports[0])}, ports[3]),
        ([], {"DIMS_PORT": str(ports[2]), "PORT": str(ports[0])}, ports[2]),
        ([], {"PORT": str(ports[0])}, ports[1]),
    ]
    for args, env, port in steps:
        server = dims("--config", conf, *args, port=None, env=env)
        assert server.port == port
        server.stop()
    server = dims(port=None, env={"PORT": str(ports[0])})
    assert server.port == ports[0]


def test_what_kubernetes_calls_a_service_named_dims_is_no_port(dims):
    port = free_port()
    env = {"DIMS_PORT": "tcp://10.0.0.1:8000", "DIMS_SERVICE_PORT": "8000", "PORT": str(port)}
    server = dims(port=None, env=env)
    assert server.port == port
    server.stop()
    assert dims(port=port, env=env).port == port


def test_folder_by_flag_file_and_environment_in_order(dims, tmp_path):
    (tmp_path / "conf").write_text("dir = from-file\n")
    for name, args, env in [("from-flag", ["--dir=from-flag"], {"DIMS_DIR": "from-env"}),
                            ("from-env", [], {"DIMS_DIR": "from-env"}), ("from-file", [], {})]:
        dims("--config", "conf", *args, dir=None, env=env).stop()
        assert (tmp_path / name / "format").exists()
    assert not (tmp_path / "dims-data").exists()


def limit(server):
    """The --max-blob that this server has, of 1000, 2000 and 3000."""
    client = server.client()
    for size in 1000, 2000, 3000:
        data = noise(size + 1)
        answer = client.post(f"/v2/a/blobs/uploads/?digest={digest(data)}", data)
        if answer.status == 413:
            return size
    return None


def test_any_option_by_flag_file_and_environment_in_order(dims, tmp_path):
    (tmp_path / "conf").write_text("max-blob = 1000\n")
    file, env = ["--config", "conf"], {"DIMS_MAX_BLOB": "2000"}
    assert limit(dims("--max-blob", "3000", *file, env=env, dir="1")) == 3000
    assert limit(dims(*file, env=env, dir="2")) == 2000
    assert limit(dims(*file, dir="3")) == 1000
    assert limit(dims(dir="4")) is None


def test_config_file_by_environment(dims, tmp_path):
    (tmp_path / "conf").write_text("max-blob = 1000\n")
    assert limit(dims(env={"DIMS_CONFIG": "conf"})) == 1000


def test_form_of_the_file(dims, tmp_path):
    (tmp_path / "conf").write_text(
        "# a comment\n\n   # another\n\tmax-blob\t=\t1000   \r\nport=0\n"
        "  workers = 1\nlog-format = json")
    server = dims("--config", "conf", port=None)
    assert limit(server) == 1000
    server.workers(1)


@pytest.mark.parametrize("size, count", [("1000", 1000), ("1K", 1024), ("1k", 1024)])
def test_sizes_may_have_a_unit(dims, size, count):
    client = dims("--max-blob", size).client()
    push_blob(client, "a", noise(count))
    data = noise(count + 1)
    assert client.post(f"/v2/a/blobs/uploads/?digest={digest(data)}", data).status == 413


@pytest.mark.parametrize("form", [["--port=0"], ["--port", "0"], ["-p", "0"], ["-p0"]], ids=str)
def test_forms_of_a_flag(dims, form):
    assert dims(*form, port=None).client().get("/v2/").status == 200


def test_port_is_repeatable_and_a_higher_source_replaces_the_list(dims, tmp_path):
    ports = sorted(free_port() for _ in range(3))
    (tmp_path / "conf").write_text(f"port = {ports[2]}\nport = {ports[1]}\n")
    server = dims("--config", "conf", port=None)
    found = {server.address(u)[1] for u in [server.urls[0],
                                            *(server.ready_line() for _ in range(3))]}
    assert found == set(ports[1:])
    server.stop()
    server = dims("--config", "conf", "-p", ports[0], port=None)
    assert {server.port, server.address(server.ready_line())[1]} == {ports[0]}


def test_port_does_not_apply_to_a_listener_that_has_one(dims):
    port = free_port()
    server = dims("--listen", f"127.0.0.1:{port}")
    assert server.port == port


def test_listener_without_a_port_takes_port(dims):
    port = free_port()
    assert dims("--listen", "127.0.0.1", port=port).address() == ("127.0.0.1", port)


def test_by_default_only_loopback_is_served(dims):
    server = dims()
    urls = [server.urls[0], server.ready_line()]
    assert sorted(u.rpartition(":")[0] for u in urls) == ["http://127.0.0.1", "http://[::1]"]
    assert len({server.address(u)[1] for u in urls}) == 1
    with open(f"/proc/{server.process.pid}/net/tcp", encoding="ascii") as table:
        bound = {line.split()[1] for line in table}
    port = f":{server.port:04X}"
    assert {a for a in bound if a.endswith(port)} == {"0100007F" + port}


@pytest.mark.parametrize("value", ["on", "off"])
def test_switches_take_on_and_off(dims, tmp_path, value):
    (tmp_path / "conf").write_text(f"read-only = {value}\n")
    answer = dims("--config", "conf").client().post("/v2/a/blobs/uploads/")
    assert answer.status == (405 if value == "on" else 202)


@pytest.fixture
def public_home():
    """A folder that others may enter; pytest's own are root's alone."""
    home = Path(tempfile.mkdtemp())
    os.chmod(home, 0o755)
    yield home
    shutil.rmtree(home)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become someone else")
def test_run_as_drops_to_the_user_after_binding(public_home, dims):
    user = pwd.getpwnam("nobody")
    data = public_home / "data"
    data.mkdir()
    os.chown(data, user.pw_uid, user.pw_gid)
    port = next(p for p in range(700, 1024) if can_bind(p))
    server = dims("--listen", f"127.0.0.1:{port}", "--run-as", "nobody", home=public_home,
                  port=None)
    make_image(server.client(), "a")
    for pid in [server.process.pid, *server.children()]:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = {k: v.split() for k, _, v in (l.partition(":") for l in status.splitlines())}
        assert set(fields["Uid"]) == {str(user.pw_uid)}
        assert set(fields["Gid"]) == {str(user.pw_gid)}
        assert set(fields["Groups"]) <= {str(user.pw_gid)}
        assert int(fields["CapEff"][0], 16) == 0
    assert {p.stat().st_uid for p in data.rglob("*")} == {user.pw_uid}


def can_bind(port):
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return True
    except OSError:
        return False


def test_start_on_a_terminal_shows_how_to_push(tmp_path):
    lead, follow = pty.openpty()
    process = subprocess.Popen([BINARY, "-p", "0", "--dir", "data", "--log-level", "warn"],
                               cwd=tmp_path, env=environment(), stdin=follow, stdout=follow,
                               stderr=follow, start_new_session=True)
    os.close(follow)
    text = b""
    os.set_blocking(lead, False)

    def shown():
        nonlocal text
        try:
            text += os.read(lead, 4096)
        except BlockingIOError:
            pass
        return b"docker push" in text

    try:
        wait_until(shown, "the hint")
        assert b"listening on http://127.0.0.1:" in text
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(20)
        os.close(lead)
    assert status == 0

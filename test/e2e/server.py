"""Starting and stopping the binary under test."""

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

from wire import DEADLINE, Client, wait_until

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.path.abspath(os.environ.get("DIMS_BIN") or ROOT / "dims")


def environment(extra=None):
    """The caller's environment without what configures dims."""
    clean = {k: v for k, v in os.environ.items()
             if not k.startswith(("DIMS_", "LISTEN_")) and k not in ("PORT", "NOTIFY_SOCKET")}
    return {**clean, **(extra or {})}


def processes():
    """{pid: (parent, group)} of all that are alive."""
    table = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        state, parent, group = stat.rpartition(")")[2].split()[:3]
        if state not in "ZX":
            table[int(entry)] = (int(parent), int(group))
    return table


class Dims:
    """A running server. Whatever it writes to stderr must have been declared
    with expect_stderr(); stop() checks that."""

    def __init__(self, home, args=(), *, port="0", dir="data", level="warn", env=None, prefix=(),
                 **popen):
        self.home = Path(home)
        self.data = self.home / dir if dir else self.home / "dims-data"
        self.stderr_path = self.home / f"stderr.{time.monotonic_ns()}"
        self.expected = []
        self.clients = []
        self.output = b""
        command = [*prefix, BINARY]
        command += ["-p", str(port)] if port is not None else []
        command += ["--dir", str(self.data)] if dir else []
        command += ["--log-level", level] if level else []
        with open(self.stderr_path, "wb") as sink:
            popen = {"stderr": sink, **popen}
            self.process = subprocess.Popen(
                command + [str(a) for a in args], cwd=self.home, env=environment(env),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                start_new_session=True, **popen)
        try:
            self.urls = [self.ready_line()]
        except BaseException:
            self.kill()
            raise

    def expect_stderr(self, pattern, required=True):
        """Declare lines that may (or, required, must) appear on stderr."""
        self.expected.append((re.compile(pattern), required))

    def stderr(self):
        return self.stderr_path.read_text(errors="replace")

    def stray_stderr(self):
        return [line for line in self.stderr().splitlines()
                if not any(p.search(line) for p, _ in self.expected)]

    def _read_line(self, seconds):
        end = time.monotonic() + seconds
        out = self.process.stdout.fileno()
        while b"\n" not in self.output:
            left = max(0, end - time.monotonic())
            if not select.select([out], [], [], left)[0]:
                raise AssertionError(f"no line on stdout in {seconds} s: {self.stderr()}")
            data = os.read(out, 4096)
            if not data:
                raise AssertionError(f"stdout ended, exit {self.process.wait(DEADLINE)}: "
                                     f"{self.stderr()}")
            self.output += data
        line, _, self.output = self.output.partition(b"\n")
        return line.decode()

    def ready_line(self, seconds=DEADLINE):
        """The address that the next line on stdout announces."""
        line = self._read_line(seconds)
        found = re.fullmatch(r"dims \S+ listening on (\S+)", line)
        assert found, f"not a ready line: {line!r}"
        return found[1]

    def address(self, url=None):
        """A listener's socket address: (host, port) or a path."""
        url = url or self.urls[0]
        if url.startswith("unix:"):
            return url[5:]
        host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def port(self):
        return self.address()[1]

    def client(self, url=None):
        client = Client(self.address(url))
        self.clients.append(client)
        return client

    def connect(self, url=None):
        return Client(self.address(url)).connect()

    def children(self):
        return sorted(p for p, (parent, _) in processes().items() if parent == self.process.pid)

    def workers(self, count):
        """The children, once they are so many: a job is one too while it runs."""
        return wait_until(lambda: len(found := self.children()) == count and found,
                          f"{count} workers")

    def group(self):
        return [p for p, (_, g) in processes().items() if g == self.process.pid]

    def signal(self, number):
        self.process.send_signal(number)

    def close_clients(self):
        for client in self.clients:
            client.close()
        self.clients = []

    def wait_stopped(self, seconds=DEADLINE):
        """The exit status, once nothing of it is left."""
        status = self.process.wait(seconds)
        wait_until(lambda: not self.group(), "processes outlive the supervisor")
        self.process.stdout.close()
        return status

    def kill(self):
        """SIGKILL everything at once, as a crash of the machine would."""
        self.close_clients()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait_stopped()

    def stop(self):
        """Stop with SIGTERM and hold the rules that every run has to keep."""
        self.close_clients()
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            status = self.wait_stopped()
        except BaseException:
            self.kill()
            raise
        assert status == 0, f"exit status {status}: {self.stderr()}"
        self.check_stderr()

    def check_stderr(self):
        stray = self.stray_stderr()
        assert not stray, "unexpected on stderr:\n" + "\n".join(stray[:50])
        for pattern, required in self.expected:
            if required:
                assert pattern.search(self.stderr()), f"stderr lacks {pattern.pattern!r}"


@contextlib.contextmanager
def frozen(pid):
    """Stop a process for as long as a with block: what comes meanwhile, it
    finds all at once."""
    stat = Path(f"/proc/{pid}/stat")
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T",
                   "the process to stop")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def running(home, *args, **more):
    """A server for as long as a with block; for fixtures of a module."""
    server = Dims(home, args, **more)
    yield server
    server.stop()


class Outcome:
    """How a run of the binary that was to end by itself did end."""

    def __init__(self, args, home, env=None, seconds=DEADLINE, **popen):
        began = time.monotonic()
        try:
            done = subprocess.run([BINARY, *map(str, args)], cwd=home, env=environment(env),
                                  stdin=subprocess.DEVNULL, capture_output=True,
                                  timeout=seconds, **popen)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"it runs on: {late.stdout} {late.stderr}") from None
        self.seconds = time.monotonic() - began
        self.status = done.returncode
        self.out = done.stdout.decode(errors="replace")
        self.err = done.stderr.decode(errors="replace")

    def __repr__(self):
        return f"<exit {self.status} in {self.seconds:.2f} s, out {self.out!r}, err {self.err!r}>"

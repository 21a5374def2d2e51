"""Logs: one line a request, plain or JSON, and a reader who does not read."""

import json
import os
import re
import signal
import subprocess

import pytest

from oci import digest, make_image, noise, push_blob, start_upload
from wire import head, wait_until

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def logging(dims, form, level="info"):
    server = dims("--log-format", form, level=level)
    server.expect_stderr("", required=False)  # the lines are what is tested
    return server


def accesses(server, form):
    """The access lines as dictionaries."""
    found = []
    for line in server.stderr().splitlines():
        if form == "json":
            fields = json.loads(line)
            assert isinstance(fields, dict)
            if "http.access" in fields.values():
                found.append(fields)
        elif match := re.fullmatch(rf"({STAMP}) info http\.access (.*)", line):
            pairs = re.findall(r'([\w.]+)=("(?:[^"\\]|\\.)*"|[^" ]*)', match[2])
            found.append({"time": match[1], **dict(pairs)})
    return found


@pytest.mark.parametrize("form", ["plain", "json"])
def test_access_line_has_who_what_status_bytes_and_time(dims, form):
    server = logging(dims, form)
    client = server.client()
    data = noise(12345)
    name = push_blob(client, "a", data)
    target = f"/v2/a/blobs/{name}"
    client.get(target)
    client.get("/nowhere")

    def line(path, method):
        for fields in accesses(server, form):
            values = [str(v).strip('"') for v in fields.values()]
            if path in values and method in values:
                return fields, values
        return None

    fields, values = wait_until(lambda: line(target, "GET"), "the access line")
    assert "200" in values
    assert "12345" in values
    assert any(v.startswith("127.0.0.1") for v in values)
    assert any(re.search("ms|us|seconds|took|duration", k) for k in fields)
    assert any(re.fullmatch(STAMP, v) for v in values)
    assert "404" in wait_until(lambda: line("/nowhere", "GET"), "the second line")[1]
    wait_until(lambda: len(accesses(server, form)) == 4, "one line a request")


@pytest.mark.parametrize("form", ["plain", "json"])
def test_every_line_has_time_level_and_tag(dims, form):
    server = logging(dims, form, "debug")
    make_image(server.client(), "a")
    server.stop()
    lines = server.stderr().splitlines()
    assert lines
    for line in lines:
        if form == "json":
            values = [str(v) for v in json.loads(line).values()]
            assert any(re.fullmatch(STAMP, v) for v in values)
            assert {"error", "warn", "info", "debug"} & set(values)
        else:
            assert re.match(rf"{STAMP} (error|warn|info|debug) [a-z0-9_]+\.[a-z0-9_.]+( |$)",
                            line), line


@pytest.mark.parametrize("level", ["error", "warn"])
def test_quiet_levels_have_no_access_lines(dims, level):
    server = dims(level=level)
    make_image(server.client(), "a")
    server.client().get("/nowhere")
    server.stop()
    assert server.stderr() == ""


@pytest.mark.parametrize("form", ["plain", "json"])
def test_what_clients_send_cannot_forge_lines(dims, form):
    server = logging(dims, form)
    client = server.client()
    evil = '/v2/%0a2026-01-01T00:00:00.000Z%20info%20forged%20x=1%0d"\\x'
    with server.connect() as conn:
        conn.send(head("GET", evil, {"User-Agent": 'a" b=\\"c', "Referer": "\xff\xfe"}))
        conn.answer()
        conn.send(b"GET /v2/\x1b[31m HTTP/1.1\r\nHost: x\r\n\r\n")
        conn.rest()
    client.get("/v2/last")
    wait_until(lambda: "/v2/last" in server.stderr(), "the last line")
    text = server.stderr()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert not re.search(rf"^{STAMP} info forged", text, re.M)
    for line in text.splitlines():
        if form == "json":
            json.loads(line)
        else:
            assert re.match(STAMP, line)


@pytest.mark.parametrize("form", ["plain", "json"])
@pytest.mark.parametrize("sent", [0, 100])
def test_client_that_vanishes_has_its_line(dims, form, sent):
    server = logging(dims, form)
    client = server.client()
    location = start_upload(client, "a")
    with server.connect() as conn:
        conn.send(head("PATCH", location, {"Content-Length": "1000", "Expect": "100-continue"}))
        assert conn.head().status == 100
        conn.send(b"x" * sent)
        conn.abort()

    def lines():
        return [f for f in accesses(server, form) if f["path"] == location]

    wait_until(lines, "the access line")
    assert client.get("/v2/").status == 200
    server.stop()
    assert [(f["method"], f["end"]) for f in lines()] == [("PATCH", "gone")]


def test_each_event_is_logged_once(dims):
    # What the supervisor had yet to write was once written by each worker too.
    server = dims("--workers", "2", level="info")
    server.expect_stderr("", required=False)
    before = server.workers(2)
    for _ in range(2):
        server.signal(signal.SIGHUP)
        wait_until(lambda: not set(server.children()) & set(before), "the old workers to end")
        before = server.workers(2)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: before[0] not in server.children(), "its death")
    server.workers(2)
    assert server.client().get("/v2/").status == 200
    server.stop()
    events = [line.split()[2] for line in server.stderr().splitlines()]
    assert (events.count("config.loaded"), events.count("worker.died")) == (2, 1)


def test_secrets_are_never_logged(dims):
    server = logging(dims, "plain", "debug")
    client = server.client()
    client.get("/v2/", {"Authorization": "Basic c2VjcmV0OnNlY3JldA==", "Cookie": "c2VjcmV0"})
    client.get("/v2/last")
    wait_until(lambda: "/v2/last" in server.stderr(), "the last line")
    assert "c2VjcmV0" not in server.stderr()


def test_pipe_that_nobody_reads_does_not_stop_the_server(dims):
    server = dims("--workers", "1", level="info", stderr=subprocess.PIPE)
    client = server.client()
    name = push_blob(client, "a", b"x")
    request = head("GET", f"/v2/a/blobs/{name}", (), client.host)
    # A pipe takes 64 KiB, the ring a little more: this is several times that.
    with server.connect() as conn:
        for _ in range(40):
            conn.send(request * 100)
            for _ in range(100):
                assert conn.answer().status == 200
    make_image(client, "b")
    server.close_clients()
    server.signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    server.process.stderr.close()


def test_closed_stderr_and_stdout_do_not_stop_the_server(dims):
    server = dims(level="info", stderr=subprocess.PIPE)
    server.process.stderr.close()
    server.process.stdout.close()
    client = server.client()
    for _ in range(50):
        assert client.get("/v2/").status == 200
    make_image(client, "a")
    assert client.get(f"/v2/a/blobs/{digest(b'none')}").status == 404
    server.close_clients()
    server.signal(signal.SIGTERM)
    assert server.process.wait(20) == 0

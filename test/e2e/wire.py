"""HTTP as bytes: a client that shows what went over the wire.

http.client folds headers, hides interim answers and forgives bad framing. Here
raw bytes go in and a parsed answer comes out, and every answer is held against
RFC 9112 while it is read, so that each test checks the framing as well.
"""

import json
import re
import select
import socket
import time

DEADLINE = 20.0  # seconds: generous, because sanitizers on a busy box are slow


class ProtocolError(AssertionError):
    """The server sent something that is not HTTP/1.1."""


class Closed(ProtocolError):
    """The server closed the connection where an answer was due."""


def wait_until(condition, what, seconds=DEADLINE):
    """Return the first true value of condition(), which is asked again and
    again until the deadline."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"gave up after {seconds} s: {what}"
        time.sleep(0.01)


class Response:
    def __init__(self, status, headers, interim):
        self.status = status
        self.headers = headers  # [(name, value)] as they were sent
        self.interim = interim  # statuses of the 1xx answers before this one
        self.body = b""
        self.trailers = []

    def all(self, name):
        return [v for n, v in self.headers if n.lower() == name.lower()]

    def __getitem__(self, name):
        """The header's value, None where it is missing. Twice is an error: no
        header that a test asks for this way may be repeated."""
        values = self.all(name)
        assert len(values) < 2, f"{name} was sent {len(values)} times"
        return values[0] if values else None

    def json(self):
        return json.loads(self.body)

    def codes(self):
        return [e["code"] for e in self.json()["errors"]]

    def parts(self):
        """[(headers, body)] of a multipart answer."""
        found = re.fullmatch(
            r'multipart/byteranges; *boundary="?([^";]+)"?', self["Content-Type"])
        assert found, f"not multipart/byteranges: {self['Content-Type']!r}"
        boundary = b"--" + found[1].encode()
        # RFC 2046 lets an empty preamble, with its line end, come first.
        text = b"\r\n" + self.body.removeprefix(b"\r\n")
        pieces = text.split(b"\r\n" + boundary)
        assert pieces[0] == b"", "bytes before the first boundary"
        assert pieces[-1].rstrip(b"\r\n") == b"--", "no closing boundary"
        result = []
        for piece in pieces[1:-1]:
            head, mark, body = piece.partition(b"\r\n\r\n")
            assert mark, f"a part without a head: {piece[:80]!r}"
            fields = head.decode("latin-1").strip("\r\n").split("\r\n")
            pairs = [f.partition(":")[::2] for f in fields if f]
            result.append(({n.lower(): v.strip() for n, v in pairs}, body))
        return result

    def __repr__(self):
        return f"<{self.status} {dict(self.headers)} {self.body[:300]!r}>"


class Conn:
    """One connection: bytes in, answers out."""

    def __init__(self, address, timeout=DEADLINE):
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(address)
        else:
            self.sock = socket.create_connection(address, timeout)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def send_some(self, data):
        """Send what the server takes; it may well have hung up by now."""
        try:
            self.sock.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def finish(self):
        """Say that nothing more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def abort(self):
        """Hang up with a reset."""
        linger = (1).to_bytes(4, "little") + bytes(4)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.sock.close()

    def _more(self):
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            data = b""
        except TimeoutError:
            raise ProtocolError(
                f"no answer in time; so far: {self.buffer[:200]!r}") from None
        if not data:
            raise Closed(f"closed after {self.buffer[:200]!r}")
        self.buffer += data

    def _line(self):
        while b"\n" not in self.buffer:
            self._more()
        line, _, self.buffer = self.buffer.partition(b"\n")
        if not line.endswith(b"\r"):
            raise ProtocolError(f"line without CR: {line!r}")
        return line[:-1].decode("latin-1")

    def exactly(self, size):
        """The next size bytes."""
        pieces = [self.buffer]
        have = len(self.buffer)
        while have < size:
            self.buffer = b""
            self._more()
            pieces.append(self.buffer)
            have += len(self.buffer)
        data = b"".join(pieces)
        self.buffer = data[size:]
        return data[:size]

    def _fields(self):
        fields = []
        while line := self._line():
            found = re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*)", line)
            if not found or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", found[2]):
                raise ProtocolError(f"bad header line: {line!r}")
            fields.append((found[1], found[2].rstrip(" \t")))
        return fields

    def head(self):
        """Read one status line with its headers; also a 1xx."""
        line = self._line()
        found = re.fullmatch(r"HTTP/1\.1 ([1-5]\d\d) [\t -~]*", line)
        if not found:
            raise ProtocolError(f"bad status line: {line!r}")
        return Response(int(found[1]), self._fields(), [])

    def _chunked(self, answer):
        body = []
        while True:
            line = self._line()
            if not re.fullmatch(r"[0-9A-Fa-f]+", line):
                raise ProtocolError(f"bad chunk size: {line!r}")
            size = int(line, 16)
            if size == 0:
                break
            body.append(self.exactly(size))
            if self.exactly(2) != b"\r\n":
                raise ProtocolError("a chunk does not end in CRLF")
        answer.trailers = self._fields()
        return b"".join(body)

    def answer(self, method="GET"):
        """Read the final answer to a request made with method."""
        interim = []
        while (got := self.head()).status < 200:
            interim.append(got.status)
        got.interim = interim
        lengths = got.all("Content-Length")
        codings = got.all("Transfer-Encoding")
        if len(lengths) > 1 or (lengths and codings):
            raise ProtocolError(f"ambiguous framing: {got.headers}")
        if got.status == 204 and (lengths or codings):
            raise ProtocolError("a 204 must have neither length nor coding")
        if method == "HEAD" or got.status in (204, 304):
            return got
        if codings:
            got.body = self._chunked(got)
        elif lengths:
            got.body = self.exactly(int(lengths[0]))
        else:
            if (got["Connection"] or "").lower() != "close":
                raise ProtocolError("neither length, coding nor close")
            got.body = self.rest()
        return got

    def rest(self):
        """Everything until the server closes."""
        try:
            while True:
                self._more()
        except Closed:
            data, self.buffer = self.buffer, b""
            return data

    def expect_close(self):
        """The server closes now, and says nothing more before it does."""
        rest = self.rest()
        assert not rest, f"more came before the close: {rest[:200]!r}"

    def quiet(self, seconds=0.05):
        """True while nothing has come and the connection is open."""
        return not self.buffer and not select.select([self.sock], [], [], seconds)[0]

    def is_closed(self):
        if self.buffer or not select.select([self.sock], [], [], 0)[0]:
            return False
        try:
            return self.sock.recv(1, socket.MSG_PEEK) == b""
        except ConnectionResetError:
            return True


def head(method, target, headers=(), host="localhost", version="HTTP/1.1"):
    """A request's head as bytes."""
    pairs = list(headers.items() if isinstance(headers, dict) else headers)
    if host is not None and not any(n.lower() == "host" for n, _ in pairs):
        pairs.insert(0, ("Host", host))
    lines = [f"{method} {target} {version}"] + [f"{n}: {v}" for n, v in pairs]
    return "\r\n".join(lines + ["", ""]).encode("latin-1")


def chunks(data, size=65536):
    """data in the chunked coding."""
    pieces = [data[i:i + size] for i in range(0, len(data), size)]
    coded = [b"%x\r\n%s\r\n" % (len(p), p) for p in pieces]
    return b"".join(coded) + b"0\r\n\r\n"


class Client:
    """Requests over one connection that is kept alive."""

    def __init__(self, address):
        self.address = address
        self.conn = None

    @property
    def host(self):
        if isinstance(self.address, str):
            return "localhost"
        name, port = self.address[:2]
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"

    def close(self):
        if self.conn:
            self.conn.close()
            self.conn = None

    def connect(self):
        """A fresh connection for raw bytes."""
        return Conn(self.address)

    def request(self, method, target, headers=(), body=None, chunked=False):
        pairs = list(headers.items() if isinstance(headers, dict) else headers)
        names = {n.lower() for n, _ in pairs}
        if chunked:
            pairs.append(("Transfer-Encoding", "chunked"))
            body = chunks(body)
        elif body is not None or method in ("POST", "PUT", "PATCH"):
            body = body or b""
            if "content-length" not in names:
                pairs.append(("Content-Length", str(len(body))))
        if self.conn and self.conn.is_closed():
            self.close()
        if not self.conn:
            self.conn = Conn(self.address)
        try:
            # A refusal may come before all of the body has left.
            self.conn.send_some(head(method, target, pairs, self.host) + (body or b""))
            answer = self.conn.answer(method)
        except BaseException:
            self.close()
            raise
        if (answer["Connection"] or "").lower() == "close":
            self.conn.expect_close()
            self.close()
        if target.startswith("/v2/"):
            check_api(answer)
        return answer

    def get(self, target, headers=()):
        return self.request("GET", target, headers)

    def head(self, target, headers=()):
        return self.request("HEAD", target, headers)

    def post(self, target, body=None, headers=(), **more):
        return self.request("POST", target, headers, body, **more)

    def put(self, target, body=None, headers=(), **more):
        return self.request("PUT", target, headers, body, **more)

    def patch(self, target, body=None, headers=(), **more):
        return self.request("PATCH", target, headers, body, **more)

    def delete(self, target, headers=()):
        return self.request("DELETE", target, headers)


CODES = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN", "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID",
    "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED", "UNSUPPORTED",
    "TOOMANYREQUESTS",
    "PAGINATION_NUMBER_INVALID", "UNKNOWN",  # distribution's, which its clients know
}


def check_api(answer):
    """What holds for every answer below /v2/."""
    assert answer["Docker-Distribution-API-Version"] == "registry/2.0"
    location = answer["Location"]
    # Clients take a Location without a leading slash for a host.
    assert location is None or re.match(r"/[^/]", location), location
    kind = answer["Content-Type"] or ""
    if answer.status < 400 or not answer.body or not kind.startswith("application/json"):
        return
    for error in answer.json()["errors"]:
        assert re.fullmatch(r"[A-Z_]+", error["code"])
        # The spec closes the list for 4xx; a 5xx may say something else.
        assert answer.status >= 500 or error["code"] in CODES, error
        assert isinstance(error.get("message", ""), str)


def refused(answer, status, *codes):
    """Assert that answer is an error of the spec's form: one of the statuses
    and, if any are named, one of the codes."""
    allowed = (status,) if isinstance(status, int) else tuple(status)
    assert answer.status in allowed, answer
    assert answer["Content-Type"] == "application/json", answer
    assert answer.codes(), answer
    assert not codes or answer.codes()[0] in codes, answer

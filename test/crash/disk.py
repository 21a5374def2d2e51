"""A disk, served by NBD, that forgets at a power cut what was not flushed."""

import contextlib
import mmap
import random
import socket
import struct
import threading
import time

READ, WRITE, DISCONNECT, FLUSH = range(4)
FUA = 1    # a command flag: this write is not to be held back
FLAGS = 1 | 4 | 8    # that there are flags, flushes and FUA
REQUEST = struct.Struct(">IHHQQI")


class Disk:
    """The bytes of an image, which itself stays as it is. Writes are done at
    once and can be undone until a flush comes: only those before it survive."""

    def __init__(self, image):
        with open(image, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.held = []    # (offset, old, new, FUA), in order
        self.lock = threading.Lock()
        self.on = False
        # As on a real disk, so that power also fails while a flush is under way.
        self.flush_seconds = 0.003

    def serve(self, path):
        """Be the disk behind the Unix socket for its next client."""
        self.on = True
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(1)
        threading.Thread(target=self._serve, args=[listener], daemon=True).start()

    def cut(self, keep, rng=random):
        """Power fails: of what is held back each write survives with the
        probability keep. Returns how many were held back, and how many lost."""
        with self.lock:
            self.on = False
            held, self.held = self.held, []
            for at, old, _, _ in reversed(held):
                self.bytes[at:at + len(old)] = old
            survivors = [w for w in held if w[3] or rng.random() < keep]
            for at, _, new, _ in survivors:
                self.bytes[at:at + len(new)] = new
            return len(held), len(held) - len(survivors)

    def _serve(self, listener):
        with contextlib.suppress(ConnectionError, EOFError, OSError), listener:
            conn, _ = listener.accept()
            with conn, conn.makefile("rb", 1 << 20) as requests:
                # The old handshake: no options, so nothing to negotiate.
                conn.sendall(struct.pack(">8sQQHH124x", b"NBDMAGIC", 0x00420281861253,
                                         len(self.bytes), 0, FLAGS))
                while self._answer(conn, requests):
                    pass

    def _answer(self, conn, requests):
        _, flags, command, cookie, at, size = REQUEST.unpack(self._take(requests, REQUEST.size))
        data = self._take(requests, size) if command == WRITE else b""
        if command == FLUSH:
            time.sleep(self.flush_seconds)
        with self.lock:
            if not self.on or command == DISCONNECT:
                return False
            answer = struct.pack(">IIQ", 0x67446698, 0, cookie)
            if command == READ:
                answer += self.bytes[at:at + size]
            elif command == WRITE:
                self.held.append((at, self.bytes[at:at + size], data, flags & FUA))
                self.bytes[at:at + size] = data
            else:
                assert command == FLUSH
                self.held.clear()
            # Under the lock: after a cut nobody hears that a flush was done.
            conn.sendall(answer)
        return True

    @staticmethod
    def _take(requests, size):
        data = requests.read(size)
        if len(data) < size:
            raise EOFError
        return data

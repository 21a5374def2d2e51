"""What a traced server made durable, by a model of the strictest disk that POSIX
allows: a file has its bytes once it was synced after the last write, and a name
once its folder was synced after it was made. Real file systems give more (ext4
writes all names with any of them), so that a test on one cannot miss a sync
that another needs.
"""

import os
import re

CALLS = ("open,openat,creat,mkdir,mkdirat,link,linkat,rename,renameat,renameat2,unlink,unlinkat,"
         "write,writev,pwrite64,pwritev,sendfile,copy_file_range,ftruncate,"
         "fsync,fdatasync,sync_file_range,sendto,sendmsg")
WRITES = {"write", "writev", "pwrite64", "pwritev", "sendfile", "copy_file_range", "ftruncate"}


def command(log, *more):
    """What to put before a command to have it traced; the tracer stays behind
    it, so that the process is the server itself."""
    return ["strace", "-D", "-f", "-y", "-qq", "-s", "64", "-e", "signal=none",
            "-e", f"trace={CALLS}", *more, "-o", str(log)]


class Node:
    def __init__(self):
        self.names = {}      # of a folder: as they are
        self.durable = {}    # and as they are on the disk
        self.dirty = False   # of a file: bytes that are not on the disk


class Trace:
    """Follows a log from the start of the server that made the folder, or from
    where that one ended."""

    def __init__(self, top, node=None):
        self.top = str(top)
        self.node = node or Node()
        self.early = []    # names that were given before the bytes were synced

    def find(self, path):
        node = self.node
        if path != self.top:
            for name in os.path.relpath(path, self.top).split("/"):
                node = node and node.names.get(name)
        return node

    def place(self, path, node):
        folder = self.find(os.path.dirname(path))
        if folder:
            folder.names[os.path.basename(path)] = node
        if node and node.dirty:
            self.early.append(path)

    def remove(self, path):
        folder = self.find(os.path.dirname(path))
        return folder and folder.names.pop(os.path.basename(path), None)

    def events(self, log):
        """(what, argument) in order: the calls are followed meanwhile, and each
        answer that is sent yields ("sent", its status line)."""
        started = {}
        with open(log, errors="replace") as lines:
            for line in lines:
                thread, _, text = line.rstrip("\n").partition(" ")
                text = text.strip()
                sent = re.match(r'(?:sendto|sendmsg|write|writev)\(.*?"(HTTP/1\.1 [^\\"]*)', text)
                if sent:
                    # It counts from its beginning, a sync from its end.
                    yield sent[1]
                if text.endswith("<unfinished ...>"):
                    started[thread] = text.removesuffix("<unfinished ...>").rstrip()
                    continue
                resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", text)
                if resumed:
                    text = started.pop(thread, "") + resumed[1]
                call = re.match(r"(\w+)\((.*)\)\s+= (\d+)(.*)$", text)
                if call:
                    self.follow(call[1], call[2], call[4])

    def follow(self, call, text, result):
        """A call that succeeded."""
        # Paths: those relative to a descriptor, the others, and descriptors.
        at = [os.path.normpath(os.path.join(folder, name)) for folder, name
              in re.findall(r'\d+<(/[^>]*)>, "([^"]*)"', text)]
        paths = at or [p for p in re.findall(r'"([^"]*)"', text) if p.startswith("/")]
        fd = re.match(r"\d+<(/[^>]*)>", text)
        node = self.find(fd[1]) if fd and self.inside(fd[1]) else None
        if call in WRITES and node:
            node.dirty = True
            self.early.append(fd[1])
        elif call in ("fsync", "fdatasync") and node:
            node.dirty = False
            if call == "fsync":
                node.durable = dict(node.names)
        if not paths or not all(map(self.inside, paths)):
            return
        if call.startswith("mkdir") or (call.startswith("open") and "O_CREAT" in text
                                        and not self.find(paths[0])):
            self.place(paths[0], Node())
        elif call.startswith("link"):
            self.place(paths[1], self.find(paths[0]))
        elif call.startswith("rename"):
            self.place(paths[1], self.remove(paths[0]))
        elif call.startswith("unlink"):
            self.remove(paths[0])

    def inside(self, path):
        return path == self.top or path.startswith(self.top + "/")

    def missing(self, path, below=None):
        """What keeps the file from surviving a power cut; None if it would,
        supposing that the folder below does."""
        done = str(below or self.top)
        node = self.find(done)
        for name in os.path.relpath(path, done).split("/"):
            if name not in node.names:
                return f"{done} has no {name}"
            if node.durable.get(name) is not node.names[name]:
                return f"{done} was not synced since it got {name}"
            node, done = node.names[name], f"{done}/{name}"
        return f"{done} was not synced since it was written" if node.dirty else None

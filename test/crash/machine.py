"""A small virtual machine that runs dims on a disk of ours.

Emulated in software, so that it needs no rights and runs within another virtual
machine. The kernel and busybox are Debian's; they are downloaded and unpacked
in build/crash, not installed: an installed kernel would be the next one that
this computer boots.
"""

import os
import queue
import re
import socket
import subprocess
import threading
import time
from pathlib import Path

from server import BINARY, ROOT

CACHE = ROOT / "build" / "crash"
MODULES = """drivers/virtio/virtio_ring drivers/virtio/virtio
    drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci_legacy_dev
    drivers/virtio/virtio_pci drivers/block/virtio_blk drivers/char/hw_random/virtio-rng
    net/core/failover drivers/net/net_failover drivers/net/virtio_net""".split()

# Nothing reaches the disk but what is synced: write-back and commits by time
# are an hour away, and memory is never short. ext4 must not come to the aid of
# a rename over a file that was not synced. The canary says whether files of
# the last run that nobody synced are really gone; raw, written to a disk that
# is never flushed, says the same of the disk itself.
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in %(modules)s; do insmod /$m.ko; done
cd /proc/sys/vm
echo 360000 > dirty_writeback_centisecs
echo 360000 > dirty_expire_centisecs
echo 80 > dirty_background_ratio
echo 90 > dirty_ratio
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 up
route add default gw 10.0.2.2
mount -t ext4 -o commit=600,noauto_da_alloc,errors=panic /dev/vda /data || exit
if [ -s /data/canary ]; then echo canary alive
elif [ -d /data/dims ]; then echo canary dead
else echo canary new
fi
rm -f /data/canary
sync
echo canary > /data/canary
yes canary | dd of=/dev/vdb bs=4k count=64 iflag=fullblock oflag=direct 2> /dev/null
exec /dims --listen 0.0.0.0:8000 --dir /data/dims --workers 2 --log-level warn
"""


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def unpacked(package):
    """The folder with the files of a Debian package."""
    folder = CACHE / package
    if not folder.exists():
        fresh = CACHE / f"{package}.{os.getpid()}"
        fresh.mkdir(parents=True)
        run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package, cwd=fresh)
        (archive,) = fresh.glob("*.deb")
        run("dpkg-deb", "-x", archive, fresh)
        archive.unlink()
        fresh.rename(folder)
    return folder


def kernel():
    """The folder with the kernel that Debian's metapackage stands for now, or
    the one that is there already."""
    there = sorted(CACHE.glob("linux-image-*-cloud-amd64"))
    if there:
        return there[-1]
    depends = run("apt-cache", "depends", "linux-image-cloud-amd64")
    return unpacked(re.search(r"Depends: (linux-image-\S+)", depends)[1])


def cpio(files):
    """An archive of {name: bytes, or None for a folder}, as the kernel wants it
    (its Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        mode = 0o40755 if data is None else 0o100755
        data, name = data or b"", name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08x" % f for f in fields) + name
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def initramfs():
    names = [m.rpartition("/")[2] for m in MODULES]
    files = dict.fromkeys(["bin", "dev", "proc", "sys", "data"])
    files["init"] = (INIT % {"modules": " ".join(names)}).encode()
    files["dims"] = Path(BINARY).read_bytes()
    files["bin/busybox"] = (unpacked("busybox-static") / "bin" / "busybox").read_bytes()
    (top,) = (kernel() / "lib" / "modules").glob("*/kernel")
    for module, name in zip(MODULES, names):
        files[f"{name}.ko"] = (top / f"{module}.ko").read_bytes()
    return cpio(files)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Machine:
    """One run of it, from power-on until it is pulled out."""

    def __init__(self, home, disk, canary):
        self.console = []
        self.lines = queue.Queue()
        self.address = ("127.0.0.1", free_port())
        initrd = home / "initrd"
        if not initrd.exists():
            initrd.write_bytes(initramfs())
        (image,) = (kernel() / "boot").glob("vmlinuz-*")
        command = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2",
                   "-m", "512", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
                   "-serial", "stdio", "-kernel", image, "-initrd", initrd,
                   "-append", "console=ttyS0 quiet panic=-1"]
        for name, each in ("data", disk), ("raw", canary):
            path = home / f"{name}.{time.monotonic_ns()}"
            each.serve(str(path))
            command += ["-drive", f"if=none,id={name},format=raw,file=nbd+unix:///?socket={path}",
                        "-device", f"virtio-blk-pci,drive={name}"]
        host = f"hostfwd=tcp:127.0.0.1:{self.address[1]}-:8000"
        command += ["-netdev", f"user,id=net,restrict=on,{host}",
                    "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]
        began = time.monotonic()
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._wait_ready(began + 60)
        except BaseException:
            self.pull()
            raise
        self.seconds = time.monotonic() - began

    def _listen(self):
        with self.process.stdout as console:
            for line in console:
                self.lines.put(line.decode(errors="replace").strip())
        self.lines.put(None)

    def _wait_ready(self, deadline):
        while not (self.console and "listening on" in self.console[-1]):
            left = deadline - time.monotonic()
            try:
                line = self.lines.get(timeout=max(0, left))
            except queue.Empty:
                line = None
            assert line is not None, "it did not start:\n" + "\n".join(self.console)
            self.console.append(line)

    def said(self, word):
        """The lines so far that hold the word."""
        with self.lines.mutex:
            later = [line for line in self.lines.queue if line]
        return [line for line in self.console + later if word in line]

    def pull(self):
        self.process.kill()
        self.process.wait()

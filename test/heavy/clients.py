"""The five clients that have to work, behind one face.

A client keeps daemon, storage and settings in a folder of its own, so that
two of a kind are like two machines: one is made with the image in its store
and pushes, an empty one pulls. push() and pull() return a command, to be run
to its end or to be killed in the middle by crash(), which settle() follows.
check() holds what was pulled, the root file system included, against what
was made; forget() drops it.
"""
import contextlib
import json
import os
import shutil
import signal
import subprocess

from rig import FINGERPRINT, run, sha256, wait_for

# The packaged clients, whatever else the machine has in /usr/local.
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DAEMON_LIMIT_S = 60
# Run inside what was pulled: its program, then all of its files.
INSPECTION = ("sh", "-c", "/opt/app/run\n" + FINGERPRINT, "inspection", "/")


def program(name):
    path = shutil.which(name, path=SYSTEM_PATH)
    assert path, (f"{name} is not installed; test/heavy/packages lists what "
                  "these tests need")
    return path


def spawn(command, log=subprocess.DEVNULL, **more):
    """Starts a command in a process group of its own, to be killed as one."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                            stderr=subprocess.STDOUT, start_new_session=True,
                            **more)


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stop(daemon):
    daemon.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        daemon.wait(30)
    kill_group(daemon)


class Client:
    command = []
    environment = {}
    layers_kept = False     # pushes the very bytes that it was given
    goes_on_after = ()      # whose death: a pull asks only for the rest

    def __init__(self, folder, images, filled):
        self.folder = folder
        self.images = images
        os.makedirs(folder)
        self.environment = dict(os.environ, PATH=SYSTEM_PATH, HOME=folder,
                                XDG_RUNTIME_DIR=folder, TMPDIR=folder)
        self.open()
        # The digest of the configuration: what every client calls an image.
        self.image = images.config_digest()
        if filled:
            self.fill()

    def open(self):
        pass

    def fill(self):
        pass

    def close(self):
        pass

    def do(self, *arguments, **more):
        return run(*self.command, *arguments, env=self.environment, **more)

    def spawn(self, command, log=subprocess.DEVNULL):
        return spawn(command, log, env=self.environment)

    def run(self, command):
        return run(*command, env=self.environment)

    def crash(self, process):
        kill_group(process)

    def settle(self):
        pass

    def inspect(self, output):
        """Judges what INSPECTION printed."""
        greeting, fingerprint = output.splitlines(keepends=True)
        assert greeting.startswith("hello from 12")
        assert fingerprint == self.images.fingerprint

    def verify(self, reference, image):
        """Checks what was pulled and drops it, also when it was wrong: the
        next test must not find it."""
        try:
            self.check(reference, image)
        finally:
            self.forget(reference)

    def start_daemon(self, command, is_ready):
        with open(os.path.join(self.folder, "log"), "ab") as log:
            daemon = self.spawn(command, log)
        wait_for(command[0], lambda: subprocess.run(
            is_ready, env=self.environment,
            capture_output=True).returncode == 0, DAEMON_LIMIT_S)
        return daemon

    def start_containerd(self):
        """Returns the process and the address of a containerd of our own."""
        top = os.path.join(self.folder, "containerd")
        os.mkdir(top)
        settings, socket = (os.path.join(top, name)
                            for name in ("config.toml", "socket"))
        with open(settings, "w") as file:
            file.write(f'version = 2\nroot = "{top}/root"\n'
                       f'state = "{top}/state"\n'
                       'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                       f'[grpc]\naddress = "{socket}"\n')
        return self.start_daemon(
            [program("containerd"), "-c", settings],
            [program("ctr"), "-a", socket, "version"]), socket


class Docker(Client):
    name = "docker"
    goes_on_after = ("server",)

    def open(self):
        # Beside the engine, as a system has it: it outlives the engine.
        self.containerd, runtime = self.start_containerd()
        socket = "unix://" + os.path.join(self.folder, "docker.sock")
        self.command = [program("docker"), "--config", self.folder,
                        "-H", socket]
        self.engine = [
            program("dockerd"), "--storage-driver", "vfs",
            "--iptables=false", "--bridge=none",
            "--containerd", runtime,
            "--data-root", os.path.join(self.folder, "data"),
            "--exec-root", os.path.join(self.folder, "exec"),
            "--pidfile", os.path.join(self.folder, "pid"), "-H", socket]
        self.settle()

    def settle(self):
        # Of an engine that was killed; the number may be another's by now.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.folder, "pid"))
        self.daemon = self.start_daemon(self.engine,
                                        self.command + ["version"])

    def fill(self):
        """The layout's tree, made by docker's own means in three layers."""
        start = ["-c", 'CMD ["/opt/app/run"]']
        self.do("import", *start, self.images.root, "big:0")
        steps = ("rm -r /usr/share/doc && cp -a /mnt/opt/. /opt",
                 "cp -a /mnt/srv/. /srv")
        for number, step in enumerate(steps):
            self.do("run", "--name", "step", "--network", "none", "-v",
                    f"{self.images.changes}:/mnt:ro", f"big:{number}",
                    "sh", "-c", step)
            self.do("commit", *start, "step", f"big:{number + 1}")
            self.do("rm", "step")
        self.image = self.identity("big:2")

    def close(self):
        stop(self.daemon)
        stop(self.containerd)

    def identity(self, reference):
        return json.loads(self.do("inspect", reference))[0]["Id"]

    def push(self, target):
        self.do("tag", "big:2", target)
        return self.command + ["push", target]

    def pull(self, source):
        return self.command + ["pull", source]

    def crash(self, process):
        # Not the command but the engine moves the bytes.
        kill_group(self.daemon)
        process.wait()

    def check(self, reference, image):
        assert self.identity(reference) == image
        self.inspect(self.do("run", "--rm", "--network", "none", reference,
                             *INSPECTION))

    def forget(self, reference):
        self.do("rmi", "-f", reference)


class Skopeo(Client):
    name = "skopeo"
    layers_kept = True

    def open(self):
        self.command = [program("skopeo")]
        self.pulled = os.path.join(self.folder, "pulled")

    def push(self, target):
        # Or it may name another compression of a layer that it remembers.
        return self.command + [
            "copy", "--all", "--preserve-digests", "--dest-tls-verify=false",
            f"oci:{self.images.layout}:multi", f"docker://{target}"]

    def pull(self, source):
        return self.command + [
            "copy", "--all", "--src-tls-verify=false",
            f"docker://{source}", f"oci:{self.pulled}:it"]

    def check(self, reference, image):
        check_layout(self.pulled, self.images)

    def forget(self, reference):
        shutil.rmtree(self.pulled)


class Ctr(Client):
    name = "ctr"
    goes_on_after = ("client", "server")
    layers_kept = True

    def open(self):
        self.containerd, socket = self.start_containerd()
        self.command = [program("ctr"), "-a", socket]

    def fill(self):
        archive = os.path.join(self.folder, "layout.tar")
        run("tar", "-C", self.images.layout, "-cf", archive, ".")
        self.do("images", "import", "--all-platforms", "--no-unpack",
                archive)
        os.unlink(archive)

    def close(self):
        stop(self.containerd)

    def push(self, target):
        return self.command + ["images", "push", "--plain-http", target,
                               "local/heavy:multi"]

    def pull(self, source):
        return self.command + ["images", "pull", "--plain-http",
                               "--all-platforms", "--snapshotter", "native",
                               source]

    def check(self, reference, image):
        assert self.images.multi["digest"] in self.do(
            "images", "list", f"name=={reference}")
        assert image in self.do("content", "list", "-q")
        self.inspect(self.do("run", "--rm", "--snapshotter", "native",
                             reference, "inspection", *INSPECTION))

    def forget(self, reference):
        # The lease of a killed ctr would keep what it had fetched.
        for lease in self.do("leases", "list", "-q").split():
            self.do("leases", "delete", lease)
        self.do("images", "remove", "--sync", reference)


class Storage(Client):
    """What podman and buildah share: the library below them."""

    def open(self):
        self.command = [program(self.name)]
        self.environment.update(
            CONTAINERS_CONF=self._write("containers.conf", f"""\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{self.folder}/tmp"
"""),
            CONTAINERS_STORAGE_CONF=self._write("storage.conf", f"""\
[storage]
driver = "vfs"
graphroot = "{self.folder}/graph"
runroot = "{self.folder}/run"
"""))

    def _write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def fill(self):
        self.do("pull", "-q", f"oci:{self.images.layout}:big")

    def push(self, target):
        return self.command + ["push", "--tls-verify=false", self.image[7:],
                               f"docker://{target}"]

    def pull(self, source):
        return self.command + ["pull", "--tls-verify=false", source]

    def identity(self, reference):
        return "sha256:" + json.loads(self.do(
            "inspect", "--type", "image", reference))[0]["Id"]


class Podman(Storage):
    name = "podman"

    def check(self, reference, image):
        assert self.identity(reference) == image
        self.inspect(self.do("run", "--rm", "--network", "none", reference,
                             *INSPECTION))

    def forget(self, reference):
        self.do("rmi", "-f", reference)


class Buildah(Storage):
    name = "buildah"

    def identity(self, reference):
        return "sha256:" + json.loads(self.do(
            "inspect", "--type", "image", reference))["FromImageID"]

    def check(self, reference, image):
        assert self.identity(reference) == image
        self.do("from", "--pull-never", "--name", "it", reference)
        self.inspect(self.do("run", "--isolation", "chroot", "it", "--",
                             *INSPECTION))
        self.do("rm", "it")

    def forget(self, reference):
        self.do("rmi", "-f", reference)


MANDATORY = (Docker, Skopeo, Ctr, Podman, Buildah)


def check_layout(folder, images):
    """Holds an OCI layout with the image `multi` against the one we made."""
    with open(os.path.join(folder, "index.json")) as file:
        named = [entry["digest"] for entry in json.load(file)["manifests"]]
    assert images.multi["digest"] in named
    ours, theirs = (os.path.join(top, "blobs", "sha256")
                    for top in (images.layout, folder))
    for name in os.listdir(ours):
        with open(os.path.join(theirs, name), "rb") as file:
            assert sha256(file.read()) == "sha256:" + name

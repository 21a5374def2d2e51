"""Collection while clients push, delete and push again what they share, and
while the server is killed: nothing that was promised is lost, and what was
deleted gives its room back.

CHURN_SECONDS (20), CHURN_CLIENTS (24), CHURN_SEED; ten minutes with fifty
clients is the full proof.
"""

import contextlib
import json
import os
import random
import socket
import threading
import time

from oci import digest, image_of, push_blob
from server import Dims
from wire import Client, Closed, wait_until

SECONDS = float(os.environ.get("CHURN_SECONDS", 20))
CLIENTS = int(os.environ.get("CHURN_CLIENTS", 24))
SEED = int(os.environ.get("CHURN_SEED", random.randrange(1 << 32)))
GRACE = 2
LOST = (Closed, ConnectionError, TimeoutError)


class Churner(threading.Thread):
    """Pushes an image of layers that others push and delete too, looks at it
    while it is there, deletes it; for ever."""

    def __init__(self, number, stage):
        super().__init__(daemon=True)
        self.name = f"c{number}"
        self.rng = random.Random(SEED * 1000 + number)
        self.stage = stage
        self.repo = f"churn/{number % 3}"
        self.held = None       # (manifest's digest, layers) that was acknowledged
        self.leaving = False   # its deletion was asked for
        self.wrong = []
        self.rounds = 0

    def run(self):
        while not self.stage.ended.is_set() and not self.wrong:
            try:
                self.client = Client(self.stage.address)
                while not self.stage.ended.is_set() and not self.wrong:
                    self.turn()
            except LOST:
                self.stage.ended.wait(0.05)   # killed: it comes back

    def turn(self):
        if self.held:
            if not self.leaving:
                self.look()
            self.let_go()
            return
        layers = [self.rng.choice(self.stage.pool) for _ in range(3)]
        config = json.dumps({"by": self.name, "round": self.rounds}).encode()
        for data in [config, *layers]:
            self.offer(data)
        body = json.dumps(image_of(config, layers)).encode()
        answer = self.client.put(f"/v2/{self.repo}/manifests/{self.name}", body,
                                 {"Content-Type": json.loads(body)["mediaType"]})
        assert answer.status == 201, answer
        self.held = digest(body), [config, *layers]
        self.rounds += 1
        self.stage.ended.wait(self.rng.choice([0, 0, 0.1, 1]))

    def offer(self, data):
        """As docker does: only what is not there is pushed."""
        if self.client.head(f"/v2/{self.repo}/blobs/{digest(data)}").status == 200:
            return
        if self.rng.random() < 0.3:
            source = f"churn/{self.rng.randrange(3)}"
            if self.client.post(f"/v2/{self.repo}/blobs/uploads/?mount={digest(data)}"
                                f"&from={source}").status == 201:
                return
        push_blob(self.client, self.repo, data)

    def look(self):
        name, blobs = self.held
        answer = self.client.get(f"/v2/{self.repo}/manifests/{self.name}")
        if answer.status != 200 or digest(answer.body) != name:
            self.wrong.append(f"{self.repo}:{self.name} is {answer}")
        for data in blobs:
            answer = self.client.get(f"/v2/{self.repo}/blobs/{digest(data)}")
            if answer.status != 200 or answer.body != data:
                self.wrong.append(f"{self.repo}@{digest(data)} of {name}: {answer}")

    def let_go(self):
        name, _ = self.held
        self.leaving = True
        status = self.client.delete(f"/v2/{self.repo}/manifests/{name}").status
        # 404: a kill came between the deletion and its answer.
        assert status in (202, 404), status
        self.held = None
        self.leaving = False


def quiet_port(rng):
    """A free port that no client gets as its own: one that connects again and
    again to a dead server's ephemeral port ends up connected to itself."""
    while True:
        port = rng.randrange(10000, 30000)
        with socket.socket() as probe:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


class Stage:
    def __init__(self, home):
        rng = random.Random(SEED)
        self.home = home
        self.pool = [rng.randbytes(rng.randrange(1, 60000)) for _ in range(30)]
        self.ended = threading.Event()
        self.server = None
        self.start(quiet_port(rng))

    def start(self, port):
        self.server = Dims(self.home, ["--gc-grace", f"{GRACE}s"], port=port)
        self.address = self.server.address()

    def kill(self):
        port = self.address[1]
        self.server.kill()
        self.start(port)


def stored(folder):
    """How many blobs there are; listing bears that they go meanwhile."""
    return sum(len(os.listdir(p)) for p in (folder / "repos").glob("churn/*/_oci/blobs/*"))


def test_collection_keeps_every_promise_and_frees_the_room(tmp_path):
    print(f"CHURN_SEED={SEED}")
    stage = Stage(tmp_path)
    rng = random.Random(SEED + 1)
    crowd = [Churner(i, stage) for i in range(CLIENTS)]
    for one in crowd:
        one.start()
    end, kills = time.monotonic() + SECONDS, 0
    while time.monotonic() < end and not any(one.wrong for one in crowd):
        time.sleep(rng.uniform(0.5, 4))
        stage.kill()
        kills += 1
    stage.ended.set()
    for one in crowd:
        one.join(60)
        assert not one.is_alive()
    assert not [w for one in crowd for w in one.wrong]
    for one in crowd:
        one.client = Client(stage.address)
        if one.held and not one.leaving:
            one.look()
        if one.held:
            one.let_go()
    assert not [w for one in crowd for w in one.wrong]
    # What a kill kept from its client's knowledge.
    client = Client(stage.address)
    for record in (stage.server.data / "repos").glob("churn/*/_oci/manifests/*"):
        repo = f"churn/{record.parts[-4]}"
        assert client.delete(f"/v2/{repo}/manifests/sha256:{record.name}").status == 202
    began = time.monotonic()
    wait_until(lambda: stored(stage.server.data) == 0, "the room to come back", 30)
    print(f"{CLIENTS} clients, {sum(one.rounds for one in crowd)} images, {kills} kills; "
          f"room back after {time.monotonic() - began:.1f} s with a grace of {GRACE} s")
    stage.server.stop()

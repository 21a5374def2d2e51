"""Power cuts: a virtual machine whose disk forgets what was not flushed.

CRASH_CUTS cuts (10; 50 is the full proof), CRASH_SEED to repeat a run's choices.
A cut comes under load, or at the instant when a lone client has read its 201:
under load the sync of one client hides that another's is missing.
"""

import json
import os
import platform
import random
import subprocess
import threading
import time

import pytest

from disk import Disk
from load import COMMON, Checker, Load
from machine import Machine
from oci import descriptor

CUTS = int(os.environ.get("CRASH_CUTS") or 10)
SEED = os.environ.get("CRASH_SEED") or os.urandom(4).hex()
CANARY = b"canary\n" * 100


class Rig:
    """The load and its ledger, and the machine that is up now."""

    def __init__(self, home):
        self.home = home
        self.rng = random.Random(SEED)
        self.load = Load(SEED, pushers=5, largest=60000)
        # Long uploads, of which something is always written and not flushed.
        self.load.pushers[0].largest = 10 << 20
        data = home / "data.img"
        raw = home / "raw.img"
        for image, size in (data, 1 << 30), (raw, 1 << 20):
            image.touch()
            os.truncate(image, size)
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-E",
                        "lazy_itable_init=0,lazy_journal_init=0", data], check=True)
        self.disk = Disk(data)
        self.raw = Disk(raw)
        self.canary = "new"
        self.boot()

    def boot(self):
        self.machine = Machine(self.home, self.disk, self.raw)
        assert self.machine.said("canary ") == [f"canary {self.canary}"]
        self.canary = "dead"
        for pusher in self.load.pushers:
            pusher.open(self.machine.address)

    def cut(self, keep):
        """The disk first: nothing that happens after this counts."""
        held, lost = self.disk.cut(keep, self.rng)
        assert self.raw.bytes.find(CANARY) >= 0, "the canary was not written"
        assert self.raw.held, "the canary was flushed"
        _, raw_lost = self.raw.cut(keep, self.rng)
        self.load.ending = True
        self.machine.pull()
        self.disk.flush_seconds = 0.003
        assert raw_lost, "the disk does not forget"
        if keep == 0:
            assert self.raw.bytes.find(CANARY) < 0
        self.raw.bytes[:] = bytes(len(self.raw.bytes))
        return held, lost


# What happens before the cut. Each sets up what it needs, then does one thing
# alone and returns when its 201 has been read.

def under_load(rig, one, other):
    rig.load.start(rig.machine.address)
    time.sleep(rig.rng.uniform(1, 4))


def blob_by_post(rig, one, other):
    one.push(one.fresh(), "post")


def blob_by_patch(rig, one, other):
    one.push(one.fresh(), "patch")


def mount(rig, one, other):
    name = one.push(one.fresh(), repo=COMMON)
    one.push(one.fresh())    # the repository is there, and its folders synced
    one.mount(name, COMMON)


def tag(rig, one, other):
    one.put_manifest(one.image(), "v1")


def tag_moved(rig, one, other):
    one.put_manifest(one.image(), "v1")
    one.put_manifest(one.image(), "v1")


def referrer(rig, one, other):
    subject = one.image()
    one.put_manifest(subject)
    one.put_manifest(one.image(descriptor(subject, json.loads(subject)["mediaType"])))


def same_blob(rig, one, other):
    """Two push the same; power fails when the first is told that it is there."""
    repo = rig.rng.choice([COMMON, COMMON, None])
    data = one.fresh()
    for pusher in one, other:
        pusher.push(pusher.fresh(), repo=repo)
    # While one waits for a slow disk, the other finds what that one has done.
    rig.disk.flush_seconds = 0.1
    told = threading.Event()
    threads = []
    for pusher in one, other:
        def push(pusher=pusher):
            try:
                pusher.push(data, "post", repo)
                told.set()
            except (OSError, AssertionError) as cut_off:
                assert told.is_set(), cut_off
        threads.append(threading.Thread(target=push))
        threads[-1].start()
    assert told.wait(20), "nobody got an answer"
    rig.load.threads = threads


def new_name(rig, one, other):
    one.repo = f"{one.name}/{one.rng.randbytes(4).hex()}/a/deep/new/name"
    one.push(one.rng.choice(one.shared))


def deletes(rig, one, other):
    one.put_manifest(one.image(), "v1")
    one.any_delete_tag()


SCENES = [under_load, blob_by_patch, mount, tag, referrer, same_blob, new_name, blob_by_post,
          deletes, under_load, tag_moved, same_blob]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine runs this dims as it is")
def test_nothing_acknowledged_is_lost_to_power_cuts(tmp_path):
    print(f"CRASH_SEED={SEED}")
    rig = Rig(tmp_path)
    ledger = rig.load.ledger
    losses = []
    try:
        for turn in range(CUTS):
            scene = SCENES[turn % len(SCENES)]
            # All of what was not flushed is lost, or a part of it.
            keep = rig.rng.choice([0, 0, 0.5, 0.8])
            one, other = rig.rng.sample(rig.load.pushers[1:], 2)
            began = time.monotonic()
            scene(rig, one, other)
            held, lost = rig.cut(keep)
            losses += [f"cut {turn}: {f}" for f in rig.load.join()]
            up = rig.machine.seconds
            rig.boot()
            found = Checker(ledger, rig.machine.address, power=True).check()
            found += rig.machine.said("error")
            losses += [f"cut {turn}, {scene.__name__}: {f}" for f in found]
            print(f"cut {turn} {scene.__name__}: {lost} of {held} unflushed writes lost, "
                  f"{len(found)} losses; boot {up:.1f} s, all {time.monotonic() - began:.1f} s")
        losses += Checker(ledger, rig.machine.address, power=True).check(everything=True)
    finally:
        rig.machine.pull()
    print(f"{CUTS} cuts, {ledger.told} changes acknowledged, {len(losses)} losses")
    assert not losses, "\n".join(losses)

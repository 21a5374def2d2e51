"""kill -9 of the supervisor and all workers at random moments under load.

CRASH_KILLS rounds (20; 200 is the full proof), CRASH_SEED to repeat a run.
"""

import os
import random
import time

from load import Checker, Load
from server import Dims

KILLS = int(os.environ.get("CRASH_KILLS") or 20)
SEED = os.environ.get("CRASH_SEED") or os.urandom(4).hex()


def test_nothing_acknowledged_is_lost_to_kills(tmp_path):
    print(f"CRASH_SEED={SEED}")
    rng = random.Random(SEED)
    load = Load(SEED)
    losses = []
    server = Dims(tmp_path)
    for turn in range(KILLS):
        load.start(server.address())
        time.sleep(rng.uniform(0.2, 0.5))
        load.ending = True
        server.kill()
        losses += [f"round {turn}: {f}" for f in load.join()]
        server.check_stderr()
        server = Dims(tmp_path)
        losses += [f"round {turn}: {l}" for l in Checker(load.ledger, server.address()).check()]
    losses += Checker(load.ledger, server.address()).check(everything=True)
    server.stop()
    print(f"{KILLS} kills, {load.ledger.told} changes acknowledged, {len(losses)} losses")
    assert not losses, "\n".join(losses)
    assert load.ledger.told > 10 * KILLS, "there was no load"

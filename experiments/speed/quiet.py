"""Whether other programs are at work, by what Linux counts in /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

QUIET = 0.1  # cores that others may keep busy
WINDOW = 3.0  # seconds of a look
PROC = Path("/proc")
TICK = 1.0 / os.sysconf("SC_CLK_TCK")


class Look(NamedTuple):
    """Seconds that cores have worked so far: all of them, and those of some sessions' processes."""

    time: float
    busy: float
    own: float


def look(sessions: tuple[int, ...] = ()) -> Look:
    """Reads the counters. Processes that have ended and that nobody waited for count no more."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    own = 0
    for path in PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) in sessions:
            own += sum(map(int, fields[11:15]))  # its own and its children's, user and system
    busy = user + nice + system + irq + softirq + steal
    return Look(time.perf_counter(), busy * TICK, own * TICK)


def others(before: Look, after: Look) -> float:
    """Cores that were busy in between with what is not our own; time stolen by a host counts."""
    busy = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, busy / (after.time - before.time))


def wait(sessions: tuple[int, ...], patience: float) -> dict[str, object]:
    """Waits until the machine is quiet, `patience` seconds at most; returns what was found."""
    start = time.perf_counter()
    while True:
        before = look(sessions)
        time.sleep(WINDOW)
        busy = others(before, look(sessions))
        waited = time.perf_counter() - start
        if busy <= QUIET or waited >= patience:
            return {
                "quiet": busy <= QUIET,
                "busy_cores": round(busy, 2),
                "load": round(os.getloadavg()[0], 2),
                "waited_s": round(waited),
            }

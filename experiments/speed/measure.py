"""Measures how fast we are beside others, case by case.

    .venv-parity/bin/python -m experiments.speed.measure --out=experiments/speed/cpu.json \
        [--cases=unet_small,vgg16] [--rounds=9] [--device=cuda] [--threads=2] [--patience=600]

Each side of a case is a process of its own (contestant.py), with the same cores and environment and
with compilation caches that are empty at first. Sides take turns, one unit of work each round, in
an order that moves on from round to round, each after a short rest, since threads of some libraries
spin on behind their work. Before the rounds of a case the measurer waits for a quiet machine; the
record says whether it was, and how many cores others kept busy while a unit was timed.

The peer is the side that is fastest in the median of all that are not ours; the ratio is the median
over rounds of our time to its time in the same round. The record is written after each case. What
it has already is not measured again, unless --again; a case that cannot be measured leaves its
reason there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.speed import quiet
from experiments.speed.case import OURS, Case
from experiments.speed.contestant import cases

FLAGS = flags.FLAGS
REST = 0.3  # seconds before a unit
LIMIT = 3600.0  # seconds until a side is given up
SAME = 0.02  # relative difference of numbers that sides must share
CEILING = "ceiling_matmul"
ROOT = Path(__file__).resolve().parents[2]
# For both sides alike; `make train` sets it.
TUNABLES = "glibc.malloc.hugetlb=1"


class Failed(RuntimeError):
    """A contestant ended, or answered nothing in time."""


class Side:
    """The process of one side."""

    def __init__(self, case: str, side: str, options: Sequence[str], threads: int) -> None:
        self.name = side
        self._folder = tempfile.TemporaryDirectory(prefix=f"{case}-{side}-")
        self._errors = Path(self._folder.name, "stderr")
        environment = os.environ | {
            "GLIBC_TUNABLES": TUNABLES,
            "OMP_NUM_THREADS": str(threads),
            "JAX_COMPILATION_CACHE_DIR": f"{self._folder.name}/jax",
            "TORCHINDUCTOR_CACHE_DIR": f"{self._folder.name}/torch",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            # Both libraries of a check, or Keras's on JAX, share a GPU with what comes after them.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "experiments.speed.contestant", case, side, *options]
                + [f"--scratch={self._folder.name}", f"--threads={threads}"],
                cwd=ROOT, env=environment, text=True, bufsize=1, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip

    @property
    def session(self) -> int:
        """Of all its processes."""
        return self._process.pid

    def answer(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            lines = self._errors.read_text(errors="replace").strip().splitlines() or ["silent"]
            raise Failed(f"{self.name}: {lines[-1][:300]}")
        return json.loads(line)

    def unit(self) -> float:
        """Seconds of one more unit of its work."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as `answer` will say
            self._process.stdin.write("\n")
        return self.answer()["seconds"]

    def close(self) -> None:
        """Ends it, with all that it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self.session, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


def measure(name: str, case: Case, rounds: int, patience: float, small: bool) -> dict[str, Any]:
    """One case of the record."""
    options = [f"--device={FLAGS.device}", f"--small={str(small).lower()}"]
    start = lambda side: Side(name, side, options, FLAGS.threads)  # noqa: E731
    record: dict[str, Any] = {
        "what": case.what,
        "target": case.target,
        "commit": commit(),
        "rounds": rounds,
    }
    if case.agree is not None:
        with contextlib.closing(start("agree")) as side:
            record["apart"] = side.answer()
    with contextlib.ExitStack() as stack:
        sides: list[Side] = []
        ready: dict[str, Any] = {}
        for side_name in case.sides:  # one builds at a time
            if FLAGS.sides and side_name not in (OURS, *FLAGS.sides):
                continue
            side = stack.enter_context(contextlib.closing(start(side_name)))
            try:
                ready[side_name] = side.answer()
                sides.append(side)
            except Failed as failure:
                if side_name == OURS:
                    raise
                side.close()
                record.setdefault("failed", {})[side_name] = str(failure)
        check_same({side_name: one["same"] for side_name, one in ready.items()})
        record["before"] = quiet.wait(tuple(side.session for side in sides), patience)
        times: dict[str, list[float]] = {side.name: [] for side in sides}
        busy: dict[str, list[float]] = {side.name: [] for side in sides}
        for i in range(rounds):
            turn = i % len(sides)
            for side in sides[turn:] + sides[:turn]:
                time.sleep(REST)
                before = quiet.look((side.session,))
                times[side.name].append(side.unit())
                busy[side.name].append(quiet.others(before, quiet.look((side.session,))))
    flops: dict[str, float] = {}
    for one in ready.values():
        flops |= one["flops"]
    each = {
        side_name: {
            **{key: round(ready[side_name][key], 3) for key in ("built_s", "first_s")},
            **summary(times[side_name]),
            "busy_cores": round(statistics.mean(busy[side_name]), 2),
            "versions": ready[side_name]["versions"],
        }
        for side_name in times
    }
    same = ready[OURS]["same"]
    return record | {"same": same, "flops": flops, "sides": each, **compared(times)}


def check_same(numbers: Mapping[str, Mapping[str, float]]) -> None:
    """Raises Failed where a side does not share a number of ours: counts exactly, others nearly."""
    for side, theirs in numbers.items():
        for key in numbers[OURS].keys() & theirs.keys():
            a, b = numbers[OURS][key], theirs[key]
            exact = isinstance(a, int) and isinstance(b, int)
            if not (a == b if exact else math.isclose(a, b, rel_tol=SAME)):
                raise Failed(f"{key} is {a} in ours and {b} in {side}: not the same work")


def summary(times: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and all times, in seconds."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    rounded = [round(t, 5) for t in times]
    return {"median_s": round(median, 5), "quartiles_s": [round(lower, 5), round(upper, 5)],
            "times_s": rounded}  # fmt: skip


def compared(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Which side is the peer, and the ratio of our times to its times, round by round."""
    peers = {side: statistics.median(t) for side, t in times.items() if side != OURS}
    if not peers:
        return {"peer": None, "ratio": None, "ratio_quartiles": None}
    peer = min(peers, key=lambda side: peers[side])
    ratios = [a / b for a, b in zip(times[OURS], times[peer], strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "peer": peer,
        "ratio": round(median, 3),
        "ratio_quartiles": [round(lower, 3), round(upper, 3)],
    }


def commit() -> str:
    """Of the working tree, with a + where it has changes."""
    git = lambda *arguments: subprocess.run(  # noqa: E731
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    changed = git("status", "--porcelain", "--", "vision_lang", "configs", "experiments/speed/*.py")
    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)


def machine() -> dict[str, Any]:
    """What a record is of; another one is not mixed with it."""
    model = "unknown"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    found = {
        "device": FLAGS.device,
        "processor": model,
        "threads": FLAGS.threads,
        "python": sys.version.split()[0],
        "environment": {"GLIBC_TUNABLES": TUNABLES},
    }
    if FLAGS.device == "cuda":
        import torch  # noqa: TID251

        found["gpu"] = torch.cuda.get_device_name()
    tried = {"small": FLAGS.small, "sides": FLAGS.sides}  # of a whole record neither is there
    return found | {key: value for key, value in tried.items() if value}


def ceiling(record: Mapping[str, Any]) -> float | None:
    """Operations a second of the fastest matrix product."""
    found = record["cases"].get(CEILING)
    if not found or "sides" not in found:
        return None
    return found["flops"]["hand"] / min(side["median_s"] for side in found["sides"].values())


def table(record: Mapping[str, Any]) -> str:
    """The record as Markdown: a row for each case. The share is of the machine's matrix products,
    by the operations counted by hand, ours and the peer's."""
    lines = [
        "| case | ours | the peer | ratio (quartiles) | wanted | share of the limit | quiet |",
        "|---|---|---|---|---|---|---|",
    ]
    limit = ceiling(record)
    for name, case in record["cases"].items():
        if "sides" not in case:
            lines.append(f"| {name}: {case['what']} | not measured: {case['error']} ||||||")
            continue
        own, peer = case["sides"][OURS], case["sides"].get(case["peer"])
        flops = case["flops"].get("hand") or case["flops"].get("xla")
        share = "-"
        if limit and flops and not name.startswith("ceiling"):
            shares = [flops / side["median_s"] / limit for side in (own, peer) if side]
            share = " / ".join(f"{100 * s:.0f} %" for s in shares)
        elif flops:
            rates = [flops / side["median_s"] / 1e9 for side in (own, peer) if side]
            share = " / ".join(f"{rate:,.0f} GFLOP/s" for rate in rates)
        ratio = "-"
        if peer:
            low, high = case["ratio_quartiles"]
            ratio = f"{case['ratio']:.2f} ({low:.2f} to {high:.2f})"
        theirs = f"{seconds(peer['median_s'])} ({case['peer']})" if peer else "-"
        wanted = f"{case['target']:g}" if case["target"] else "-"
        lines.append(
            f"| {name}: {case['what']} | {seconds(own['median_s'])} | {theirs} | {ratio} | "
            f"{wanted} | {share} | {'yes' if case['before']['quiet'] else 'no'} |"
        )
    return "\n".join(lines)


def seconds(value: float) -> str:
    """A duration with three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def main(_: list[str]) -> None:
    """Measures what is asked for and not there yet."""
    out = Path(FLAGS.out)
    record = {"machine": machine(), "cases": {}}
    if out.exists():
        record = json.loads(out.read_text())
        if record["machine"] != machine():
            raise SystemExit(f"'{out}' is of another machine or other settings: name a new --out.")
    known = {name: case for name, case in cases().items() if FLAGS.device in case.devices}
    names = FLAGS.cases or list(known)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"No case {', '.join(unknown)} on {FLAGS.device}: {', '.join(known)}.")
    for name in names:
        if "sides" in record["cases"].get(name, {}) and not FLAGS.again:
            continue
        print(f"{name}: {known[name].what}", flush=True)
        try:
            found = measure(name, known[name], FLAGS.rounds, FLAGS.patience, FLAGS.small)
        except Failed as failure:
            found = {"what": known[name].what, "commit": commit(), "error": str(failure)}
        record["cases"][name] = found
        fresh = out.with_suffix(".new")
        fresh.write_text(json.dumps(record, indent=1) + "\n")
        fresh.replace(out)
        print(f"  {found.get('ratio', found.get('error'))}, {found.get('peer')}", flush=True)
    print(table(record))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The record, JSON; what it has stays.", required=True)
    flags.DEFINE_list("cases", [], "Some cases; default all of the device.")
    flags.DEFINE_list("sides", [], "Ours and these; default all.")
    flags.DEFINE_integer("rounds", 9, "Units of each side.", lower_bound=2)
    flags.DEFINE_enum("device", "cpu", ("cpu", "cuda"), "Where they compute.")
    flags.DEFINE_integer(
        "threads", len(os.sched_getaffinity(0)), "Cores of each side.", lower_bound=1
    )
    flags.DEFINE_float("patience", 600.0, "Seconds to wait for a quiet machine, at most.")
    flags.DEFINE_boolean("again", False, "Measure also what the record has.")
    flags.DEFINE_boolean("small", False, "A try-out with too little work to mean anything.")
    app.run(main)

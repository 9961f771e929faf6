"""One side of one case: builds it, warms up, and does a unit of its work for each line it reads.

    python -m experiments.speed.contestant CASE SIDE [--device=cuda --threads=2 --scratch=DIR]

Answers in JSON, a line each: what it is, then for each line of its input how long the unit took.
SIDE `agree` says how far the sides are apart instead. measure.py starts it; what libraries print
goes to stderr.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from absl import app, flags

from experiments.speed.case import Case, Contest, Options

FLAGS = flags.FLAGS
FAMILIES = (
    "ceilings", "unet", "sampling", "vgg", "captioning", "pipeline", "starting",
    "scoring", "saving",
)  # fmt: skip
LIBRARIES = (
    "jax", "torch", "diffusers", "transformers", "keras", "grain", "pycocoevalcap",
    "torch-fidelity",
)  # fmt: skip


def cases() -> dict[str, Case]:
    """All cases by name. None of their modules imports what computes before a side is built."""
    found: dict[str, Case] = {}
    for family in FAMILIES:
        found |= importlib.import_module(f"experiments.speed.{family}").CASES
    return found


def timed(unit: Callable[[], float | None]) -> float:
    """Seconds of one unit."""
    start = time.perf_counter()
    own = unit()
    return time.perf_counter() - start if own is None else own


def serve(build: Callable[[], Contest], lines: Iterable[str], answers: TextIO) -> None:
    """Builds and warms up, tells so, and answers each line with the seconds of one unit."""

    def answer(**fields: object) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    start = time.perf_counter()
    contest = build()
    built = time.perf_counter() - start
    first, second = timed(contest.unit), timed(contest.unit)
    answer(
        built_s=built,
        first_s=first,  # with what is compiled when it is first called
        second_s=second,
        same=dict(contest.same),
        flops=dict(contest.flops),
        versions=versions(),
    )
    for _ in lines:
        answer(seconds=timed(contest.unit))


def versions() -> dict[str, str]:
    """Of the libraries that this process has loaded."""
    loaded = [name for name in LIBRARIES if name.replace("-", "_") in sys.modules]
    return {name: importlib.metadata.version(name) for name in loaded}


def main(arguments: list[str]) -> None:
    """Plays the side that the command line names."""
    _, name, side = arguments
    # Libraries print what they like; answers keep the output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[: FLAGS.threads or None]
        os.sched_setaffinity(0, cores)
    threads = FLAGS.threads or len(os.sched_getaffinity(0))
    if FLAGS.small:  # compiles in a fraction of the time
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    with tempfile.TemporaryDirectory() as folder:
        options = Options(FLAGS.device, threads, FLAGS.scratch or folder, FLAGS.small)
        case = cases()[name]
        if side == "agree":
            assert case.agree is not None, f"{name} has no check of its own"
            print(json.dumps(case.agree(options)), file=answers, flush=True)
        else:
            serve(lambda: case.sides[side](options), sys.stdin, answers)


if __name__ == "__main__":
    flags.DEFINE_enum("device", "cpu", ("cpu", "cuda"), "Where it computes.")
    flags.DEFINE_integer("threads", 0, "Cores to use; 0: all that the process may.")
    flags.DEFINE_string("scratch", "", "A folder for files; '': a temporary one.")
    flags.DEFINE_boolean("small", False, "A try-out with too little work to mean anything.")
    app.run(main)

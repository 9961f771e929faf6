"""Trains all runs that a config's `sweep()` names; goes on where it stopped.

    python -m vision_lang.sweep --config=FILE[:argument] [--out=DIR] [--jobs=N] [--config.FIELD=...]

Each run is `vision_lang.main` in a folder of --out (by default runs/<the file's name>) that is
named by what is its own; what it prints goes to a file beside it, and --config.FIELD=... holds for
all. A run that is over is left alone, one that was stopped goes on, one that fails does not keep
the others from running. --status shows how far they are and starts none; --commands prints one
command per run that is not over, for a cluster's array job. SIGTERM and Ctrl-C reach the runs,
which save, and the same command goes on later; a second one ends all at once.

Exit codes: 0 all are over, 1 some failed, 2 wrong input, 130 / 143 stopped.
"""

from __future__ import annotations

import collections
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS
POLL = 0.5  # seconds between two looks at the runs
LONGEST = 100  # characters of a run's name
SHOWN = 4  # results of a run
SHARED = re.compile(r"--(?:no)?config\.")


class Run(NamedTuple):
    """A run of the sweep: its folder, the flags that make it, and the config that they mean."""

    folder: epath.Path
    flags: list[str]
    config: ConfigDict

    @property
    def log(self) -> epath.Path:
        return self.folder.parent / f"{self.folder.name}.log"


def main() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("config", "", "A config file with a sweep(), [:argument] behind it.")
    flags.DEFINE_string("out", "", "The folder of the runs; '' = runs/<name of the config file>.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
    flags.DEFINE_list(
        "accelerators", [], "Of each job those it sees, as 0,1,2,3: CUDA_VISIBLE_DEVICES."
    )
    flags.DEFINE_bool("commands", False, "Print a command for each run, and start none.")
    flags.DEFINE_bool("status", False, "Print how far each run is, and start none.")
    shared = [argument for argument in sys.argv[1:] if SHARED.match(argument)]
    own = [argument for argument in sys.argv if not SHARED.match(argument)]
    commands.run(lambda: _run(shared), own)


def _run(shared: list[str]) -> None:
    if not FLAGS.config:
        raise InputError("Say which sweep: --config=FILE, a config with a function sweep().")
    if FLAGS.accelerators and len(FLAGS.accelerators) < FLAGS.jobs:
        raise InputError(
            f"--jobs={FLAGS.jobs} want as many --accelerators, not {len(FLAGS.accelerators)}."
        )
    runs = _runs(FLAGS.config, shared)
    left = [run for run in runs if not _is_over(run)]
    if FLAGS.commands:
        for run in left:
            print(shlex.join(["python", "-m", "vision_lang.main", *run.flags]))
        return
    failed = {}
    if not FLAGS.status:
        print(f"{len(runs)} runs, {len(runs) - len(left)} of them over already", flush=True)
        failed = _train(left)
    _show(runs, failed)
    if failed:
        sys.exit(1)


def _runs(spec: str, shared: Sequence[str]) -> list[Run]:
    """All runs of a sweep.

    Raises:
      InputError: a field or a value that the config does not have, a folder that holds another run.
    """
    from vision_lang.runs import config as config_lib

    filename, _, argument = spec.partition(":")
    out = epath.Path(FLAGS.out or f"runs/{os.path.splitext(os.path.basename(filename))[0]}")
    entries = config_lib.sweep(filename)
    labels = _labels(entries)
    runs = []
    for entry, label in zip(entries, labels, strict=True):
        added = ",".join(filter(None, [argument, str(entry.get("arg", ""))]))
        config = f"{filename}:{added}" if added else filename
        fields = [f"--config.{k}={_flag(v)}" for k, v in entry.items() if k != "arg"]
        try:
            resolved = _resolved(config, [*shared, *fields])
            run = Run(
                out / label, [f"--config={config}", f"--workdir={out / label}", *shared, *fields],
                resolved,
            )  # fmt: skip
            _check(run)
        except InputError as error:
            raise InputError(f"The run {label}: {error}") from error
        runs.append(run)
    return runs


def _labels(entries: Sequence[dict[str, Any]]) -> list[str]:
    """A folder's name for each run: "learning_rate=0.001-seed=0"; fields by their last part where
    that is one field's alone."""
    fields = {field for entry in entries for field in entry}
    ends = collections.Counter(field.rpartition(".")[2] for field in fields)

    def short(field: str) -> str:
        end = field.rpartition(".")[2]
        return end if ends[end] == 1 else field

    def label(entry: dict[str, Any]) -> str:
        pairs = (str(v) if k == "arg" else f"{short(k)}={_flag(v)}" for k, v in entry.items())
        return re.sub(r"[^\w.=+-]+", "_", "-".join(pairs))[:LONGEST] or "run"

    labels = [label(entry) for entry in entries]
    counts = collections.Counter(labels)
    return [x if counts[x] == 1 else f"{x}-{n}" for n, x in enumerate(labels)]


def _flag(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else repr(value)


def _resolved(spec: str, arguments: Sequence[str]) -> ConfigDict:
    """The config that flags make of a file, as vision_lang.main would."""
    from vision_lang.runs import config as config_lib

    values, argv = flags.FlagValues(), ["sweep", *arguments]
    defaults = config_lib.load(spec)
    given = config_lib.load(spec)
    try:
        config_flags.DEFINE_config_dict("config", given, flag_values=values, sys_argv=argv)
        values(argv)
    except Exception as error:
        raise config_lib.parse_flags_error(error, [f"--config={spec}", *argv]) from error
    config_lib.check_types(values.config, defaults)
    config_lib.check_ranges(values.config)
    return values.config


def _check(run: Run) -> None:
    """Raises InputError for a folder whose run has another config than is wanted now."""
    from vision_lang.runs import config as config_lib
    from vision_lang.runs import folder

    there = folder.RunFolder(run.folder)
    if there.config.exists() and there.began:
        config_lib.check_resume(there.read_config(), run.config)


def _is_over(run: Run) -> bool:
    """Whether it has reached its last step, and its results are written."""
    from vision_lang.runs import folder

    there = folder.RunFolder(run.folder)
    if not (there.final.exists() and there.results.exists()):
        return False
    return json.loads(there.final.read_text())["step"] == run.config.steps


def _train(waiting: Sequence[Run]) -> dict[str, str]:
    """Starts the runs, so many at a time, until all have ended or a signal comes; returns by name
    how those ended that failed."""
    failed: dict[str, str] = {}
    queue = collections.deque(waiting)
    slots: dict[int, tuple[Run, subprocess.Popen]] = {}
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        del frame
        received.append(number)
        for _, process in slots.values():
            if process.poll() is None:
                process.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        while slots or (queue and not received):
            for slot in range(FLAGS.jobs):
                if slot not in slots and queue and not received:
                    run = queue.popleft()
                    print(f"{time.strftime('%H:%M:%S')}  {run.folder.name}: starts", flush=True)
                    slots[slot] = run, _start(run, slot)
            time.sleep(POLL)
            for slot, (run, process) in list(slots.items()):
                code = process.poll()
                if code is not None:
                    del slots[slot]
                    state = _ended(run, code)
                    print(f"{time.strftime('%H:%M:%S')}  {run.folder.name}: {state}", flush=True)
                    if code:
                        failed[run.folder.name] = state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        print(f"stopped by {signal.Signals(received[0]).name}; the same command goes on")
        sys.exit(128 + received[0])
    return failed


def _start(run: Run, slot: int) -> subprocess.Popen:
    """Starts a run; what it prints is added to its log."""
    environment = dict(os.environ)
    if FLAGS.accelerators:
        environment["CUDA_VISIBLE_DEVICES"] = FLAGS.accelerators[slot]
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "vision_lang.main", *run.flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches it through this command alone, once
        )


def _ended(run: Run, code: int) -> str:
    if code == 0:
        return "over"
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return "stopped"
    return f"failed with exit code {code}, see {run.log}"


def _show(runs: Sequence[Run], failed: dict[str, str]) -> None:
    """A line for each run: how far it is, and, where it is over, its headline results."""
    from vision_lang.runs import folder, grouping, record, writer

    width = max(len(run.folder.name) for run in runs)
    for run in runs:
        there = folder.RunFolder(run.folder)
        lines = writer.read_metrics(there.metrics)
        step = int(lines[-1]["step"]) if lines else 0
        state = f"step {step} of {run.config.steps}"
        if _is_over(run):
            told = record.of_run(there)
            shown = grouping.metrics([told], (*grouping.HEADLINES, "*"))[:SHOWN]
            state = "  ".join(["over", *(f"{name} {told.results[name]:.4g}" for name in shown)])
        print(f"{run.folder.name:{width}s}  {failed.get(run.folder.name, state)}")
    print(f"one table: python -m vision_lang.report {shlex.quote(str(runs[0].folder.parent))}")


if __name__ == "__main__":
    main()

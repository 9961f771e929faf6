"""Runs a recorded run again, and says how far the numbers agree.

    python -m vision_lang.reproduce RUN_OR_RECORD [--steps=K] [--workdir=NEW]

RUN_OR_RECORD is a run folder, a folder that vision_lang.archive wrote, or a record.json. What
differs here from where the run was made is told first: code, versions, devices, environment. The
config is then trained in a new run folder, all of it or the first K steps of it, on as many devices
(in one process), and what it logs is compared with the record: losses, norms, evaluations, and at
the end the results and the digests of all parameters. The verdict is one of

    bitwise             every number is the same
    within tolerance    none is further away than --rtol of the recorded one
    different           and where first

It is printed with the largest difference, and written to NEW/reproduction.json. Other data are
refused. Where the data and the runs that it began with lie here, --config.data.path=PLACE,
--config.data.dir=DIR and --config.init.NETWORK=RUN say.

Exit codes: 0 bitwise or within tolerance, 1 different, 2 wrong input, 130 / 143 stopped.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from vision_lang import flags as commands
from vision_lang.errors import InputError, printable

if TYPE_CHECKING:
    from vision_lang.runs.comparison import Agreement, Pair
    from vision_lang.runs.record import Record

FLAGS = flags.FLAGS
VALUED = ("steps", "workdir", "rtol")
# What may be another place, or another speed, here; every other field is the experiment's own.
MOVABLE = (
    "data.path", "data.dir", "data.tokenizer", "init.*", "evaluators.*.features",
    "evaluators.*.captioner", "evaluators.*.matcher", "evaluators.*.classifier", "workers",
    "stuck_after", "profile", "require_accelerator", "save_every", "keep",
)  # fmt: skip


def main() -> None:
    """Defines the flags and runs the command."""
    commands.run(_run, define=_define, names=True)


def _define() -> None:
    flags.DEFINE_integer("steps", 0, "Only the first steps; 0 = all.", lower_bound=0)
    flags.DEFINE_string("workdir", "", "Run folder; '' = a new runs/NAME-again.")
    flags.DEFINE_float("rtol", 1e-3, "What a number may differ by, of the recorded one.")
    flags.DEFINE_bool("allow_other_data", False, "Train on data that are not the recorded ones.")
    if name := _named():
        config_flags.DEFINE_config_dict("config", _read(name).config)


def _named() -> str:
    """The argument without --, before the flags are parsed; '' = not there."""
    words = iter(sys.argv[1:])
    for word in words:
        if not word.startswith("-"):
            return word
        flag = word.lstrip("-")
        if flag in VALUED or flag.startswith("config.") and "=" not in flag:
            next(words, "")
    return ""


def _run(places: list[str]) -> None:
    from vision_lang.training import devices

    if len(places) != 1:
        raise InputError("Name one run, or the record of one: vision_lang.reproduce RUN_OR_RECORD.")
    if not (math.isfinite(FLAGS.rtol) and FLAGS.rtol >= 0):
        raise InputError(f"--rtol={FLAGS.rtol}: a number of 0 or more is wanted, such as 0.001.")
    record, config = _read(places[0]), FLAGS.config
    until = _last_step(record)
    moved = _moved(record.config, config)
    start = record.starts[-1]
    devices.set_up(start["devices"], config.deterministic)
    with _fits(record):
        found = _check_data(record, config)
    different = _circumstances(record, config) | moved | found
    _show_differences(different)
    run, is_new = _folder(record, config)
    print(f"steps 1 to {until} of {config.steps}, in {run.root}", flush=True)
    try:
        with _fits(record, lambda: run.began):
            _train(config, run, until)
    except InputError:
        if is_new and not run.began:
            run.root.rmtree()
        raise
    _report(record, run, until, different)


def _read(name: str) -> Record:
    """The record, of a run that can be made again.

    Raises:
      InputError: it is of none.
    """
    from vision_lang.runs import record as record_lib

    record = record_lib.read(name)
    if "optimizer" not in record.config:  # vision_lang.convert made it
        raise InputError(f"'{name}' is of a published network, which was not trained here.")
    if not record.metrics or not record.starts:
        raise InputError(f"'{name}' has logged nothing: there is nothing to compare with.")
    count = record.starts[-1].get("devices")
    if not isinstance(count, int) or count < 1:
        raise InputError(f"'{name}' does not say on how many devices it was trained.")
    return record


def _last_step(record: Record) -> int:
    """The step to end after: --steps, or the last that the record tells of.

    Raises:
      InputError: that is more than there were, or less than the first that was logged.
    """
    whole = record.final.get("step") == record.config.steps
    last = record.config.steps if whole else record.metrics[-1]["step"]
    first = record.metrics[0]["step"]
    if FLAGS.steps > last:
        raise InputError(f"--steps={FLAGS.steps}: the record ends at step {last}.")
    if 0 < FLAGS.steps < first:
        raise InputError(
            f"--steps={FLAGS.steps}: the record's first numbers are those of step {first}; with "
            "fewer there is nothing to compare."
        )
    return FLAGS.steps or last


def _moved(recorded: ConfigDict, given: ConfigDict) -> dict[str, Pair]:
    """What flags have changed of the config.

    Raises:
      InputError: it is not in `MOVABLE`.
    """
    from vision_lang.runs import config as config_lib

    config_lib.check_types(given, recorded)
    config_lib.check_ranges(given)
    changed = config_lib.differences(recorded, given)
    for name in changed:
        if not any(fnmatch.fnmatchcase(name, field) for field in MOVABLE):
            raise InputError(
                f"--config.{name} would make it another experiment, which vision_lang.main trains; "
                f"only {', '.join(MOVABLE)} can be changed here."
            )
    return {f"config.{name}": (str(old), str(new)) for name, (old, new) in changed.items()}


@contextlib.contextmanager
def _fits(record: Record, began: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turns what a config of another version of the code leads to, before it has begun to train,
    into a sentence."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        if began():
            raise
        commit = record.starts[-1].get("git", {}).get("commit", "unknown")
        raise InputError(
            f"The config of '{record.name}' does not fit this version of the code ({error}); the "
            f"commit that made it is {commit}."
        ) from error


def _check_data(record: Record, config: ConfigDict) -> dict[str, Pair]:
    """Prepares the data, and returns how they differ from the recorded ones.

    Raises:
      InputError: they are not there; or they differ, without --allow_other_data.
    """
    from vision_lang import tasks
    from vision_lang.data import sources

    tasks.entry(config)
    try:
        data = sources.prepare(config.data)
    except InputError as error:
        raise InputError(
            f"The data of '{record.name}' are not here: {error} Where they lie, say by "
            "--config.data.path=PLACE or --config.data.dir=DIR."
        ) from error
    here = {"name": data.name, "fingerprint": data.fingerprint, "splits": data.splits}
    told = {n: record.data.get(n) for n in here}
    other = {f"data.{n}": (str(told[n]), str(v)) for n, v in here.items() if told[n] != v}
    if {"data.fingerprint", "data.splits"} & other.keys() and not FLAGS.allow_other_data:
        detail = "; ".join(
            f"{name}: {old} recorded, {new} here" for name, (old, new) in other.items()
        )
        raise InputError(
            f"The data are not those of '{record.name}' ({detail}), which makes it another "
            "experiment. Bring them here, or compare all the same by --allow_other_data."
        )
    return other


def _circumstances(record: Record, config: ConfigDict) -> dict[str, Pair]:
    """How code, versions, hardware and environment differ from those of the record's last start."""
    from vision_lang.runs import comparison, provenance
    from vision_lang.runs import config as config_lib

    here = provenance.collect(sys.argv, config_lib.fingerprint(config), "")
    different = comparison.differences(record.starts[-1], here)
    if len({start.get("config_sha256") for start in record.starts}) > 1:
        different["config"] = ("changed between its starts", "that of the last one throughout")
    return different


def _show_differences(different: Mapping[str, Pair]) -> None:
    if not different:
        print("code, versions, devices, environment and data are those of the record")
        return
    rows = [("what differs", "recorded", "here")]
    rows += [(n, printable(old), printable(new)) for n, (old, new) in different.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for name, old, new in rows:
        print(f"{name:{widths[0]}s}  {old:{widths[1]}s}  {new}")


def _folder(record: Record, config: ConfigDict) -> Any:
    """The new run's folder, with its config, and whether it was made here."""
    from etils import epath

    from vision_lang.runs import config as config_lib
    from vision_lang.runs import files, folder

    wanted = FLAGS.workdir
    if not wanted:
        name = re.sub(r"[^\w.-]+", "-", record.name).strip(".-") or "run"
        free = (f"runs/{name}-again{n}" for n in ("", *(f"-{n}" for n in range(2, 1000))))
        wanted = next(place for place in free if not epath.Path(place).exists())
    is_new = not epath.Path(wanted).exists()
    run = folder.RunFolder(files.absolute(folder.create(wanted, config.task).root))
    files.write_text(run.config, config_lib.to_json(config))
    return run, is_new


def _train(config: ConfigDict, run: Any, until: int) -> None:
    from vision_lang.runs import folder
    from vision_lang.training import loop
    from vision_lang.training.signals import Stopped

    logging.info("Run folder: %s", run.root)
    try:
        with folder.held(run):
            loop.train(config, run, sys.argv, until=until)
    except Stopped as stopped:
        print(f"{stopped}. Nothing was compared.")
        sys.exit(stopped.exit_code)


def _report(record: Record, run: Any, until: int, different: Mapping[str, Pair]) -> None:
    """Compares, prints, writes reproduction.json, and ends with the exit code."""
    from vision_lang.runs import comparison, files
    from vision_lang.runs import record as record_lib

    found = comparison.compare(record, record_lib.of_run(run), until, FLAGS.rtol)
    rows = [{"field": n, "recorded": old, "here": new} for n, (old, new) in different.items()]
    told = {"record": record.name, "until": until, "steps": record.config.steps}
    told |= {"rtol": FLAGS.rtol, "differences": rows} | found.as_json()
    files.write_json(run.root / "reproduction.json", told)
    print("\n".join(_sentences(found)))
    print(f"written to {run.root / 'reproduction.json'}")
    if found.verdict == comparison.DIFFERENT:
        sys.exit(1)


def _sentences(found: Agreement) -> list[str]:
    """What came out, the verdict first."""
    digests = f" and {found.digests} digests" if found.digests else ""
    lines = [f"{found.verdict}: {found.values} numbers of {found.lines} logged steps{digests}"]
    if found.unequal:
        lines.append(f"digests that differ  {', '.join(found.unequal)}")
    told = {"first": found.first, "first too far": found.beyond, "largest": found.largest}
    lines += [f"{what:19s}  {deviation}" for what, deviation in told.items() if deviation]
    return [printable(line) for line in lines]


if __name__ == "__main__":
    main()

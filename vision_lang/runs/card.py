"""The model card of a run: Markdown made of its record, for whoever finds it without the code."""

from __future__ import annotations

import re
import shlex
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from vision_lang.errors import printable
from vision_lang.runs import config as config_lib
from vision_lang.runs.console import duration
from vision_lang.runs.markdown import code, plain, table
from vision_lang.runs.record import Record, portable

PATCH = "uncommitted.patch"
# What stands beside the card, where the run has it.
FILES = {
    "record.json": "all that the run tells of itself: vision_lang.reproduce reads it",
    "config.json": "the config, every field",
    "provenance.json": "code, versions, devices and command of each start",
    "data.json": "name, fingerprint, splits and classes of the data",
    "metrics.jsonl": "what was logged, a line for each step",
    "results.json": "the last evaluation",
    "examples.json": "what single examples contributed to it",
    "final.json": "the last step; sha256 of the parameters, averages and the optimizer's state",
    "tokenizer.json": "the tokenizer, as the library tokenizers reads it",
    PATCH: "what of the code was not committed, for git apply",
    "samples": "pictures that were logged",
    "weights": "the weights as safetensors, by the paths of the parameters",
}
TRAINING = ("steps", "batch_size", "accumulate", "seed", "optimizer", "ema", "lora", "init")
HARDWARE = ("device_kind", "backend", "devices", "processes", "host_cpu", "host_cpus", "platform")
COMMANDS = ("main", "reproduce", "convert")  # of vision_lang, those that make runs


def write(record: Record, networks: Mapping[str, int], step: int, files: Sequence[str]) -> str:
    """Returns the card. All that others may have written shows as the text that it is.

    Args:
      record: of the run.
      networks: name -> how many parameters it has.
      step: of the weights.
      files: names of what stands beside the card, 'samples/a.png'.
    """
    record = portable(record)
    parts = [
        f"# {plain(record.name)}",
        f"A run of vision_lang, task {plain(record.config.task)}: the weights of step {step:,}.",
        "## Networks",
        table(("network", "parameters"), [(n, f"{count:,}") for n, count in networks.items()]),
        f"{sum(networks.values()):,} parameters in all.",
        "## Data",
        table(("", ""), list(_data(record))),
        "## Training",
        table(("config", ""), list(_training(record))),
        "The whole config is in config.json.",
        *_made_on(record),
        "## Results",
        *_results(record),
        *_samples(files),
        "## Again",
        *_again(record),
        "## Files",
        table(("file", "content"), [(n, FILES[n]) for n in FILES if _is_there(n, files)]),
    ]
    return "\n\n".join(parts) + "\n"


def _data(record: Record) -> Iterator[tuple[str, str]]:
    data = record.data
    yield "name", str(data.get("name", "unknown"))
    yield "fingerprint", str(data.get("fingerprint", "unknown"))
    for split, count in data.get("splits", {}).items():
        yield f"{split}, examples", f"{count:,}"
    if data.get("class_names"):
        yield "classes", f"{len(data['class_names']):,}"


def _training(record: Record) -> Iterator[tuple[str, str]]:
    for path, value in config_lib.flatten(record.config).items():
        if path.split(".")[0] in TRAINING and value not in ("", ()):
            yield path, str(value)


def _made_on(record: Record) -> Iterator[str]:
    """Hardware, versions and time."""
    if not record.starts:
        return
    last = record.starts[-1]
    rows = [(name.replace("_", " "), last[name]) for name in HARDWARE if name in last]
    rows += [(name, value) for name, value in last.get("environment", {}).items()]
    rows += [("python", last.get("python", "unknown")), *last.get("packages", {}).items()]
    time = "unknown, as a start of it was killed"
    if record.seconds is not None:
        time = f"{duration(record.seconds)}, compilation and evaluations included"
    yield table(("made on", ""), [*rows, ("time", time)])


def _results(record: Record) -> Iterator[str]:
    if not record.results:
        yield "It has not ended: there are none."
        return
    rows = [(n, f"{v:.6g}" if isinstance(v, float) else v) for n, v in record.results.items()]
    yield table(("split/metric", "value"), sorted(rows))


def _samples(files: Sequence[str]) -> Iterator[str]:
    """The newest picture of each name, 'samples/NAME-STEP.png'."""
    newest: dict[str, str] = {}
    for file in sorted(files):
        if file.startswith("samples/"):
            newest[re.sub(r"-\d+\.png$", "", PurePath(file).name)] = file
    if newest:
        yield "## Samples"
    for name, file in newest.items():
        yield f"![{plain(name)}]({urllib.parse.quote(file)})"


def _again(record: Record) -> Iterator[str]:
    """What was typed, with which code, and what is to be typed to have it again."""
    for start in record.starts:
        when = f"From step {start.get('step', 0)}, {plain(start.get('started', ''))}:"
        yield f"{when}\n\n{code([_command(start.get('command', []))])}"
    git = record.starts[-1].get("git", {}) if record.starts else {}
    yield from _state_of_code(git)
    if "optimizer" not in record.config:
        yield "It was not trained here: vision_lang.convert has made it of published weights."
        return
    lines = [f"git checkout {git['commit']}"] if "commit" in git else []
    lines += [f"git apply {PATCH}"] if "diff" in git else []
    lines += ["make setup", ".venv/bin/python -m vision_lang.reproduce record.json"]
    yield "Once more, in a checkout of the code; it says how far the numbers agree:"
    yield code(lines)
    yield (
        "A commit that has no such command trains the same by vision_lang.main "
        "--config=config.json. The data are not in here: where they are not built in, "
        "--config.data.path=PLACE or --config.data.dir=DIR names them, and "
        "--config.init.NETWORK=RUN a run that it began with."
    )


def _state_of_code(git: Mapping[str, Any]) -> Iterator[str]:
    if "commit" not in git:
        yield f"Which code it was is not known: {plain(git.get('note', 'nothing was recorded'))}."
        return
    yield f"The code was commit {plain(git['commit'])}, branch {plain(git.get('branch', ''))}."
    if not git.get("dirty"):
        yield "All of it was committed."
        return
    changed = re.findall(r"^diff --git a/.* b/(.*)$", git.get("diff", ""), re.MULTILINE)
    told = {"changed": changed, "new, their content unknown": git.get("untracked", [])}
    rows = [(file, what) for what, names in told.items() for file in names]
    yield "Not all of it was committed" + (
        f" (only {plain(git['diff_cut'])} of the changes were kept):" if "diff_cut" in git else ":"
    )
    yield table(("file", ""), rows)


def _command(command: Sequence[str]) -> str:
    program, *arguments = command or ["unknown"]
    stem = PurePath(program).stem
    words = ["python", "-m", f"vision_lang.{stem}"] if stem in COMMANDS else ["python", program]
    return printable(shlex.join([*words, *arguments]))


def _is_there(name: str, files: Sequence[str]) -> bool:
    return any(file == name or file.startswith(f"{name}/") for file in files)

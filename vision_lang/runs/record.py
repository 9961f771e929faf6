"""All that a run tells of itself, without its weights: of its folder, or of one file made from it.

A record is a JSON object, what `python -m vision_lang.archive --run=RUN --out=FILE.json` writes:
small enough to be committed beside a table that holds its numbers.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import PurePath
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vision_lang.errors import InputError
from vision_lang.runs import config as config_lib
from vision_lang.runs import files, folder, writer

FORMAT = "vision_lang record 1"
# The folders of an absolute path in an argument: of --config=/home/me/x.py:tiny=true all but x.py.
_FOLDERS = re.compile(r"(?<![^='\"])(?:file://)?/(?!/)(?:[^/=:'\"]+/)*")


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run tells of itself.

    Attributes:
      name: of the run: its folder's.
      config: as it was resolved (locked).
      starts: of provenance.json, one entry for each time that it was started or resumed.
      data: of data.json; {} where the run has none.
      results: "<split>/<metric>" -> number; {} before its end.
      final: of final.json, step and digests; {} before its end.
      metrics: the lines of metrics.jsonl, steps ascending.
      examples: "<split>/<metric>" -> {place in the split: number}, the mean of which is the result.
      place: where it was read from; of this machine alone, and in no file.
    """

    name: str
    config: ConfigDict
    starts: list[dict[str, Any]]
    data: dict[str, Any]
    results: dict[str, float]
    final: dict[str, Any]
    metrics: list[dict[str, Any]]
    examples: dict[str, dict[str, float]]
    place: str = dataclasses.field(default="", compare=False)

    @property
    def seconds(self) -> float | None:
        """How long its loops took, all starts together; None where a start has not told, as one
        that was killed cannot."""
        told = [start["seconds"] for start in self.starts if "seconds" in start]
        return sum(told) if told and len(told) == len(self.starts) else None


STORED = {field.name for field in dataclasses.fields(Record)} - {"place"}


def read(path: str) -> Record:
    """Returns the record of a run folder, or the one that a file holds.

    Raises:
      InputError: there is neither; the file is no record.
    """
    place = epath.Path(path)
    if place.suffix != ".json" or place.is_dir():
        return of_run(folder.open(path))
    try:
        tree = json.loads(place.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The record '{path}' cannot be read: {error}.") from error
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        raise InputError(
            f"'{path}' is no record of a run, as vision_lang.archive --out=FILE.json writes one."
        )
    if tree.keys() != STORED:
        wrong = sorted(STORED ^ tree.keys())
        raise InputError(f"The record '{path}' lacks, or has besides, {', '.join(wrong)}.")
    kinds = {"name": str, "starts": list, "metrics": list}
    wrong = [name for name in sorted(STORED) if not isinstance(tree[name], kinds.get(name, dict))]
    if not all(isinstance(start, dict) for start in tree["starts"]):
        wrong.append("starts")
    if not all(
        isinstance(line, dict) and isinstance(line.get("step"), int) for line in tree["metrics"]
    ):
        wrong.append("metrics")
    if wrong:
        raise InputError(f"The record '{path}' is damaged: {wrong[0]} is not what it should be.")
    config = config_lib.of_run(json.dumps(tree["config"]))
    return Record(**tree | {"config": config, "place": str(path)})


def of_run(run: folder.RunFolder) -> Record:
    """Returns what the files of a run's folder say."""
    return Record(
        name=files.absolute(run.root).name,
        config=run.read_config(),
        starts=_json(run.provenance).get("starts", []),
        data=_json(run.data),
        results=_json(run.results),
        final=_json(run.final),
        metrics=[json.loads(line) for line in writer.kept_lines(run.metrics, None)],
        examples=_json(run.examples),
        place=str(run.root),
    )


def write(record: Record, path: epath.Path) -> None:
    """Writes what is `portable` of a record, so that `read` reads it.

    Raises:
      InputError: the file cannot be written.
    """
    record = portable(record)
    tree = {"format": FORMAT} | {name: getattr(record, name) for name in STORED}
    tree["config"] = record.config.to_dict()
    files.write_text(path, json.dumps(tree, sort_keys=True) + "\n")


def portable(record: Record) -> Record:
    """Returns the record with the names alone of what its config, commands and environment name by
    an absolute path: where it lay is the affair of one machine."""

    def start(entry: dict[str, Any]) -> dict[str, Any]:
        command = [without_folders(argument) for argument in entry.get("command", [])]
        environment = {n: without_folders(v) for n, v in entry.get("environment", {}).items()}
        return entry | {"command": command, "environment": environment}

    config = ConfigDict(_named(record.config.to_dict())).lock()
    return dataclasses.replace(record, config=config, starts=[start(e) for e in record.starts])


def without_folders(text: str) -> str:
    """An argument, or several, without the folders of absolute paths."""
    return _FOLDERS.sub("", text)


def _named(value: Any) -> Any:
    """A config's values with the names of absolute paths. Only of whole ones: a pattern of
    parameters, which may have a slash anywhere else, begins with none."""
    if isinstance(value, dict):
        return {name: _named(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_named, value))
    return PurePath(value).name if isinstance(value, str) and value.startswith("/") else value


def _json(path: epath.Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}

"""All that a run tells of itself, without its weights: of its folder, or of one file made from it.

A record is a JSON object, what `python -m vision_lang.archive --run=RUN --out=FILE.json` writes:
small enough to be committed beside a table that holds its numbers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vision_lang.errors import InputError
from vision_lang.runs import config as config_lib
from vision_lang.runs import files, folder, manifest, writer

FORMAT = "vision_lang record 1"


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
    place: str = ""

    @property
    def finished(self) -> bool:
        return bool(self.final)

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
    except (OSError, ValueError) as error:
        raise InputError(f"The record '{path}' cannot be read: {error}.") from error
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        raise InputError(
            f"'{path}' is no record of a run, as vision_lang.archive --out=FILE.json writes one."
        )
    if tree.keys() != STORED:
        raise InputError(f"The record '{path}' lacks {', '.join(sorted(STORED - tree.keys()))}.")
    tree["metrics"] = [_floats(line) | {"step": line["step"]} for line in tree["metrics"]]
    tree["results"] = _floats(tree["results"])
    config = config_lib.of_run(json.dumps(tree["config"]))
    return Record(**tree | {"config": config, "place": str(path)})


def of_run(run: folder.RunFolder) -> Record:
    """Returns what the files of a run's folder say."""
    return Record(
        name=run.root.name,
        config=run.read_config(),
        starts=_json(run.provenance).get("starts", []),
        data=_json(run.data),
        results=_floats(_json(run.results)),
        final=_json(run.final),
        metrics=writer.read_metrics(run.metrics),
        examples=_json(run.examples),
        place=str(run.root),
    )


def write(record: Record, path: epath.Path) -> None:
    """Writes a record that `read` reads. The command lines name programs and run folders without
    the place where they lay: that is the affair of one machine.

    Raises:
      InputError: the file cannot be written.
    """
    tree = {"format": FORMAT} | {name: getattr(record, name) for name in STORED}
    tree["config"] = record.config.to_dict()
    tree["results"] = _texts(record.results)
    tree["metrics"] = [_texts(line) | {"step": line["step"]} for line in record.metrics]
    starts = [start | {"command": _portable(start["command"])} for start in record.starts]
    files.write_text(path, json.dumps(tree | {"starts": starts}, sort_keys=True) + "\n")


def _portable(command: list[str]) -> list[str]:
    """A command line with the names of absolute paths alone."""

    def name(text: str) -> str:
        flag, equals, value = text.rpartition("=")
        return f"{flag}{equals}{PurePath(value).name}" if value.startswith("/") else text

    return [name(text) for text in command]


def _floats(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Of "NaN" and the like, what they mean."""
    return {name: float(value) for name, value in numbers.items()}


def _texts(numbers: Mapping[str, float]) -> dict[str, float | str]:
    return {name: manifest.finite_or_text(value) for name, value in numbers.items()}


def _json(path: epath.Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}

"""Two records of one experiment: on what each was made, and how far what they say agrees."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from vision_lang.errors import InputError
from vision_lang.runs.config import MISSING
from vision_lang.runs.manifest import finite_or_text
from vision_lang.runs.record import Record, without_folders

WALL_CLOCK = {"images/s", "data_wait"}  # of metrics.jsonl: what the clock decides
BITWISE, WITHIN, DIFFERENT = "bitwise", "within tolerance", "different"
# Of a start in provenance.json.
FIELDS = (
    "python", "platform", "backend", "device_kind", "devices", "processes", "host_cpu", "host_cpus",
)  # fmt: skip

Pair = tuple[str, str]  # recorded, here


def differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Pair]:
    """Returns {field: (recorded, here)} where code, versions, hardware or environment differ.

    Args:
      recorded: a start of provenance.json.
      here: what provenance.collect says.
    """
    old, new = _circumstances(recorded), _circumstances(here)
    names = [*old, *(name for name in new if name not in old)]
    pairs = {name: (old.get(name, MISSING), new.get(name, MISSING)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _circumstances(start: Mapping[str, Any]) -> dict[str, str]:
    git = start.get("git", {})
    diff = git.get("diff", "")
    digest = hashlib.sha256(diff.encode()).hexdigest()[:12]
    cut = f", {git['diff_cut']}" if "diff_cut" in git else ""
    told = {
        "commit": git.get("commit", git.get("note", MISSING)),
        "uncommitted changes": f"sha256 {digest}{cut}" if diff else "none",
        "uncommitted files": ", ".join(git.get("untracked", [])) or "none",
    }
    told |= {name: str(start.get(name, MISSING)) for name in FIELDS}
    told |= {f"packages.{name}": str(v) for name, v in start.get("packages", {}).items()}
    environment = start.get("environment", {})
    return told | {f"environment.{n}": without_folders(str(v)) for n, v in environment.items()}


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A number that is not the same to the bit.

    Attributes:
      place: "step 10", or "results.json".
      field: its name there.
      recorded, here: the number; None where there is none.
      relative: |here - recorded| / |recorded|; infinite where that is no number.
    """

    place: str
    field: str
    recorded: float | None
    here: float | None
    relative: float

    def __str__(self) -> str:
        told = [MISSING if x is None else repr(x) for x in (self.recorded, self.here)]
        return (
            f"{self.place}, {self.field}: {told[0]} recorded, {told[1]} here (relative "
            f"{self.relative:.2g})"
        )

    def as_json(self) -> dict[str, Any]:
        tree = dataclasses.asdict(self)
        return {n: finite_or_text(v) if isinstance(v, float) else v for n, v in tree.items()}


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two records agree.

    Attributes:
      verdict: BITWISE, WITHIN or DIFFERENT.
      lines, values: of the metrics that were compared, and of results.json.
      digests: how many digests of final.json were compared.
      unequal: the parts whose digests differ.
      first: the first number that is not the same.
      beyond: the first that is further away than the tolerance.
      largest: the one that is furthest away.
    """

    verdict: str
    lines: int
    values: int
    digests: int
    unequal: list[str]
    first: Deviation | None
    beyond: Deviation | None
    largest: Deviation | None

    def as_json(self) -> dict[str, Any]:
        tree = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: v.as_json() if isinstance(v, Deviation) else v for n, v in tree.items()}


def compare(recorded: Record, here: Record, until: int, rtol: float) -> Agreement:
    """Compares what two runs logged up to a step; digests and results too, where both ended there.

    A number that one of them lacks is a difference, but in the last line of a run that never ended,
    which may have been on its way, and in results.json, where `evaluate` puts more.

    Args:
      recorded, here: the two.
      until: the last step.
      rtol: of a recorded number: how far the other may be away to be within tolerance.

    Raises:
      InputError: a record has something else in the place of a number.
    """
    whole = until == recorded.final.get("step") == here.final.get("step")
    old, new = _by_step(recorded, until), _by_step(here, until)
    last = None if recorded.final else max(old, default=None)
    found: list[Deviation] = []
    for step in sorted(old.keys() | new.keys()):
        given, present = old.get(step, {}), new.get(step, {})
        found += _pairs(f"step {step}", given, present, given if step == last else given | present)
    if whole:
        both = recorded.results.keys() & here.results.keys()
        found += _pairs("results.json", recorded.results, here.results, both)
    deviations = [d for d in found if repr(d.recorded) != repr(d.here)]
    digests = recorded.final.get("digests", {}) if whole else {}
    other = here.final.get("digests", {}) if whole else {}
    unequal = sorted(n for n in digests.keys() | other.keys() if digests.get(n) != other.get(n))
    beyond = next((d for d in deviations if not d.relative <= rtol), None)
    verdict = DIFFERENT if beyond else WITHIN if deviations or unequal else BITWISE
    return Agreement(
        verdict,
        lines=len(old),
        values=len(found),
        digests=len(digests),
        unequal=unequal,
        first=deviations[0] if deviations else None,
        beyond=beyond,
        largest=max(deviations, key=lambda d: d.relative, default=None),
    )


def _by_step(record: Record, until: int) -> dict[int, dict[str, Any]]:
    """{step: what was logged there but for what the clock decides}."""
    lines = [line for line in record.metrics if line["step"] <= until]
    clock = WALL_CLOCK | {"step"}
    return {line["step"]: {n: v for n, v in line.items() if n not in clock} for line in lines}


def _pairs(
    place: str, old: Mapping[str, Any], new: Mapping[str, Any], names: Any
) -> Iterator[Deviation]:
    for name in names:
        a, b = _number(place, name, old.get(name)), _number(place, name, new.get(name))
        relative = math.inf
        if a is not None and b is not None:
            relative = 0.0 if repr(a) == repr(b) else abs(b - a) / abs(a) if a else math.inf
        yield Deviation(place, name, a, b, math.inf if math.isnan(relative) else relative)


def _number(place: str, name: str, value: Any) -> float | None:
    """A number as `finite_or_text` stores it; None stays None."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}, {name}: {value!r} is no number.") from error

"""Many runs in one table: which belong together, what their numbers are, what sets them apart.

A row is a group of runs that differ in nothing but their seeds; where they do, it is said.
"""

from __future__ import annotations

import collections
import fnmatch
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vision_lang.errors import InputError, suggestion
from vision_lang.metrics import significance
from vision_lang.metrics.significance import Interval, Spread
from vision_lang.runs import config as config_lib
from vision_lang.runs.record import Record

# What is shown of the results, unless other patterns are given.
HEADLINES = (
    "test*/top1", "test*/accuracy", "test*/map", "test*/scene_right", "test*/bleu4", "test*/cider",
    "test*/t2i_recall1", "test*/i2t_recall1", "test*/all_right", "test*/recognised", "test*/fd_*",
    "test*/fid", "test*/psnr",
)  # fmt: skip
# Metrics of which less is better, and those that are no better or worse.
LESS = (
    "loss*", "fd_*", "fid", "kid*", "ece", "*_median_rank", "render_error*", "unreadable", "mse*",
    "lpips*",
)  # fmt: skip
NEITHER = ("n", "top1_n", "choices", "length", "majority", "latent_*")
# Fields that change no number of a run, or only tell apart the runs of one row.
SAME_ROW = (
    "seed", "data.dir", "data.path", "workers", "keep", "keep_period", "log_every", "eval_every",
    "save_every", "require_accelerator", "stuck_after", "cpu_devices", "max_bad_steps",
    "profile",
)  # fmt: skip
FIGURES = 4  # digits of a value that stands alone


class Group(NamedTuple):
    """A row: the values of the fields that name it, and its runs."""

    label: tuple[str, ...]
    runs: list[Record]

    def values(self, metric: str) -> list[float]:
        """Of its runs, those that have the metric."""
        return [float(run.results[metric]) for run in self.runs if metric in run.results]


class Against(NamedTuple):
    """A group compared with another: the difference of their means, Welch's p (None: not tested)
    and, of the seeds that both have, the difference over examples (None: there is none)."""

    difference: float
    p: float | None
    examples: Interval | None


def differing(runs: Sequence[Record]) -> list[str]:
    """The config fields in which the runs differ and that change what is learned."""
    flat = [config_lib.flatten(run.config) for run in runs]
    names = sorted(set().union(*flat))
    values = {name: {repr(f.get(name, config_lib.MISSING)) for f in flat} for name in names}
    return [name for name in names if len(values[name]) > 1 and name not in SAME_ROW]


def group(runs: Sequence[Record], fields: Sequence[str]) -> list[Group]:
    """The runs by the values of config fields ("name": of the run), in the order they came in.

    Raises:
      InputError: no run has such a field.
    """
    flat = [config_lib.flatten(run.config) | {"name": run.name} for run in runs]
    known = set().union(*flat)
    for field in fields:
        if field not in known:
            raise InputError(
                f"No run has a config field '{field}'.{suggestion(field, sorted(known))}"
            )
    rows: dict[tuple[str, ...], list[Record]] = {}
    for run, own in zip(runs, flat, strict=True):
        label = tuple(str(own.get(field, "")) for field in fields)
        rows.setdefault(label, []).append(run)
    return [Group(label, members) for label, members in rows.items()]


def metrics(runs: Sequence[Record], patterns: Sequence[str]) -> list[str]:
    """The names of results that a pattern fits, in the order of the patterns.

    Raises:
      InputError: none fits.
    """
    known = sorted(set().union(*(run.results for run in runs)))
    found = [name for p in patterns for name in known if fnmatch.fnmatchcase(name, p)]
    if not found:
        raise InputError(
            f"No run has a result like {', '.join(patterns)}; there are: {', '.join(known)}."
        )
    return list(dict.fromkeys(found))


def direction(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither is so."""
    name = metric.partition("/")[2]
    if any(fnmatch.fnmatchcase(name, p) for p in NEITHER):
        return 0
    return -1 if any(fnmatch.fnmatchcase(name, p) for p in LESS) else 1


def best(groups: Sequence[Group], metric: str) -> Group | None:
    """The group with the best mean, where there are several to choose from."""
    have = [g for g in groups if g.values(metric)]
    if len(have) < 2 or not direction(metric):
        return None
    return max(have, key=lambda g: direction(metric) * float(np.mean(g.values(metric))))


def against(one: Group, other: Group, metric: str) -> Against:
    """Compares two groups that both have the metric."""
    a, b = one.values(metric), other.values(metric)
    return Against(
        float(np.mean(a) - np.mean(b)),
        significance.p_value(a, b),
        _over_examples(one, other, metric),
    )


def _over_examples(one: Group, other: Group, metric: str) -> Interval | None:
    """The paired bootstrap over the examples of runs of the same data and seed; an example counts
    by its mean over the seeds."""

    def by_seed(members: Group) -> dict[Any, dict[str, float]]:
        return {
            (run.config.seed, run.data.get("fingerprint")): run.examples[metric]
            for run in members.runs
            if metric in run.examples
        }

    a, b = by_seed(one), by_seed(other)
    pairs = [(a[key], b[key]) for key in sorted(a.keys() & b.keys(), key=str)]
    if not pairs:
        return None
    places = sorted(set.intersection(*({*x} & {*y} for x, y in pairs)), key=int)
    if not places:
        return None
    table = np.array([[[side[p] for p in places] for side in pair] for pair in pairs])
    return significance.paired_bootstrap(*table.mean(axis=0))  # [2, examples]


# What must not be mixed unsaid. -----------------------------------------------------------------


def _code(run: Record) -> str:
    state = run.starts[-1].get("git", {}) if run.starts else {}
    if "commit" not in state:
        return str(state.get("note", "unknown"))
    if not state.get("dirty"):
        return str(state["commit"][:10])
    kept = json.dumps([state.get("diff", ""), state.get("untracked", [])])
    return f"{state['commit'][:10]} with changes {hashlib.sha256(kept.encode()).hexdigest()[:6]}"


def _versions(run: Record) -> str:
    packages = run.starts[-1].get("packages", {}) if run.starts else {}
    return ", ".join(f"{name} {packages[name]}" for name in ("jax", "flax") if name in packages)


def _hardware(run: Record) -> str:
    last = run.starts[-1] if run.starts else {}
    kind = last.get("host_cpu") if last.get("backend") == "cpu" else last.get("device_kind")
    return f"{last.get('devices', '?')} x {kind or 'unknown'}"


ASPECTS: dict[str, Callable[[Record], str]] = {
    "code": _code,
    "data": lambda run: str(run.data.get("fingerprint", "unknown")),
    "versions": _versions,
    "hardware": _hardware,
}


def usual(runs: Sequence[Record]) -> dict[str, str]:
    """Of each aspect what most runs have."""
    return {
        name: collections.Counter(of(run) for run in runs).most_common(1)[0][0]
        for name, of in ASPECTS.items()
    }


def unlike(runs: Sequence[Record], wanted: dict[str, str]) -> list[str]:
    """What of these runs is not as it is `usual`, and in which fields they differ among themselves,
    as short texts."""
    found = []
    for name, of in ASPECTS.items():
        other = collections.Counter(of(run) for run in runs if of(run) != wanted[name])
        for what, count in other.items():
            some = "" if count == len(runs) else f" ({count} of {len(runs)} runs)"
            found.append(f"{name}: {what}{some}")
    if fields := differing(runs):
        found.append(f"its runs differ in {', '.join(fields)}")
    return found


def spread_text(value: Spread) -> str:
    """Mean ± half of the interval, to two digits of that; of one value, the value."""
    if value.n == 1:
        return f"{value.mean:.{FIGURES}g}"
    if value.half == 0:
        return f"{value.mean:.{FIGURES}g} ± 0"
    digits = max(0, 1 - int(np.floor(np.log10(value.half))))
    return f"{value.mean:.{digits}f} ± {value.half:.{digits}f}"

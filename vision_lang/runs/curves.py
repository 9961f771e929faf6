"""The curves of groups of runs as a picture: means over a group's runs, and the range they span."""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Sequence

import numpy as np

from vision_lang.runs.grouping import Group

ACROSS = 3  # panels side by side
DOTS = 120  # per inch of the PNG


def draw(groups: Sequence[Group], legend: Sequence[str], patterns: Sequence[str]) -> dict:
    """Returns {"curves.pdf": bytes, "curves.png": bytes} with a panel for each metric that a
    pattern fits; {} where none does."""
    from matplotlib.figure import Figure

    known = {name for g in groups for run in g.runs for line in run.metrics for name in line}
    names = [n for p in patterns for n in sorted(known - {"step"}) if fnmatch.fnmatchcase(n, p)]
    names = list(dict.fromkeys(names))
    if not names:
        return {}
    across = min(ACROSS, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(4.5 * across, 3.2 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        for row, label in zip(groups, legend, strict=True):
            steps, low, mean, high = curve(row, name)
            if len(steps):
                (line,) = panel.plot(steps, mean, label=label, linewidth=1.2)
                panel.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set(title=name, xlabel="step")
        panel.grid(alpha=0.3)
    for panel in panels[len(names) :]:
        panel.remove()
    if any(legend) and len(groups) > 1:
        panels[0].legend(fontsize="small")
    return {f"curves.{kind}": _bytes(figure, kind) for kind in ("pdf", "png")}


def curve(group: Group, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps at which every run of a group that logs a metric has it, and its least, mean and
    largest value there."""
    each = [
        {line["step"]: float(line[name]) for line in run.metrics if name in line}
        for run in group.runs
    ]
    each = [values for values in each if values]
    steps = sorted(set.intersection(*map(set, each))) if each else []
    table = np.array([[values[step] for step in steps] for values in each]).reshape(len(each), -1)
    if not steps:
        empty = np.zeros(0)
        return empty, empty, empty, empty
    return np.array(steps), table.min(0), table.mean(0), table.max(0)


def _bytes(figure, kind: str) -> bytes:
    """The same for the same figure, whenever it is made."""
    file = io.BytesIO()
    stamp = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    figure.savefig(file, format=kind, dpi=DOTS, metadata=stamp)
    return file.getvalue()

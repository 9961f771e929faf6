"""A table of groups of runs, as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import os
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vision_lang.metrics import significance
from vision_lang.runs import grouping, markdown
from vision_lang.runs.grouping import Against, Group

UNTESTED = "not tested"
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "<": r"$<$", ">": r"$>$"}
)


class Table(NamedTuple):
    """What a report says.

    fields: what tells the rows apart; metrics: the columns.
    best: of each metric its best row (None: there is none).
    compared: (metric, row, what it is against the best row).
    usual: what most runs have; marks: of each row what is not so.
    """

    fields: list[str]
    metrics: list[str]
    groups: list[Group]
    best: dict[str, Group | None]
    compared: list[tuple[str, Group, Against]]
    usual: dict[str, str]
    marks: list[list[str]]


def make(groups: list[Group], fields: Sequence[str], metrics: Sequence[str]) -> Table:
    """Returns the table of these rows and columns."""
    best = {metric: grouping.best(groups, metric) for metric in metrics}
    compared = [
        (metric, row, grouping.against(row, first, metric))
        for metric, first in best.items()
        for row in groups
        if first and row is not first and row.values(metric)
    ]
    usual = grouping.usual([run for row in groups for run in row.runs])
    marks = [grouping.unlike(row.runs, usual) for row in groups]
    return Table(list(fields), list(metrics), groups, best, compared, usual, marks)


def name(group: Group, fields: Sequence[str]) -> str:
    """A row in words, as in a legend."""
    pairs = zip(fields, group.label, strict=True)
    return ", ".join(f"{field.rpartition('.')[2]}={value}" for field, value in pairs) or "all"


def _letters(table: Table) -> list[str]:
    """A mark for each row that wants one, '' for the others."""
    letters = iter(string.ascii_lowercase * 99)
    return [next(letters) if notes else "" for notes in table.marks]


def _cells(table: Table, bold: Callable[[str], str], note: Callable[[str], str]) -> list[list[str]]:
    """The rows as texts, the first two columns aside made by `spread_text`."""
    rows = []
    for row, letter in zip(table.groups, _letters(table), strict=True):
        label = list(row.label) or ["all"]
        label[0] = label[0] + (note(letter) if letter else "")
        cells = []
        for metric in table.metrics:
            values = row.values(metric)
            text = grouping.spread_text(significance.spread(values)) if values else ""
            cells.append(bold(text) if row is table.best[metric] else text)
        rows.append([*label, str(len(row.runs)), *cells])
    return rows


def _difference(found: Against) -> tuple[str, str, str]:
    """Difference of means, p, and the interval over examples."""
    p = UNTESTED if found.p is None else f"{found.p:.2g}"
    each = found.examples
    interval = f"{each.difference:+.3g} ({each.low:+.3g} to {each.high:+.3g})" if each else UNTESTED
    return f"{found.difference:+.3g}", p, interval


def _notes(table: Table) -> list[str]:
    """What the numbers are, and what sets rows apart."""
    told = ["n: runs; ± half of the mean's 95 % t interval over them."]
    which = "Most runs" if any(table.marks) else "All runs"
    told.append(f"{which}: " + "; ".join(f"{k} {v}" for k, v in table.usual.items()) + ".")
    pairs = zip(_letters(table), table.marks, strict=True)
    return told + [f"{letter}: {'; '.join(notes)}." for letter, notes in pairs if letter]


COMPARED = ("difference", "p (Welch)", "over examples (95 %)")


def as_markdown(table: Table, folder: str = ".") -> str:
    """The table, the rows against the best one, and links to the runs for a file in `folder`."""
    head = [*(table.fields or ["runs"]), "n", *table.metrics]
    bold = lambda text: f"**{text}**"  # noqa: E731
    rows = _cells(table, bold, lambda letter: f" ({letter})")
    label = len(table.fields) or 1
    rows = [[*map(markdown.plain, row[:label]), *row[label:]] for row in rows]
    parts = [_rows(head, rows), *map(markdown.plain, _notes(table))]
    if table.compared:
        against = [
            [markdown.plain(name(row, table.fields)), metric, *_difference(found)]
            for metric, row, found in table.compared
        ]
        parts += ["Against the best of each column:", _rows(["row", "metric", *COMPARED], against)]
    runs = [run for row in table.groups for run in row.runs]
    links = [f"[{markdown.plain(run.name)}](<{_link(run.place, folder)}>)" for run in runs]
    return "\n\n".join([*parts, "Runs: " + ", ".join(links) + "."])


def _link(place: str, folder: str) -> str:
    """From a folder to a place; one in a bucket stays as it is."""
    return place if "://" in place else os.path.relpath(place, folder)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_latex(table: Table) -> str:
    """The first table for the package booktabs, its notes as comments."""
    plain = lambda text: text.translate(_LATEX)  # noqa: E731
    rows = _cells(table, lambda text: f"\0{text}\1", lambda letter: f"\2{letter}\3")
    head = [*(table.fields or ["runs"]), "n", *table.metrics]
    marks = str.maketrans({"\0": r"\textbf{", "\1": "}", "\2": "$^{", "\3": "}$"})
    lines = [[plain(cell).translate(marks) for cell in row] for row in rows]
    body = [" & ".join(line) + r" \\" for line in lines]
    columns = "l" * (len(table.fields) or 1) + "r" * (1 + len(table.metrics))
    return "\n".join(
        [
            *("% " + note.replace("\n", " ") for note in _notes(table)),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(plain, head)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def as_csv(table: Table) -> str:
    """A line for each row and metric, all numbers in full."""
    file = io.StringIO()
    write = csv.writer(file, lineterminator="\n").writerow
    write(
        [*table.fields, "metric", "n", "mean", "deviation", "half_interval", "best"]
        + ["difference", "p", "examples_difference", "examples_low", "examples_high", "values"]
        + ["runs", "marks"]
    )
    found = {(metric, id(row)): against for metric, row, against in table.compared}
    for row, notes in zip(table.groups, table.marks, strict=True):
        for metric in (m for m in table.metrics if row.values(m)):
            values = row.values(metric)
            other = found.get((metric, id(row)))
            compared = ["", "", "", "", ""]
            if other:
                p = "" if other.p is None else repr(other.p)
                interval = map(repr, other.examples) if other.examples else ("",) * 3
                compared = [repr(other.difference), p, *interval]
            spread = significance.spread(values)
            numbers = ["" if x != x else repr(x) for x in spread[1:]]
            write(
                [*row.label, metric, spread.n, *numbers]
                + [str(row is table.best[metric]).lower(), *compared]
                + [" ".join(map(repr, values)), " ".join(r.name for r in row.runs)]
                + ["; ".join(notes)]
            )
    return file.getvalue()

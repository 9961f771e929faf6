"""Gathers runs into one table, as Markdown, LaTeX and CSV, and draws their curves.

    python -m vision_lang.report RUN... [--by=FIELD,...] [--metrics=NAME,...] [--out=DIR]

A RUN is a run folder, a record of one (vision_lang.archive), or a folder that holds some. Runs
that differ in their seeds alone share a row: n, mean and half of its 95 % t interval. --by names
the config fields that tell rows apart (`name`: the run's); by default all in which the runs differ.
The best mean of a column is bold. A second table compares each row with the best one: Welch's p
where both have five runs or more, and a paired bootstrap over the test examples, of the seeds that
both have. Runs of other code, data, versions or hardware than most are marked, and so are rows
whose runs differ in more than the seed.

--out writes table.md, table.tex (booktabs), table.csv and, where the runs have such metrics, the
--curves as curves.pdf and curves.png: means over a row's runs, and the range that they span.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from absl import flags, logging
from etils import epath

from vision_lang import flags as commands
from vision_lang.errors import InputError

if TYPE_CHECKING:
    from vision_lang.runs.tables import Table

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_list("by", [], "Config fields that tell rows apart; none = all that differ.")
    flags.DEFINE_list("metrics", [], "Names of results, as test/top1 or test*/cider; none = usual.")
    flags.DEFINE_list("curves", ["loss"], "Names in metrics.jsonl, as validation/loss_raw.")
    flags.DEFINE_string("out", "", "The folder that is written; '' = the table is printed alone.")
    flags.DEFINE_boolean("overwrite", False, "Replace the tables and curves that are in --out.")
    commands.run(_run, names=True)


def _run(paths: list[str]) -> None:
    from vision_lang.runs import tables

    if not paths:
        raise InputError("Say which runs: vision_lang.report RUN...")
    table = gather(paths, FLAGS.by, FLAGS.metrics)
    print(tables.as_markdown(table))
    if FLAGS.out:
        _write(made_of(table, FLAGS.curves, FLAGS.out))


def gather(paths: Sequence[str], by: Sequence[str], metrics: Sequence[str]) -> Table:
    """Returns the table of the runs that are over, as the flags of these names say.

    Raises:
      InputError: there is no such run, none is over, or none has such a field or result.
    """
    from vision_lang.runs import grouping, record, tables

    runs = [record.read(path) for path in _expand(paths)]
    for run in runs:
        if not run.results:
            logging.warning("'%s' is left out: it has no results yet.", run.name)
    runs = [run for run in runs if run.results]
    if not runs:
        raise InputError("None of these runs has results: they are written when a run ends.")
    fields = by or grouping.differing(runs)
    names = grouping.metrics(runs, metrics or grouping.HEADLINES)
    return tables.make(grouping.group(runs, fields), fields, names)


def made_of(table: Table, patterns: Sequence[str], folder: str) -> dict[str, str | bytes]:
    """Returns the content of each file that --out=folder writes."""
    from vision_lang.runs import curves, tables

    legend = [tables.name(row, table.fields) for row in table.groups]
    return {
        "table.md": tables.as_markdown(table, folder) + "\n",
        "table.tex": tables.as_latex(table),
        "table.csv": tables.as_csv(table),
    } | curves.draw(table.groups, legend, patterns)


def _expand(paths: Sequence[str]) -> list[str]:
    """Folders that hold runs or records, but are none, as those that they hold."""
    found = []
    for path in paths:
        place = epath.Path(path)
        inside = []
        if place.is_dir() and not (place / "config.json").exists():
            inside = [
                str(p)
                for p in sorted(place.iterdir())
                if (p / "config.json").exists() or p.name.endswith(".record.json")
            ]
            if not inside:
                raise InputError(f"'{path}' is no run, and holds none.")
        found += inside or [path]
    return list(dict.fromkeys(found))


def _write(made: Mapping[str, str | bytes]) -> None:
    out = epath.Path(FLAGS.out)
    there = [name for name in made if (out / name).exists()]
    if there and not FLAGS.overwrite:
        raise InputError(f"'{out}' holds {', '.join(there)} already; --overwrite replaces them.")
    write(made, out)
    print(f"written to {out}: {', '.join(made)}", file=sys.stderr)


def write(made: Mapping[str, str | bytes], folder: epath.Path) -> None:
    """Writes files into a folder, which is made if it is not there.

    Raises:
      InputError: the disk is full or not writable.
    """
    from vision_lang.runs import files

    for name, content in made.items():
        if isinstance(content, str):
            files.write_text(folder / name, content)
        else:
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()

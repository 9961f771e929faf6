"""Makes every table and figure of the studies again, from their committed records: `make papers`.

    python -m experiments.papers

A study is a folder here with records/*.record.json, one for each run (vision_lang.archive), and
study.json: the config fields that tell rows apart ("by"), the results ("metrics") and the "curves"
that are shown, as flags of vision_lang.report. Its table stands in its README.md between the lines
of `BEGIN` and `END`.
"""

from __future__ import annotations

import json
from pathlib import Path

from etils import epath

from vision_lang import flags, report
from vision_lang.errors import InputError

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- table: make papers -->", "<!-- end of the table -->"


def studies() -> list[Path]:
    """The folders of the studies."""
    return sorted(path.parent for path in HERE.glob("*/study.json"))


def made_of(study: Path) -> dict[str, str | bytes]:
    """Returns the content of each file of a study that its records decide.

    Raises:
      InputError: its README has no place for the table.
    """
    asked = json.loads((study / "study.json").read_text())
    table = report.gather([str(study / "records")], asked["by"], asked["metrics"])
    made = report.made_of(table, asked["curves"], str(study))
    readme = (study / "README.md").read_text()
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(f"{study.name}/README.md has no lines '{BEGIN}' and '{END}'.")
    made["README.md"] = f"{before}{BEGIN}\n\n{str(made.pop('table.md')).strip()}\n\n{END}{after}"
    return made


def main() -> None:
    for study in studies():
        made = made_of(study)
        report.write(made, epath.Path(study))
        print(f"{study.name}: {', '.join(sorted(made))}")


if __name__ == "__main__":
    flags.run(main)

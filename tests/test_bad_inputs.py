"""The table of bad inputs: what comes of each, and that the READMEs say what was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.faults import inputs
from vision_lang import flags
from vision_lang.errors import printable

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "experiments" / "faults"


@pytest.mark.parametrize("case", inputs.CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_a_bad_input_is_left_out_or_refused_by_name(case: inputs.Case, tmp_path: Path) -> None:
    outcome, said = inputs.tried(case, tmp_path)
    assert outcome == case.outcome and case.said in said, said


def test_the_tables_are_those_of_the_record() -> None:
    record = json.loads((FAULTS / "inputs.json").read_text())
    assert [(row["kind"], row["input"], row["outcome"]) for row in record] == [
        (case.kind, case.name, case.outcome) for case in inputs.CASES
    ]
    assert inputs.table(record) in (FAULTS / "README.md").read_text()
    assert inputs.summary(record) in (ROOT / "README.md").read_text()


def test_a_command_names_a_file_without_what_moves_the_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        flags.report_bad({"a\n\x1b[2J.png": "no picture"}, 2, "pictures")
    assert capsys.readouterr().err.splitlines() == [
        r"error: a\n\x1b[2J.png: no picture", "1 of 2 pictures could not be read."
    ]  # fmt: skip
    assert printable("où, \u05d0 🙂 \u2028\ud800\x85") == "où, \u05d0 🙂 \\u2028\\ud800\\x85"

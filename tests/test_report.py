"""Many runs in one table: made of records with known numbers, read back from what is written."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from PIL import Image
from scipy import stats

from vision_lang import report
from vision_lang.runs import curves, grouping, record, tables
from vision_lang.runs.record import Record

START: dict[str, Any] = {
    "command": ["main"],
    "git": {"commit": "a" * 40, "dirty": False},
    "packages": {"jax": "0.10.2", "flax": "0.12.8"},
    "backend": "cpu",
    "host_cpu": "some",
    "devices": 2,
}


def run(name="run", results=None, seed=0, examples=None, losses=(), data="d", start=None, **fields):
    return Record(
        name=name,
        config=ConfigDict({"task": "recognition", "seed": seed, "rate": 0.1} | fields).lock(),
        starts=[START | (start or {})],
        data={"fingerprint": data},
        results={"test/top1": 0.5} if results is None else results,
        final={"step": len(losses)},
        metrics=[{"step": n, "loss": x} for n, x in enumerate(losses, 1)],
        examples={"test/top1": dict(enumerate(examples))} if examples else {},
        place=f"runs/{name}",
    )


def several(values, **fields):
    return [
        run(f"s{seed}", {"test/top1": value}, seed, **fields) for seed, value in enumerate(values)
    ]


def made(runs, metrics=("test/top1",), fields=None):
    fields = grouping.differing(runs) if fields is None else fields
    return tables.make(grouping.group(runs, fields), fields, list(metrics))


def against(runs):
    """The first of two rows against the second."""
    one, other = made(runs).groups
    return grouping.against(one, other, "test/top1")


@pytest.fixture
def files(tmp_path):
    """files(runs) -> their records as files."""

    def write(runs):
        paths = [tmp_path / f"{number}.record.json" for number in range(len(runs))]
        for one, path in zip(runs, paths, strict=True):
            record.write(one, epath.Path(path))
        return [str(path) for path in paths]

    return write


# Numbers. -----------------------------------------------------------------------------------------


def test_seeds_share_a_row():
    low, high = [0.50, 0.52, 0.57], [0.6, 0.7, 0.8]
    table = made(several(low) + several(high, rate=0.2))
    assert table.fields == ["rate"] and [len(g.runs) for g in table.groups] == [3, 3]
    half = stats.t.ppf(0.975, 2) * np.std(low, ddof=1) / math.sqrt(3)
    rows = tables.as_markdown(table).splitlines()[2:4]
    assert rows[0] == f"| 0.1 | 3 | {np.mean(low):.3f} ± {half:.3f} |"
    assert rows[1].startswith("| 0.2 | 3 | **0.70 ± ")


def test_p_values_want_five_runs_a_side():
    a, b = [0.1, 0.2, 0.3, 0.25, 0.2], [0.3, 0.4, 0.3, 0.5, 0.35]
    ((_, row, found),) = made(several(a) + several(b, rate=0.2)).compared
    assert row.label == ("0.1",) and found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert found.p == stats.ttest_ind(a, b, equal_var=False).pvalue
    few = made(several(a[:4]) + several(b, rate=0.2))
    assert few.compared[0][2].p is None and "| not tested |" in tables.as_markdown(few)


@pytest.mark.parametrize(
    ("metric", "best"),
    [("test/top1", "2"), ("test/fd_vgg", "1"), ("validation/loss_raw", "1"), ("test/n", None)],
)
def test_what_is_better(metric, best):
    table = made([run(results={metric: 1.0}, k=1), run(results={metric: 2.0}, k=2)], [metric])
    assert table.best[metric] is (best and next(g for g in table.groups if g.label == (best,)))


def test_examples_are_paired_by_seed_and_place():
    """Only seeds that both rows have, only places that all have; the third seed is one row's."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2, (2, 50)).astype(float) for _ in range(2))
    left = [run(seed=s, examples=list(a[s])) for s in range(2)]
    left.append(run(seed=7, examples=[0.0] * 50))
    right = [run(seed=s, examples=list(b[s])[:40], rate=0.2) for s in range(2)]
    found = against(left + right).examples
    means = (a.mean(0) - b.mean(0))[:40]
    assert found.difference == pytest.approx(means.mean())
    error = means.std() / math.sqrt(40)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    other = [run(seed=s, examples=list(b[s]), rate=0.2, data="other") for s in range(2)]
    assert against(left + other).examples is None


# What must not be mixed unsaid. -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"data": "other"}, "data: other (1 of 2 runs)"),
        ({"start": {"git": {"commit": "b" * 40}}}, "code: bbbbbbbbbb (1 of 2 runs)"),
        ({"start": {"git": START["git"] | {"dirty": True, "diff": "x"}}}, "aaaaaaaaaa with chang"),
        ({"start": {"packages": {"jax": "0.11.0"}}}, "versions: jax 0.11.0 (1 of 2 runs)"),
        ({"start": {"host_cpu": "else"}}, "hardware: 2 x else (1 of 2 runs)"),
        ({"width": 3}, "its runs differ in width"),
    ],
)
def test_what_is_unlike_the_others_is_marked(change, note):
    runs = [run(), run(seed=1, **change), run(rate=0.2), run(rate=0.2, seed=1), run(rate=0.3)]
    table = made(runs, fields=["rate"])
    assert table.marks[1:] == [[], []] and note in table.marks[0][0]
    assert "| 0.1 (a) | 2 |" in tables.as_markdown(table)
    assert "0.1$^{a}$ & 2 &" in tables.as_latex(table)


# As files. ----------------------------------------------------------------------------------------


def test_csv_holds_every_number_in_full():
    rng = np.random.default_rng(1)
    runs = several(rng.random(5).tolist()) + several(rng.random(5).tolist(), rate=0.2)
    table = made(runs)
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(table))))
    for line, rows in zip(lines, (runs[:5], runs[5:]), strict=True):
        values = [r.results["test/top1"] for r in rows]
        assert [float(x) for x in line["values"].split()] == values
        assert float(line["mean"]) == np.mean(values) and line["n"] == "5"
        assert float(line["deviation"]) == np.std(values, ddof=1)
    (other,) = [line for line in lines if line["best"] == "false"]
    assert float(other["p"]) == table.compared[0][2].p


def test_names_mean_nothing_to_markdown_or_latex():
    table = made([run(note="a|b_c<i> 5% \\x"), run(note="$y^2$")])
    row = tables.as_markdown(table).splitlines()[2]
    assert row.startswith("| a&#124;b&#95;c&#60;i&#62; 5% &#92;x | 1 |")
    text = tables.as_latex(table)
    assert r"a|b\_c$<$i$>$ 5\% \textbackslash{}x & 1 & " in text
    assert r"\$y\textasciicircum{}2\$ & 1" in text
    assert text.count(r"\\") == 3 and text.count("&") == 2 * 3


def test_curves_are_means_over_runs():
    runs = [run(losses=[3, 2, 1]), run(losses=[5, 4], seed=1)]
    steps, low, mean, high = curves.curve(grouping.Group(("x",), runs), "loss")
    assert [list(v) for v in (steps, low, mean, high)] == [[1, 2], [3, 2], [4, 3], [5, 4]]
    both = [grouping.Group(("x",), runs), grouping.Group(("y",), runs[:1])]
    drawn = curves.draw(both, ["x", "y"], ["lo*"])
    assert drawn == curves.draw(both, ["x", "y"], ["loss"])  # to the bit
    assert Image.open(io.BytesIO(drawn["curves.png"])).size[0] > 200
    assert drawn["curves.pdf"].startswith(b"%PDF") and curves.draw(both, ["x", "y"], ["no"]) == {}


# The command. -------------------------------------------------------------------------------------


def test_the_command(command, files, tmp_path, caplog):
    paths = files([run("a", losses=[1]), run("b", losses=[1], rate=0.2), run("c", results={})])
    out = tmp_path / "out"
    ended = command(report.main, str(tmp_path), f"--out={out}")
    assert ended.code == 0 and "| 0.2 | 1 | 0.5 |" in ended.out
    assert "'c' is left out: it has no results yet" in caplog.text
    assert {p.name for p in out.iterdir()} == {
        "table.md", "table.tex", "table.csv", "curves.pdf", "curves.png"
    }  # fmt: skip
    assert (out / "table.md").read_text().startswith(ended.out.partition("Runs:")[0])
    assert "[a](<../0.record.json>)" in (out / "table.md").read_text()
    again = command(report.main, *paths, f"--out={out}")
    assert "holds table.md, table.tex, table.csv" in again.sentence
    assert command(report.main, *paths, f"--out={out}", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Say which runs"),
        (["nowhere"], "Run folder 'nowhere' does not exist."),
        (["empty"], "'empty' is no run, and holds none."),
        (["other.json"], "'other.json' is no record of a run"),
        (["torn.json"], "The record 'torn.json' cannot be read"),
        (["part.json"], "The record 'part.json' lacks, or has besides, examples."),
        (["c.json"], "None of these runs has results"),
        (["a.json", "--by=rat"], "No run has a config field 'rat'. Did you mean 'rate'?"),
        (["a.json", "--metrics=x/y"], "No run has a result like x/y; there are: test/top1."),
    ],
)
def test_wrong_input(command, monkeypatch, tmp_path, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    record.write(run("a"), epath.Path("a.json"))
    record.write(dataclasses.replace(run("c"), results={}), epath.Path("c.json"))
    whole = (tmp_path / "a.json").read_text()
    (tmp_path / "torn.json").write_text(whole[:50])
    (tmp_path / "other.json").write_text("[1]")
    part = {name: value for name, value in json.loads(whole).items() if name != "examples"}
    (tmp_path / "part.json").write_text(json.dumps(part))
    assert sentence in command(report.main, *arguments).sentence

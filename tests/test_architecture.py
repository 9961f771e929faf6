"""The architecture, read from the source: who imports whom, and who knows of devices and files.

    commands -> training -> runs -> tasks, pretrained, evaluators
             -> models, diffusion, decoding, data, metrics, shapes

Imports inside functions and under TYPE_CHECKING count too: they are arrows all the same.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vision_lang"

GROUND = {"models", "diffusion", "decoding", "metrics", "shapes"}
# The parts with a place in the order, lowest first. What is in none of these rows is a module in
# the package's root or a __main__: a command, at the top, unless BASE names it, which any part may
# import.
ROWS = [GROUND | {"data"}, {"tasks", "pretrained", "evaluators"}, {"runs"}, {"training"}]
BASE = {"errors", "keys", "processes", "watching"}
TOP = len(ROWS)

COLLECTIVES = {
    "pmap", "shard_map", "axis_index", "psum", "pmean", "pmax", "pmin", "ppermute", "pshuffle",
    "all_gather", "all_to_all", "psum_scatter",
}  # fmt: skip
DEVICES = {"devices", "local_devices", "device_count", "local_device_count", "device_put", "pjit"}
FILES = {"os", "io", "pathlib", "shutil", "tempfile", "glob", "zipfile", "etils", "orbax"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    """The dotted names of all modules that `tree` imports, wherever the import stands.

    `from a.b import c` gives a.b.c where that is one of our modules, else a.b.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in modules() else str(node.module)


def part(module: str) -> str:
    """vision_lang.data.builders.idx -> data; the package itself -> ''.

    A `__main__` is a command wherever it stands, and its own part: it may read files and flags, for
    functions beside it that may not, and no part below the commands may import it.
    """
    if module.endswith(".__main__"):
        return module
    return module.split(".")[1] if "." in module else ""


def row(name: str) -> int:
    """The floor that a part lives on; -1 for what every part may import."""
    if name in BASE or not name:
        return -1
    return next((i for i, parts in enumerate(ROWS) if name in parts), TOP)


@cache
def arrows() -> list[tuple[str, str]]:
    """(importer, imported) over the modules of the package."""
    return [
        (module, name)
        for module, tree in modules().items()
        for name in imports(tree)
        if name.split(".")[0] == "vision_lang" and name != module
    ]


def names_used(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of every name, attribute, imported name and keyword argument in the code."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield node.lineno, name
            case ast.ImportFrom(names=aliases):
                yield from ((node.lineno, alias.name) for alias in aliases)
            case ast.keyword(arg=str(name)):
                yield node.value.lineno, name


def test_every_folder_has_its_place():
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert {"data", "models", "diffusion", "shapes"} <= folders
    assert folders <= set().union(*ROWS), "a new part: give it a row in this file and in the design"


def test_arrows_point_down():
    wrong = [f"{a} imports {b}" for a, b in arrows() if row(part(b)) > row(part(a))]
    assert not wrong, "\n".join(wrong)


def test_what_everybody_may_import_imports_nothing():
    wrong = [f"{a} imports {b}" for a, b in arrows() if part(a) in BASE and part(b) not in BASE]
    assert not wrong, "\n".join(wrong)


def test_the_ground_floor_does_not_know_data_and_data_knows_no_model():
    wrong = [f"{a} imports {b}" for a, b in arrows() if part(a) in GROUND and part(b) == "data"]
    wrong += [
        f"{a} imports {b}"
        for a, b in arrows()
        if part(a) == "data" and part(b) in GROUND - {"shapes"}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("level", ["modules", "parts"])
def test_there_are_no_circles(level: str):
    graph: dict[str, set[str]] = {}
    for a, b in arrows():
        if level == "parts":
            a, b = part(a), part(b)
        # A package stands before its modules whenever one of them is imported: no arrow of ours.
        if a != b and not a.startswith(b + "."):
            graph.setdefault(a, set()).add(b)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle: " + " <- ".join(error.args[1]))


def test_only_one_module_knows_collectives_and_axis_names():
    wrong = [
        f"{module}:{line} {name}"
        for module, tree in modules().items()
        if module != "vision_lang.training.parallel"
        for line, name in names_used(tree)
        if name in COLLECTIVES or name.endswith("axis_name")
    ]
    assert not wrong, "\n".join(wrong)


def test_tasks_know_no_files_and_no_devices():
    tasks = {name: tree for name, tree in modules().items() if part(name) == "tasks"}
    wrong = [
        f"{module} imports {name}"
        for module, tree in tasks.items()
        for name in imports(tree)
        if name.split(".")[0] in FILES
    ]
    wrong += [
        f"{module}:{line} {name}"
        for module, tree in tasks.items()
        for line, name in names_used(tree)
        if name in DEVICES or name == "open"
    ]
    assert not wrong, "\n".join(wrong)


def test_networks_diffusion_and_metrics_know_no_files():
    wrong = [
        f"{module} imports {name}"
        for module, tree in modules().items()
        if part(module) in GROUND - {"shapes"}
        for name in imports(tree)
        if name.split(".")[0] in FILES
    ]
    assert not wrong, "\n".join(wrong)


def test_the_loop_can_be_read_in_one_sitting():
    loop = PACKAGE / "training" / "loop.py"
    assert len(loop.read_text(encoding="utf-8").splitlines()) < 300

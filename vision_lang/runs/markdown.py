"""Markdown in which what others wrote, a path, a prompt, a name, shows as the text that it is."""

from __future__ import annotations

from collections.abc import Sequence

from vision_lang.errors import printable

# What means something to Markdown or HTML, as HTML's names for the plain characters.
_PLAIN = str.maketrans({c: f"&#{ord(c)};" for c in "&<>|*_`[]~$\\"})


def plain(value: object) -> str:
    """Returns the text of a value, on one line, that means nothing to Markdown."""
    return printable(str(value)).translate(_PLAIN)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a table whose cells are made plain."""
    cells = [head, ("---",) * len(head), *[[plain(cell) or " " for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def code(lines: Sequence[str]) -> str:
    """Returns lines as a block of code: indented, for a fence could be closed by what it holds."""
    return "\n".join("    " + printable(line) for line in lines)

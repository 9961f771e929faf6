"""Errors that a user can act on: one sentence that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
LISTED = 40  # names that a sentence may list


class InputError(ValueError):
    """Wrong input (a config value, a file, a prompt). Commands print its sentence, exit with 2."""


def printable(text: str) -> str:
    r"""The text with control characters and halves of surrogate pairs as \n, \x1b, \ud800.

    For names that others chose: none may write a line of its own into a log, or steer a terminal.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suggestion(name: str, known: list[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest known name, or a list of the known ones."""
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    if len(known) > LISTED:
        return ""
    return f" Known: {', '.join(sorted(known))}."


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """Returns `table[name]`.

    Raises:
      InputError: `name` is not in the table; the message names the nearest entry.
    """
    if name not in table:
        raise InputError(f"Unknown {what} '{name}'.{suggestion(name, list(table))}")
    return table[name]

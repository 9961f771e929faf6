"""Texts of a file, one a line -> batches of arrays.

A batch is {"tokens": int32 [B, L], "text_mask": bool [B, L]}, always of the same size; rows that
nobody asked for repeat the last one. A text that cannot be used is named, the rest goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vision_lang.data.tokenizer import Tokenizer
from vision_lang.errors import InputError


def lines(path: str) -> Iterator[tuple[str, str]]:
    """(where it stands, "FILE:12"; the text without white space around it) of each line.

    Raises:
      InputError: there is no such file, or a line of it is no UTF-8.
    """
    try:
        with epath.Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield f"{path}:{number}", line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"Line {number} of '{path}' is no text in UTF-8.") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def count(path: str) -> int:
    """The number of lines; all of them are read once.

    Raises:
      InputError: as `lines`; or there is no text at all.
    """
    total = texts = 0
    for _, text in lines(path):
        total += 1
        texts += bool(text)
    if not texts:
        raise InputError(f"There is no text in '{path}': one a line is wanted.")
    return total


@dataclass
class Reader:
    """Encodes texts as a run encodes prompts: none is cut.

    data: the run's `config.data`.
    bad: where it stands -> why it could not be used, filled while reading.
    """

    tokenizer: Tokenizer
    data: ConfigDict
    bad: dict[str, str] = field(default_factory=dict)
    what = "texts"

    def batches(
        self, texts: Iterable[tuple[str, str]], size: int
    ) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
        """(the texts in it, a batch of `size` rows whose first rows are theirs).

        texts: (where it stands, the text), as `lines` gives them.
        """
        kept: list[str] = []
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        for place, text in texts:
            try:
                if not text:
                    raise InputError("there is no text in this line.")
                rows.append(self.tokenizer.encode(text, self.data.text_length, strict=True))
                kept.append(text)
            except InputError as error:
                self.bad[place] = str(error)
            if len(kept) == size:
                yield kept, _batch(rows, size)
                kept, rows = [], []
        if kept:
            yield kept, _batch(rows, size)


def _batch(rows: list[tuple[np.ndarray, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    tokens, mask = zip(*rows, *[rows[-1]] * (size - len(rows)), strict=True)
    return {"tokens": np.stack(tokens), "text_mask": np.stack(mask)}

"""What a task must know of the data set and the tokenizer before it can be built."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class DataFacts(NamedTuple):
    """Kept in the run folder beside the config.

    null_tokens, null_mask: the empty text as the tokenizer writes it, [L].
    tokens_of: of a word, the tokens that are all of it.
    """

    vocab_size: int
    null_tokens: tuple[int, ...]
    null_mask: tuple[bool, ...]
    num_classes: int
    tokens_of: Callable[[str], tuple[int, ...]] = lambda word: ()

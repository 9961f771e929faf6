"""Captions <-> token ids, by Hugging Face `tokenizers`. L is the text length, V the vocabulary.

A tokenizer is trained on the training captions (byte-level BPE, Sennrich et al. 2016, Radford et
al. 2019: every string has an encoding) and kept as `tokenizer.json` in the run folder, or read
from an existing file. A text is always `<bos> tokens <eos> <pad>...`, whatever the file's own
post-processor would add, so that one rule holds for every tokenizer; T5's have no <bos>.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import reprlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from absl import logging
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from vision_lang.errors import InputError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"

# (begin, end, padding) of known vocabularies; the first triple that is complete in a file counts.
SPECIAL_TOKENS: tuple[tuple[str | None, str, str], ...] = (
    (BOS, EOS, PAD),
    ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>"),  # CLIP pads with its end token
    ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),  # GPT-2 has this one only
    ("<s>", "</s>", "<pad>"),  # RoBERTa, BART
    ("[CLS]", "[SEP]", "[PAD]"),  # BERT
    (None, "</s>", "<pad>"),  # T5 begins with the first word
)
LARGEST_VOCABULARY = 2**22  # a handful of times what is published
LEARNED_CHARACTERS = 2**12  # of one text; time grows with the square of a word's length
SMALLEST_VOCABULARY = 256 + 3  # each byte and the special tokens


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as one JSON string: hashable, comparable, and safe to send to a worker.

    json: the content of a tokenizer.json, in the Hugging Face format.
    """

    json: str

    @functools.cached_property
    def _hf(self) -> tokenizers.Tokenizer:
        with _sentence("This is no tokenizer.json of Hugging Face"):
            hf = tokenizers.Tokenizer.from_str(self.json)
        hf.no_padding()
        hf.no_truncation()
        hf.encode_special_tokens = True  # a user who types "<eos>" means these five characters
        return hf

    def __getstate__(self) -> dict[str, str]:
        return {"json": self.json}

    @functools.cached_property
    def specials(self) -> tuple[int | None, int, int]:
        """Ids of begin (None: there is none), end and padding."""
        for names in SPECIAL_TOKENS:
            ids = [i for i in map(self._hf.token_to_id, filter(None, names)) if i is not None]
            if len(ids) == sum(map(bool, names)):
                # Stable Diffusion 2 pads with "!": a file may say so.
                padding = json.loads(self.json).get("padding") or {}
                *begin, end, pad = ids
                return begin[0] if begin else None, end, padding.get("pad_id", pad)
        known = "; ".join(", ".join(filter(None, names)) for names in SPECIAL_TOKENS)
        raise InputError(
            "This tokenizer.json has no known tokens for begin, end and padding of a text "
            f"(known sets: {known}). Add one of them to the file, or leave data.tokenizer "
            "empty to train one on the captions."
        )

    @property
    def vocab_size(self) -> int:
        """V, special tokens included: ids are 0..V-1."""
        return max(self._hf.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def pad_id(self) -> int:
        return self.specials[2]

    @property
    def bos_id(self) -> int | None:
        return self.specials[0]

    @property
    def eos_id(self) -> int:
        return self.specials[1]

    def encode(
        self, text: str, length: int, *, strict: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes one text.

        Args:
          text: any string, also empty.
          length: L, at least 2.
          strict: refuse a text that is too long (a prompt) instead of cutting it (a caption).

        Returns:
          ids int32 [L]: begin, tokens, end, padding; mask bool [L]: True up to the end token.

        Raises:
          InputError: strict, and the text has more tokens than `room` says; or the file has no
            token for a part of it.
        """
        return self._frame(self._tokens([text])[0], text, length, strict)

    def encode_batch(
        self, texts: Sequence[str], length: int, *, strict: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes B texts: ids int32 [B, L], mask bool [B, L]; see `encode`."""
        encoded = self._tokens(texts)
        rows = [self._frame(e, t, length, strict) for e, t in zip(encoded, texts, strict=True)]
        ids = np.stack([row[0] for row in rows]) if rows else np.zeros((0, length), np.int32)
        mask = np.stack([row[1] for row in rows]) if rows else np.zeros((0, length), bool)
        return ids, mask

    def _frame(
        self, tokens: list[int], text: str, length: int, strict: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        begin, end, padding = self.specials
        room = self.room(length)
        if strict and len(tokens) > room:
            raise InputError(
                f"The text {text!r} has {len(tokens)} tokens, but the text length of this "
                f"model leaves room for {room} (data.text_length={length}, less begin and end). "
                "Shorten it."
            )
        framed = [*([] if begin is None else [begin]), *tokens[:room], end]
        ids = np.full(length, padding, np.int32)
        ids[: len(framed)] = framed
        return ids, np.arange(length) < len(framed)

    def room(self, length: int) -> int:
        """How many tokens of its own a text of `length` can have: less begin and end."""
        return length - (1 if self.bos_id is None else 2)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids back to text, without special tokens and what follows the first end token."""
        begin, end, padding = self.specials
        kept: list[int] = []
        for token in (int(i) for i in ids):
            if token == begin and not kept:
                continue
            if token in (end, padding):
                break
            kept.append(token)
        return self._hf.decode(kept, skip_special_tokens=True).strip()

    def tokens_of(self, word: str) -> tuple[int, ...]:
        """The tokens that are all of a word: at the start of a text, and behind a space."""
        spelled = self._tokens([word, " " + word])
        return tuple(sorted({ids[0] for ids in spelled if len(ids) == 1}))

    def count_truncated(self, texts: Sequence[str], length: int) -> int:
        """How many of the texts have more tokens than there is room, and so lose their end."""
        return sum(len(tokens) > self.room(length) for tokens in self._tokens(texts))

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text. A file may lack a token for what it does not know."""
        some = reprlib.repr(texts[0]) if len(texts) == 1 else f"{len(texts)} texts"
        # The fast call of the library leaves out character offsets; it exists for batches only.
        with _sentence(f"The tokenizer cannot encode {some}"):
            encoded = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
            return [e.ids for e in encoded]


@contextlib.contextmanager
def _sentence(what: str) -> Iterator[None]:
    """The library raises plain Exceptions; and panics, as of a damaged table of characters, are
    none, so that they would pass by all who clean up."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(f"{what}: {error}") from error


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains byte-level BPE; the same texts give the same tokenizer, bit for bit.

    Args:
      texts: the training captions; only their words count, so order does not matter. Of a very long
        one the first LEARNED_CHARACTERS count.
      vocab_size: the most tokens to have, special tokens included; few captions give fewer.

    Raises:
      InputError: there is no text, or vocab_size leaves no room for the bytes.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"data.vocab_size={vocab_size} is too small: every byte and three special tokens "
            f"need {SMALLEST_VOCABULARY}; 512 to 8192 is usual for captions."
        )
    texts = [text[:LEARNED_CHARACTERS] for text in texts if text.strip()]
    if not texts:
        raise InputError(
            "No captions to train a tokenizer on: the training split has no text. Name the field "
            "with data.text_key, or add texts to the data set."
        )
    hf = tokenizers.Tokenizer(models.BPE())
    hf.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    hf.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    hf.train_from_iterator(texts, trainer)
    return Tokenizer(hf.to_str())


def load(path: epath.PathLike) -> Tokenizer:
    """Reads a tokenizer.json; a folder that holds one will do.

    Raises:
      InputError: there is no such file, it is no tokenizer, or its special tokens are unknown.
    """
    file = epath.Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.exists():
        raise InputError(f"There is no tokenizer at {file} (data.tokenizer).")
    tokenizer = Tokenizer(read(file))
    try:
        _ = tokenizer.specials
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return tokenizer


def read(file: epath.Path) -> str:
    """Returns the content of a tokenizer.json that Hugging Face's library can read.

    Raises:
      InputError: it cannot, or an id is so large that no table of embeddings would hold it.
    """
    try:
        text = file.read_text()
        largest = Tokenizer(text).vocab_size
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: {error}") from error
    if largest > LARGEST_VOCABULARY:
        raise InputError(
            f"{file} has a token {largest - 1:,}, and more than {LARGEST_VOCABULARY:,} tokens no "
            "network has: it is damaged."
        )
    return text


def for_captions(texts: Sequence[str], *, path: str, vocab_size: int, length: int) -> Tokenizer:
    """The tokenizer that a config asks for: read from `path`, or trained where it is empty.

    Says once how many of the texts are cut because they are longer than `length`.
    """
    tokenizer = load(path) if path else train(texts, vocab_size)
    cut = tokenizer.count_truncated(texts, length)
    if cut:
        logging.warning(
            "%d of %d training captions (%.1f %%) are longer than data.text_length=%d tokens "
            "and lose their end.",
            cut,
            len(texts),
            100 * cut / len(texts),
            length,
        )
    return tokenizer

"""The tokenizer beside published weights, as one tokenizer.json.

Older folders have `vocab.json` and `merges.txt` instead: of byte-level BPE as in GPT-2, or of
CLIP's, which lower-cases and marks the ends of words.
"""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from vision_lang.data import tokenizer
from vision_lang.errors import InputError
from vision_lang.pretrained import tensors

END_OF_WORD = "</w>"
# CLIP's words (Radford et al. 2021): special tokens, endings, letters, single digits, the rest.
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def read(folder: Any) -> str:
    """Returns the content of a tokenizer.json; what a text is padded with stands in its `padding`.

    Raises:
      InputError: the folder has no tokenizer, or it is damaged.
    """
    folder = epath.Path(folder)
    file = folder / "tokenizer.json"
    made = json.loads(tokenizer.read(file) if file.exists() else _from_vocabulary(folder))
    padding = _padding(folder)
    ids = {token["content"]: token["id"] for token in made.get("added_tokens", [])}
    vocabulary = made["model"].get("vocab", {})
    if isinstance(vocabulary, list):  # of T5's unigrams: [token, score] by id
        vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    ids = vocabulary | ids
    if padding in ids:
        made["padding"] = {
            "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": ids[padding], "pad_type_id": 0, "pad_token": padding,
        }  # fmt: skip
    return json.dumps(made, ensure_ascii=False)


def _padding(folder: epath.Path) -> str:
    """The padding token that the folder's configs name, or ''."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            token = tensors.read_json(folder / name, "of a tokenizer").get("pad_token")
            content = token.get("content") if isinstance(token, dict) else token
            if content and not isinstance(content, str):
                raise InputError(f"{folder / name}: the 'pad_token' is no text.")
            if content:
                return content
    return ""


def _from_vocabulary(folder: epath.Path) -> str:
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).exists():
            raise InputError(f"'{folder}' has no tokenizer.json, and no {name} to make one of.")
    vocab = tensors.read_json(folder / "vocab.json", "the tokens")
    try:
        lines = (folder / "merges.txt").read_text().split("\n")
        words = [line.split() for line in lines if not line.startswith("#version")]
        return _byte_pairs(vocab, [(pair[0], pair[1]) for pair in words if len(pair) == 2])
    except Exception as error:  # the library raises plain Exception
        raise InputError(
            f"vocab.json and merges.txt in '{folder}' make no tokenizer: {error}"
        ) from error


def _byte_pairs(vocab: dict[str, int], merges: list[tuple[str, str]]) -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    clip = any(token.endswith(END_OF_WORD) for token in vocab)
    if clip:
        made = Tokenizer(
            models.BPE(
                vocab=vocab, merges=merges, continuing_subword_prefix="",
                end_of_word_suffix=END_OF_WORD, fuse_unk=False, unk_token="<|endoftext|>",
            )
        )  # fmt: skip
        made.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        made.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    else:
        made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    special = ("<|startoftext|>", "<|endoftext|>")
    made.add_special_tokens([token for token in special if token in vocab])
    return made.to_str()

"""Captions <-> ids."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hf_tokenizers

from vision_lang.data import tokenizer
from vision_lang.errors import InputError

CAPTIONS = [f"a {size} {colour} {shape}" for size in ("small", "large")
            for colour in ("red", "green", "blue") for shape in ("circle", "square")]  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> tokenizer.Tokenizer:
    return tokenizer.train(CAPTIONS, 300)


def test_frame_is_begin_tokens_end_padding(trained: tokenizer.Tokenizer) -> None:
    ids, mask = trained.encode("a red circle", 12)
    used = int(mask.sum())
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (12,)
    assert mask.tolist() == [True] * used + [False] * (12 - used)
    assert ids[0] == trained.bos_id and ids[used - 1] == trained.eos_id
    assert (ids[used:] == trained.pad_id).all()
    assert trained.encode("", 4)[0].tolist() == [
        trained.bos_id,
        trained.eos_id,
        *[trained.pad_id] * 2,
    ]
    assert ids.max() < trained.vocab_size <= 300


@pytest.mark.parametrize(
    "text",
    ["a red circle", "Ünïcode — ünseen ﬁne ①", "日本語 🎨 emoji", "a\tb\nc", "\x00\x7f", "x" * 60,
     "<eos> <pad> <bos> are words here"],
)  # fmt: skip
def test_nothing_is_unknown_and_nothing_is_lost(trained: tokenizer.Tokenizer, text: str) -> None:
    ids, mask = trained.encode(text, 300)
    normal = unicodedata.normalize("NFKC", text).lower()
    assert trained.decode(ids) == normal.strip()
    specials = {trained.bos_id, trained.eos_id, trained.pad_id}
    assert not specials & set(ids[mask][1:-1].tolist())


def test_words_of_the_captions_become_single_tokens() -> None:
    big = tokenizer.train(CAPTIONS, 2000)
    assert big.encode("a large green square", 12)[1].sum() == 4 + 2


def test_batch_equals_single(trained: tokenizer.Tokenizer) -> None:
    ids, mask = trained.encode_batch(["", *CAPTIONS], 9)
    for row, text in enumerate(["", *CAPTIONS]):
        one = trained.encode(text, 9)
        np.testing.assert_array_equal(ids[row], one[0])
        np.testing.assert_array_equal(mask[row], one[1])
    assert trained.encode_batch([], 9)[0].shape == (0, 9)


def test_longer_padding_changes_no_token(trained: tokenizer.Tokenizer) -> None:
    short, long = (trained.encode("a red circle", length) for length in (14, 40))
    np.testing.assert_array_equal(short[0][short[1]], long[0][long[1]])


def test_a_caption_is_cut_and_a_prompt_is_refused(trained: tokenizer.Tokenizer) -> None:
    text = "red " * 30
    ids, mask = trained.encode(text, 10)
    assert mask.all() and ids[-1] == trained.eos_id
    tokens = int(trained.encode(text, 500)[1].sum()) - 2
    with pytest.raises(InputError, match=rf"{tokens} tokens.*room for 8.*text_length=10"):
        trained.encode(text, 10, strict=True)
    assert trained.encode(text, tokens + 2, strict=True)[1].all()
    assert trained.count_truncated([text, "red"], 10) == 1
    assert trained.count_truncated([text, "red"], tokens + 2) == 0


def test_cut_captions_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer.for_captions([*CAPTIONS, "red " * 50], path="", vocab_size=300, length=20)
    assert [r.getMessage() for r in caplog.records if "lose their end" in r.getMessage()] == [
        "1 of 13 training captions (7.7 %) are longer than data.text_length=20 tokens and lose "
        "their end."
    ]


def test_training_is_deterministic_across_processes_and_orders(
    trained: tokenizer.Tokenizer,
) -> None:
    assert tokenizer.train(CAPTIONS[::-1], 300) == trained
    code = (
        "import sys; from vision_lang.data import tokenizer; "
        f"sys.stdout.write(tokenizer.train({CAPTIONS!r}, 300).json)"
    )
    environment = {"PYTHONHASHSEED": "7", "PATH": ""}
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root,
                         capture_output=True, check=True)  # fmt: skip
    assert out.stdout.decode() == trained.json


def test_save_load_and_pickle(trained: tokenizer.Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(trained.json)
    assert tokenizer.load(tmp_path / "tokenizer.json") == tokenizer.load(tmp_path) == trained
    trained.encode("warm", 5)
    copy = pickle.loads(pickle.dumps(trained))
    np.testing.assert_array_equal(copy.encode("red", 5)[0], trained.encode("red", 5)[0])


def renamed(source: tokenizer.Tokenizer, names: dict[str, str | None]) -> str:
    """The file with its special tokens renamed, or removed."""
    content = json.loads(source.json)
    vocabulary = content["model"]["vocab"]
    for old, new in names.items():
        number = vocabulary.pop(old)
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != old]
        if new is not None and new not in vocabulary:
            vocabulary[new] = number
            token = {"id": number, "content": new, "single_word": False, "lstrip": False}
            content["added_tokens"].append(
                token | {"rstrip": False, "normalized": False, "special": True}
            )
    content["added_tokens"].sort(key=lambda token: token["id"])
    return json.dumps(content)


def test_known_vocabularies_bring_their_own_special_tokens(
    trained: tokenizer.Tokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "clip.json"
    clip = {"<bos>": "<|startoftext|>", "<eos>": "<|endoftext|>", "<pad>": None}
    file.write_text(renamed(trained, clip))
    loaded = tokenizer.load(file)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (1, 2, 2)
    ids, mask = loaded.encode("a red circle", 12)
    assert ids[0] == 1 and (ids[~mask] == 2).all() and loaded.decode(ids) == "a red circle"
    file.write_text(renamed(trained, {"<eos>": "<|endoftext|>", "<pad>": None, "<bos>": None}))
    assert tokenizer.load(file).specials == (2, 2, 2)  # GPT-2


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no tokenizer at"), ("{}", "no tokenizer.json"), ("strange", "no known tokens for")],
)  # fmt: skip
def test_unusable_files_are_refused(
    trained: tokenizer.Tokenizer, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        strange: dict[str, str | None] = {"<bos>": "<go>", "<eos>": "<halt>", "<pad>": None}
        file.write_text(renamed(trained, strange) if content == "strange" else content)
    with pytest.raises(InputError, match=message):
        tokenizer.load(file)


def test_a_word_of_a_megabyte_takes_no_hours() -> None:
    """To learn from all of it would take time in the square of its length."""
    words = tokenizer.train(["x" * 2**20, "a dog"], 300)
    assert words == tokenizer.train(["x" * tokenizer.LEARNED_CHARACTERS, "a dog"], 300)
    ids, mask = words.encode("x" * 2**20, 8)
    assert mask.all() and ids[-1] == words.eos_id and words.decode(ids).startswith("xxx")


def test_impossible_training_is_refused() -> None:
    with pytest.raises(InputError, match="vocab_size=258"):
        tokenizer.train(CAPTIONS, 258)
    with pytest.raises(InputError, match="data.text_key"):
        tokenizer.train(["", "  "], 300)


def unigram() -> tokenizer.Tokenizer:
    """Of T5's kind: pieces by their probability, no token that begins a text."""
    hf = hf_tokenizers.Tokenizer(hf_tokenizers.models.Unigram())
    hf.pre_tokenizer = hf_tokenizers.pre_tokenizers.Metaspace()
    hf.decoder = hf_tokenizers.decoders.Metaspace()
    trainer = hf_tokenizers.trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    hf.train_from_iterator([*CAPTIONS, "below a ring"], trainer)
    return tokenizer.Tokenizer(hf.to_str())


def test_t5_s_tokens_begin_with_the_first_word() -> None:
    words = unigram()
    assert words.specials == (None, 1, 0)
    ids, mask = words.encode("a red circle", 24)
    used = int(mask.sum())
    assert ids[used - 1] == 1 and (ids[used:] == 0).all() and ids[: used - 1].min() > 1
    assert words.decode(ids) == "a red circle"
    assert words.encode("", 4)[0].tolist() == [1, 0, 0, 0]
    assert words.encode("a red circle", used, strict=True)[1].all()  # room for all, and the end
    assert words.count_truncated(["a red circle"], used) == 0
    assert words.count_truncated(["a red circle"], used - 1) == 1
    assert words.encode("a red circle", used - 1)[0].tolist() == [*ids[: used - 2], 1]

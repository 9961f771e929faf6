"""A user's own folder or zip of pictures."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.data.conftest import encode, plain, write_folder
from vision_lang.data import images, pipeline, sources, tokenizer
from vision_lang.data.builders import folder_index
from vision_lang.data.builders.folder_files import Files
from vision_lang.data.builders.folder_index import split_of
from vision_lang.errors import InputError

Config = Callable[..., ConfigDict]
EMOJI = Path(__file__).parents[3] / "../shared/data/emoji64/noto_emoji64.zip"


def line(number: int, **more: Any) -> dict[str, Any]:
    return {"file_name": f"{number}.png", "text": f"number {number}", **more}


def pictures(*numbers: int) -> dict[str, bytes]:
    return {f"{n}.png": encode(plain(n)) for n in numbers}


def read(prepared: sources.Prepared, split: str) -> dict[str, dict[str, Any]]:
    source = prepared.open(split)
    examples = [source[i] for i in range(len(source))]
    return {example["name"]: example for example in examples}


def zipped(folder: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, prefix + str(path.relative_to(folder)))
    return folder.with_suffix(".zip")


@pytest.mark.parametrize("form", ["folder", "zip", "zip of a folder"])
def test_pictures_come_back_with_their_words(config: Config, tmp_path: Path, form: str) -> None:
    lines = [
        line(1, split="train", label="odd", mood=["glad", "calm"], year=1999, note=None),
        line(2, split="train", label="even", text=["number 2", " the second "]),
        line(3, split="val", label="odd"),
        line(4, split="test") | {"file_name": "./sub/4.png"},
    ]
    files = pictures(1, 2, 3) | {
        "sub/4.png": encode(plain(4)),
        ".hidden.png": b"",
        "notes.txt": b"x",
    }
    path = write_folder(tmp_path / "pics", files, lines)
    path = {"folder": path, "zip": zipped(path), "zip of a folder": zipped(path, "pics/")}[form]
    prepared = sources.prepare(config("folder", path=str(path)))
    assert prepared.splits == {"train": 2, "validation": 1, "test": 1}
    assert prepared.class_names == ["even", "odd"]
    train = read(prepared, "train")
    assert train["1.png"]["texts"] == ("number 1",) and train["1.png"]["label"] == 1
    assert train["2.png"]["texts"] == ("number 2", "the second") and train["2.png"]["label"] == 0
    np.testing.assert_array_equal(train["2.png"]["image"], plain(2))
    assert read(prepared, "test")["sub/4.png"]["label"] == -1
    others = sources.prepare(config("folder", path=str(path), text_key="fields/mood,fields/year"))
    assert read(others, "train")["1.png"]["texts"] == ("glad, calm", "1999")


def test_pictures_with_several_labels(config: Config, tmp_path: Path) -> None:
    """A list may be empty, which is more than to say nothing."""
    said: list[Any] = [["red", "big"], "red", [], None, ["small"], ["big", "big"]]
    lines = [line(n, split="train", label=label) for n, label in enumerate(said)]
    lines.append(line(6, split="val", label="red"))
    path = write_folder(tmp_path / "pics", pictures(*range(7)), lines)
    prepared = sources.prepare(data := config("folder", path=str(path)))
    assert prepared.class_names == ["big", "red", "small"]
    train = read(prepared, "train")
    labels = [tuple(train[f"{n}.png"]["labels"]) for n in range(6)]
    assert labels == [(1, 0), (1,), (), (-1,), (2,), (0, 0)]
    assert [train[f"{n}.png"]["label"] for n in range(6)] == [1, 1, -1, -1, 2, 0]
    data.max_bad_share = 0.5
    source = prepared.open("train")
    both = [
        next(pipeline.eval_batches(source, None, data=data, batch_size=6, classes=3, **more))
        for more in ({}, {"multi_label": True})
    ]
    where = [int(source.name(i).split(".")[0]) for i in range(6)]
    hot = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(both[1].pop("labels"), hot[where])
    np.testing.assert_array_equal(both[1].pop("weight"), np.array(where) != 3)
    np.testing.assert_array_equal(both[0].pop("weight"), ~np.isin(where, (2, 3)))
    assert both[0].keys() == both[1].keys() and "labels" not in both[0]


@pytest.mark.parametrize("label", [["a", ""], [True], [["a"]], ["a", 1.5], {"a": 1}])
def test_labels_that_are_none(config: Config, tmp_path: Path, label: Any) -> None:
    path = write_folder(tmp_path / "pics", pictures(1), [line(1, label=label)])
    with pytest.raises(InputError, match='line 1: "label" must be'):
        sources.prepare(config("folder", path=str(path)))


def test_split_is_by_line_else_by_group_else_by_name(config: Config, tmp_path: Path) -> None:
    lines = [line(n, group=f"family {n // 4}") for n in range(200)]
    lines += [line(n) for n in range(200, 240)] + [line(250, split="test", group="family 0")]
    path = write_folder(tmp_path / "pics", pictures(*range(240), 250), lines)
    prepared = sources.prepare(config("folder", path=str(path)))
    where = {name: split for split in prepared.splits for name in read(prepared, split)}
    for n in range(200):
        assert where[f"{n}.png"] == split_of(f"family {n // 4}")
    for n in range(200, 240):
        assert where[f"{n}.png"] == split_of(f"{n}.png")
    assert where["250.png"] == "test"
    shares = Counter(split_of(f"group {n}") for n in range(10_000))
    assert abs(shares["train"] - 8_000) < 200 and abs(shares["test"] - 1_000) < 150


@pytest.mark.parametrize("by_split", [False, True])
def test_class_sub_folders(config: Config, tmp_path: Path, by_split: bool) -> None:
    tops = ("train/", "valid/", "test/") if by_split else ("",)
    files = {f"{top}{kind}/{n}.png": encode(plain(n))
             for top in tops for kind in ("iris", "oak tree") for n in range(30)}  # fmt: skip
    path = write_folder(tmp_path / "pics", files)
    prepared = sources.prepare(config("folder", path=str(path)))
    assert prepared.class_names == ["iris", "oak tree"]
    assert sum(prepared.splits.values()) == len(files)
    if by_split:
        assert prepared.splits == {"train": 60, "validation": 60, "test": 60}
    for split in prepared.splits:
        for name, example in read(prepared, split).items():
            assert (f"/{name}".split("/")[-2] == "oak tree") == bool(example["label"])
            words = "a photo of an oak tree" if example["label"] else "a photo of an iris"
            assert example["texts"] == (words,)


@pytest.mark.parametrize("by_split", [False, True])
def test_without_validation_the_last_tenth_of_train_is_held_out(
    config: Config, tmp_path: Path, by_split: bool
) -> None:
    top = "train/oak/" if by_split else ""
    files = {f"{top}{n}.png": encode(plain(n)) for n in range(40)}
    files |= {"test/oak/50.png": encode(plain(50))} if by_split else {}
    lines = None if by_split else [line(n, split="train") for n in range(40)]
    path = write_folder(tmp_path / "pics", files, lines)
    prepared = sources.prepare(config("folder", path=str(path)))
    assert prepared.splits == {"train": 36, "validation": 4} | ({"test": 1} if by_split else {})
    parts = [read(prepared, split).keys() for split in prepared.splits]
    assert sum(map(len, parts)) == len(files) and set().union(*parts) == files.keys()


def test_the_order_is_the_same_wherever_the_folder_lies(config: Config, tmp_path: Path) -> None:
    """And with it what is held out; a picture may have several lines."""
    lines = [line(n, split="train") for n in range(20)] + [line(0, split="train")]
    found = []
    for place in ("here", "far/away"):
        path = write_folder(tmp_path / place, pictures(*range(20)), lines)
        prepared = sources.prepare(config("folder", path=str(path)))
        assert prepared.splits == {"train": 19, "validation": 2}
        parts = [prepared.open(split) for split in prepared.splits]
        found.append([part.name(n) for part in parts for n in range(len(part))])
    assert found[0] == found[1] and Counter(found[0])["0.png"] == 2


def test_metadata_in_split_folders(config: Config, tmp_path: Path) -> None:
    for n, split in enumerate(("train", "test")):
        write_folder(tmp_path / "pics" / split, pictures(n), [line(n)])
    prepared = sources.prepare(config("folder", path=str(tmp_path / "pics")))
    assert read(prepared, "train").keys() == {"train/0.png"}
    assert read(prepared, "test").keys() == {"test/1.png"}


def test_odd_formats_are_normalised(config: Config, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    half = np.zeros((6, 4, 3), np.uint8)
    half[:3] = 250
    alpha = np.dstack([plain(9), np.zeros((8, 8), np.uint8)])
    files = {
        "turned.jpg": encode(half, "JPEG", quality=95, exif=exif.tobytes()),
        "grey.png": encode(np.full((5, 7), 77, np.uint8)),
        "clear.png": encode(alpha),
        "moving.gif": encode(Image.new("P", (8, 8)), "GIF"),
    }
    lines = [{"file_name": name, "text": "x", "split": "train"} for name in files]
    path = write_folder(tmp_path / "pics", files, lines)
    prepared = sources.prepare(config("folder", path=str(path), background=(1, 2, 3)))
    train = read(prepared, "train") | read(prepared, "validation")
    assert train["turned.jpg"]["image"][0].mean() < 10 < train["turned.jpg"]["image"][-1].mean()
    assert (
        train["grey.png"]["image"].shape == (5, 7, 3) and (train["grey.png"]["image"] == 77).all()
    )
    assert (train["clear.png"]["image"] == (1, 2, 3)).all()
    assert len(train) == 4


def damaged(archive: Path, content: bytes) -> Path:
    """Flips the last byte of a stored member."""
    whole = bytearray(archive.read_bytes())
    whole[whole.index(content) + len(content) - 1] ^= 1
    archive.write_bytes(whole)
    return archive


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_broken_pictures_are_left_out_counted_and_named(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    files = pictures(*range(5)) | {"5.png": b"junk", "6.png": encode(plain(6, 64))[:60]}
    lines = [line(n, split="test" if n == 5 else "train") for n in range(7)]
    if form == "zip":
        files["6.png"] = encode(plain(6))  # whole, but for the byte that `damaged` flips
    path = write_folder(tmp_path / "pics", files, lines)
    path = damaged(zipped(path), files["6.png"]) if form == "zip" else path
    data = config("folder", path=str(path))
    for _ in range(2):  # also where the copy was prepared before
        caplog.clear()
        prepared = sources.prepare(data)
        assert prepared.splits == {"train": 4, "validation": 1}
        assert "2 broken pictures" in caplog.text and "5.png (" in caplog.text
    with pytest.raises(InputError, match="Unknown split .*'test'.*train"):
        prepared.open("test")


def test_damaged_metadata_in_a_zip_are_refused_by_name(config: Config, tmp_path: Path) -> None:
    path = zipped(write_folder(tmp_path / "pics", pictures(1), [line(1)]))
    damaged(path, (tmp_path / "pics" / "metadata.jsonl").read_bytes())
    with pytest.raises(InputError, match=r"'metadata\.jsonl' in .*pics\.zip cannot be read.*CRC"):
        sources.prepare(config("folder", path=str(path)))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_no_damage_to_a_zip_ends_in_a_traceback(tmp_path: Path, method: int) -> None:
    path, found = tmp_path / "x.zip", Counter[str]()
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("á.png", "b.png"):
            archive.writestr(name, name * 9)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (1, 255):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                files = Files(str(path))
                for name in files.names():
                    files.read(name)
            except InputError as error:
                found[type(error).__name__] += 1
    assert found["Unreadable"] > 100 and found["InputError"] > 10


def test_a_changed_folder_is_prepared_anew_and_says_so(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_folder(tmp_path / "pics", pictures(1, 2), [line(1, split="train")])
    data = config("folder", path=str(path))
    first = sources.prepare(data)
    assert "2.png" not in caplog.text and "1 pictures" in caplog.text  # one that no line mentions
    again = sources.prepare(data)
    assert again.fingerprint == first.fingerprint and again.directory == first.directory
    assert "has changed" not in caplog.text
    seen = {first.fingerprint}
    for change in ("caption", "picture", "new file", "time"):
        caplog.clear()
        if change == "caption":
            write_folder(path, {}, [line(1, split="train", text="another")])
        elif change == "picture":
            write_folder(path, {"1.png": encode(plain(50, 9))})
        elif change == "new file":
            write_folder(path, pictures(3))
        else:
            os.utime(path / "1.png", (1, 1))
        changed = sources.prepare(data)
        assert "has changed since it was prepared" in caplog.text
        assert changed.fingerprint not in seen
        seen.add(changed.fingerprint)
    assert read(changed, "train")["1.png"]["texts"] == ("another",)
    assert read(changed, "train")["1.png"]["image"].shape == (9, 9, 3)


def test_two_folders_never_share(config: Config, tmp_path: Path) -> None:
    prepared = []
    for place, value in (("a", 1), ("b", 2)):
        path = write_folder(tmp_path / place / "pics", {}, [line(1, split="train")])
        (path / "1.png").write_bytes(encode(plain(value), compress_level=0))
        os.utime(path / "1.png", (1, 1))
        os.utime(path / "metadata.jsonl", (1, 1))
        prepared.append(sources.prepare(config("folder", path=str(path))))
    assert prepared[0].fingerprint == prepared[1].fingerprint  # same names, sizes, times, metadata
    values = [read(p, "train")["1.png"]["image"].max() for p in prepared]
    assert values == [1, 2]


BAD_METADATA: list[tuple[list[Any], str]] = [
    ([line(1), line(9)], "line 2 names the file '9.png', which does not exist"),
    ([line(1), "", "{not json"], "line 3 is not valid JSON"),
    ([line(1), {"text": "x"}], "line 2 must be an object with"),
    (["[1]"], "line 1 must be an object"),
    ([line(1) | {"file_name": "../secret.png"}], "line 1 names '../secret.png', which lies out"),
    ([line(1) | {"file_name": "/etc/x.png"}], "lies outside of the folder"),
    ([line(1) | {"file_name": "a/../../secret.png"}], "lies outside of the folder"),
    ([line(1), line(2, text=7)], "line 2: \"text\" must be a string or a list"),
    ([line(1), {"file_name": "2.png"}], "line 2 has no \"text\", though 1 of 2"),
    ([line(1, split="tset")], "Unknown split in .* line 1: 'tset'. Did you mean 'test'"),
    ([line(1, label=1), line(2, label="one")], "line 2: \"label\" is a name here"),
    ([line(1, label=True)], "line 1: \"label\" must be a name or a class number"),
    ([line(1, label=-2)], "None of the pictures"),
    ([], "There is no picture in"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "message"), BAD_METADATA)
def test_bad_metadata_is_refused_with_the_line(
    config: Config, tmp_path: Path, lines: list[Any], message: str
) -> None:
    (tmp_path / "secret.png").write_bytes(encode(plain(1)))
    path = write_folder(tmp_path / "pics", pictures(1, 2), lines)
    with pytest.raises(InputError, match=message):
        sources.prepare(config("folder", path=str(path)))
    assert not list((tmp_path / "prepared").rglob("dataset_info.json"))


def test_lines_that_say_nothing_usable_are_left_out_and_named(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        line(1, split="train", text="a dog", label=0),
        line(2, split="train", text=" ", label=1),
        line(3, split="train", text=[], label=1),
        line(4, split="train", text=["", "a cat"], label=1),
        line(5, split="train", text="a fox", label=-1),
        line(6, split="train", text="a cow", label=10**12),
    ]
    path = write_folder(tmp_path / "pics", pictures(*range(1, 7)), lines)
    prepared = sources.prepare(config("folder", path=str(path)))
    assert prepared.splits == {"train": 1, "validation": 1} and prepared.class_names == ["0", "1"]
    found = read(prepared, "train") | read(prepared, "validation")
    assert {name: row["texts"] for name, row in found.items()} == {
        "1.png": ("a dog",), "4.png": ("a cat",)
    }  # fmt: skip
    assert "4 broken pictures" in caplog.text
    assert '2.png (its "text" is empty), 3.png' in caplog.text
    assert "5.png (its label -1 is no class)" in caplog.text


def test_each_line_that_is_left_out_is_counted(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where another line of the same picture is good, or its name would break the log."""
    lines = [line(1, split="train"), line(2, split="train")]
    lines += [line(1, split="train", text=bad) for bad in (" ", "\ud800")]
    lines += [{"file_name": "a\n\tb.png", "text": "", "split": "train"}]
    files = pictures(1, 2) | {"a\n\tb.png": encode(plain(3))}
    sources.prepare(config("folder", path=str(write_folder(tmp_path / "pics", files, lines))))
    said = [line for line in caplog.messages if "left out" in line]
    assert len(said) == 1 and "3 broken pictures" in said[0] and "\n" not in said[0]
    assert "1.png, line 2 of it (its" in said[0] and r"a\n\tb.png (its" in said[0]


TEXTS = [
    "a\u2028b\x85c\u2029d", "a\nb\r\nc",
    "👩\u200d🚀 e\u0301 אב \u202ex\u202c 𝔘 \x00\x1b[31m \ufffe",
    "a dog " * 2**15 + "ends",
]  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_text_comes_back_as_it_is(config: Config, tmp_path: Path, end: str) -> None:
    lines = [line(n, split="train", text=text, note=text) for n, text in enumerate(TEXTS)]
    lines.append(line(9, split="val"))
    path = write_folder(tmp_path / "pics", pictures(*range(len(TEXTS)), 9))
    content = end.join(json.dumps(entry, ensure_ascii=False) for entry in lines)
    (path / "metadata.jsonl").write_bytes(content.encode("utf-8-sig"))
    for key in ("", "fields/note"):
        prepared = sources.prepare(config("folder", path=str(path), text_key=key))
        found = {name: row["texts"] for name, row in read(prepared, "train").items()}
        assert found == {f"{n}.png": (text,) for n, text in enumerate(TEXTS)}
    words = tokenizer.for_captions(TEXTS, path="", vocab_size=300, length=16)
    assert words.count_truncated(TEXTS, 16) == 1  # the last


def test_no_depth_of_json_ends_in_a_traceback(tmp_path: Path) -> None:
    """Python reads and writes to different depths, both less the deeper it is called."""
    files = Files(str(write_folder(tmp_path / "pics", pictures(1))))
    outcomes = set()
    for depth in range(1200):
        deep = "[" * depth + "]" * depth
        for field in ("note", "label"):
            text = f'{{"file_name": "1.png", "{field}": {deep or 1}}}'
            try:
                folder_index._read_line(files, "", text, "line 1", {})
                outcomes.add((field, "read"))
            except InputError as error:
                assert str(error).startswith("line 1")
                outcomes.add((field, "refused"))
    assert outcomes == {(field, o) for field in ("note", "label") for o in ("read", "refused")}


def test_names_of_classes_keep_their_numbers(config: Config, tmp_path: Path) -> None:
    """TFDS keeps them as lines of a file, without blanks around: ' oak' is 'oak', not a second."""
    said = [" oak", "oak", "a\nb", "\x85", "pine", "a\rb"]
    lines = [line(n, split="train", label=label) for n, label in enumerate(said)]
    lines.append(line(6, split="val", label="oak"))
    path = write_folder(tmp_path / "pics", pictures(*range(7)), lines)
    prepared = sources.prepare(config("folder", path=str(path)))
    assert prepared.class_names == ["oak", "pine"]
    labels = {name: row["label"] for name, row in read(prepared, "train").items()}
    assert labels == {"0.png": 0, "1.png": 0, "4.png": 1}


@pytest.mark.parametrize("change", [Path.touch, Path.unlink])
def test_a_file_that_changes_while_it_is_read_leaves_nothing_behind(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
) -> None:
    lines = [line(n, split="train") for n in range(20)]
    path = write_folder(tmp_path / "pics", pictures(*range(20)), lines)
    normalise = images.normalise
    seen: list[bytes] = []

    def meanwhile(content: bytes) -> bytes:
        seen.append(content)
        if len(seen) == 5:
            change(path / "19.png")
        return normalise(content)

    with monkeypatch.context() as patch:
        patch.setattr(images, "normalise", meanwhile)
        with pytest.raises(InputError, match=r"'19\.png' in .*pics changed while the data"):
            sources.prepare(config("folder", path=str(path)))
    assert len(seen) > 10
    kept = [file.name for file in (tmp_path / "prepared").rglob("*") if file.is_file()]
    assert kept == [".lock"]
    write_folder(path, pictures(19))
    assert sum(sources.prepare(config("folder", path=str(path))).splits.values()) == 20


def test_a_zip_that_changes_is_refused(tmp_path: Path) -> None:
    path = zipped(write_folder(tmp_path / "pics", pictures(1, 2)))
    files = Files(str(path))
    assert files.read("1.png") == encode(plain(1))
    os.utime(path, (1, 1))
    with pytest.raises(InputError, match=r"'2\.png' in .*pics\.zip changed"):
        files.read("2.png")


def test_what_a_zip_says_of_a_size_is_the_most_that_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(2**26))
    whole = path.read_bytes()
    size = whole.rindex(b"PK\x01\x02") + 24
    path.write_bytes(whole[:size] + (100).to_bytes(4, "little") + whole[size + 4 :])
    files = Files(str(path))
    assert files.names() == ["1.png"]
    tracemalloc.start()
    with pytest.raises(InputError, match=r"'1\.png' in .*cannot be read"):
        files.read("1.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(tmp_path / "pics", {"a/1.png": encode(plain(1)), "b/2.png": b""})
    scandir = os.scandir

    def denied(place: Any) -> Any:
        if Path(place).name == "b":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match=r"pics/b cannot be listed \(Permission denied\)"):
        Files(str(path)).names()


def test_unusable_sources_are_refused(config: Config, tmp_path: Path) -> None:
    def message(path: Path | str) -> str:
        with pytest.raises(InputError) as caught:
            sources.prepare(config("folder", path=str(path)))
        return str(caught.value)

    assert "needs data.path" in message("")
    assert "no folder or zip" in message(tmp_path / "nowhere")
    assert "no picture" in message(write_folder(tmp_path / "empty", {"notes.txt": b"x"}))
    assert "neither a folder nor a zip" in message(
        write_folder(tmp_path, {"x.zip": b"x"}) / "x.zip"
    )
    junk = write_folder(tmp_path / "junk", {"a.png": b"junk", "b.jpg": b""})
    assert "None of the pictures" in message(junk)
    link = write_folder(tmp_path / "linked", pictures(1))
    (link / "2.png").symlink_to(tmp_path / "junk" / "a.png")
    assert "'2.png'" in message(link) and "leaves the folder" in message(link)


def test_zips_that_climb_out_are_refused(config: Config, tmp_path: Path) -> None:
    for name in ("../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png"):
        with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
            archive.writestr("good.png", encode(plain(1)))
            archive.writestr(name, encode(plain(1)))
        with pytest.raises(InputError, match="outside of the folder"):
            sources.prepare(config("folder", path=str(tmp_path / "slip.zip")))


@pytest.mark.skipif(not EMOJI.exists(), reason="the shared data are not here")
def test_the_emoji(config: Config) -> None:
    prepared = sources.prepare(config("folder", path=str(EMOJI)))
    assert prepared.splits == {"train": 2261, "validation": 278, "test": 329}
    assert prepared.class_names is not None and len(prepared.class_names) == 9
    assert all(len(texts) == 1 for texts in prepared.open("train").captions())
    first = prepared.open("test")[0]
    assert first["image"].shape == (64, 64, 3) and first["image"].dtype == np.uint8

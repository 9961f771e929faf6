"""Tries every kind of bad input on the real code, and records what comes of each.

    python -m experiments.faults.inputs --out=experiments/faults/inputs.json

Prints the tables of README.md, in this folder and in the repository's root. Each input is made in
an empty folder and read as a user's would be; half a minute on two cores.

An input is `left out` (the log counts and names it, the rest goes on), `refused` (one sentence,
exit code 2) or `read` (odd, but nothing is lost). Whatever else comes of it ends this program.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
import tempfile
import zlib
from pathlib import Path

from absl import app, flags

from experiments.faults import running
from experiments.faults.making import (
    ALL_KINDS,
    DEEP,
    DIGITS,
    SPECIAL,
    UNKNOWN,
    Run,
    archive,
    changing,
    chunk,
    copy,
    encoded,
    external_link,
    external_storage,
    file_in_copy,
    flip,
    folder_with,
    gif_of_two,
    half,
    hdf5,
    header,
    huge,
    in_new_folder,
    line,
    linked,
    member,
    metadata,
    picture,
    png,
    read_data,
    shards,
    soft_link,
    stored,
    tiff,
    virtual,
    vocabulary,
    weights,
    words,
)
from vision_lang.errors import InputError, printable

LEFT_OUT, REFUSED, READ = "left out", "refused", "read"
SHOWN = 180  # characters of a sentence in the table


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input.

    outcome: what has to come of it.
    said: what the sentence has to say, a file's name above all; '' where nothing is said.
    """

    kind: str
    name: str
    outcome: str
    said: str
    run: Run


def tried(case: Case, folder: Path) -> tuple[str, str]:
    """(outcome, what was said of it), the folder's own place left out."""
    with running.messages() as lines:
        try:
            case.run(folder)
        except InputError as error:
            return REFUSED, _plain(str(error), folder)
    said = [line for line in lines if "left out" in line]
    return (LEFT_OUT, _plain(said[0], folder)) if said else (READ, "")


def _plain(text: str, folder: Path) -> str:
    """Without what differs from run to run: the folder, what a copy is called by, checksums."""
    text = text.replace(f"{folder}/", "").replace(str(folder), ".")
    text = re.sub("0x[0-9a-f]+", "0x...", text)
    return printable(re.sub("pictures-[0-9a-f]{8}-[0-9a-f]{16}", "pictures-...", text))


PICTURES = [
    ("no bytes at all", LEFT_OUT, "bad.png", picture(b"")),
    ("a text called .png", LEFT_OUT, "bad.png", picture(b"no picture")),
    ("a PNG cut off", LEFT_OUT, "bad.png", picture(encoded(size=64)[:-30])),
    ("a JPEG cut off", LEFT_OUT, "bad.jpg", picture(encoded("JPEG", size=64)[:-300], "bad.jpg")),
    ("a PNG with one byte changed", LEFT_OUT, "bad.png", picture(flip(b"IDAT", 8)(encoded()))),
    ("a PNG that announces 12,000 x 12,000 px in 68 bytes", LEFT_OUT, "12000 x 12000",
     picture(png(12_000, 12_000))),
    ("a PNG that announces 100,000 x 100,000 px", LEFT_OUT, "bad.png",
     picture(png(100_000, 100_000))),
    ("a PNG with 64 MB of compressed text", LEFT_OUT, "bad.png",
     picture(png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26)))))),
    ("a TIFF that announces 60,000 x 60,000 px", LEFT_OUT, "bad.tif",
     picture(tiff(60_000), "bad.tif")),
    ("a TIFF of floating-point numbers", LEFT_OUT, "bad.tif",
     picture(encoded("TIFF", "F"), "bad.tif")),
    ("a GIF with a second frame of 65,535 x 65,535 px", READ, "",
     picture(gif_of_two(), "two.gif")),
    ("PostScript called .png (PIL would start Ghostscript)", LEFT_OUT, "bad.png",
     picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")),
    ("a gigabyte called .png", LEFT_OUT, "bad.png",
     folder_with(huge("bad.png"), line(), line("bad.png"))),
    ("a name with a tab, a line break and an escape", READ, "",
     picture(encoded(), "a\tb\nc\x1b[2J.png")),
]  # fmt: skip

METADATA = [
    ("a line that is no JSON", REFUSED, "line 2", metadata("{no")),
    ("a line cut off", REFUSED, "line 2", metadata('{"file_name": "two.png", "te')),
    ("a number of 5,000 digits", REFUSED, "line 2", metadata(DIGITS)),
    ("brackets 100,000 deep", REFUSED, "line 2", metadata(DEEP)),
    ("bytes that are not UTF-8", REFUSED, "metadata.jsonl", metadata(b'{"file_name": "\xff"}')),
    ("a list", REFUSED, "line 2", metadata("[1]")),
    ("no file_name", REFUSED, "line 2", metadata({"text": "a dog"})),
    ("a file_name that is a number", REFUSED, "line 2", metadata({"file_name": 2})),
    ("a file that is not there", REFUSED, "'nine.png'", metadata(line("nine.png"))),
    ("a file outside, by ..", REFUSED, "'../two.png'", metadata(line("../two.png"))),
    ("a file outside, absolute", REFUSED, "'/etc/two.png'", metadata(line("/etc/two.png"))),
    ("a name twice in one object", REFUSED, "line 2",
     metadata('{"file_name": "two.png", "text": "a dog", "text": "a cat"}')),
    ("fields a/b and a_b, on different lines", REFUSED, "'a/b' and 'a_b'",
     metadata(line("two.png", **{"a/b": 1}), line("three.png", a_b=2))),
    ("one picture in train and in test", REFUSED, "line 2",
     metadata(line("two.png"), line("two.png", split="test"))),
    ("one picture on two lines of train", READ, "", metadata(line("two.png"), line("two.png"))),
    ("an unknown split", REFUSED, "line 2", metadata(line("two.png", split="tset"))),
    ("a split that is a number", REFUSED, "line 2", metadata(line("two.png", split=7))),
    ("a text that is a number", REFUSED, "line 2", metadata(line("two.png", text=7))),
    ("a text that is null", REFUSED, "line 2", metadata(line("two.png", text=None))),
    ("one line without a text", REFUSED, "line 2", metadata({"file_name": "two.png"})),
    ("a text of blanks", LEFT_OUT, "two.png", metadata(line("two.png", text=" \u3000"))),
    ("half a surrogate pair in a text", LEFT_OUT, "two.png",
     metadata(line("two.png", text="\ud800"))),
    ("half a surrogate pair in a file_name", LEFT_OUT, r"\ud800.png",
     metadata(line("\ud800.png"))),
    ("half a surrogate pair in another field's name", LEFT_OUT, "two.png",
     metadata(line("two.png", **{"\udfff": 1}))),
    ("a label that is true", REFUSED, "line 2", metadata(line("two.png", label=True))),
    ("a label below 0", LEFT_OUT, "two.png", metadata(line("two.png", label=-1))),
    ("a label of 4,000 digits", LEFT_OUT, "two.png",
     metadata(line("two.png", label=10**4000))),
    ("a label with a line break", LEFT_OUT, "two.png", metadata(line("two.png", label="a\nb"))),
    ("a label of blanks", LEFT_OUT, "two.png", metadata(line("two.png", label=" "))),
    ("names and numbers as labels", REFUSED, "line 2",
     metadata(line("two.png", label="a"), line("three.png", label=1))),
    ("U+2028 and U+0085 in a text", READ, "",
     metadata(json.dumps(line("two.png", text="a\u2028b\x85c"), ensure_ascii=False))),
    ("emoji, right-to-left, combining and control characters in a text", READ, "",
     metadata(line("two.png", text=ALL_KINDS))),
    ("a text of a megabyte", READ, "", metadata(line("two.png", text="a dog " * 2**18))),
    ("lines that end with a carriage return", READ, "",
     metadata(json.dumps(line("two.png")) + "\r", "\r")),
    ("a gigabyte called metadata.jsonl", REFUSED, "metadata.jsonl",
     folder_with(huge("metadata.jsonl"))),
]  # fmt: skip

FOLDERS = [
    ("nothing at the path", REFUSED, "nowhere",
     lambda folder: read_data(folder / "nowhere", folder)),
    ("no picture in the folder", REFUSED, "pictures",
     folder_with(lambda path: os.remove(path / "good.png"))),
    ("a link to a file outside", REFUSED, "'link.png'",
     folder_with(lambda path: (path / "link.png").symlink_to("/etc/passwd"))),
    ("a link to a folder", LEFT_OUT, "more (a link to a folder)",
     folder_with(lambda path: (path / "more").symlink_to(".."))),
    ("a link to nothing", LEFT_OUT, "link.png (a link to nothing)",
     folder_with(lambda path: (path / "link.png").symlink_to("nowhere.png"))),
    ("metadata.jsonl as a link to nothing", REFUSED, "metadata.jsonl",
     folder_with(lambda path: (path / "metadata.jsonl").symlink_to("nowhere"))),
    ("a pipe called .png", LEFT_OUT, "pipe.png",
     folder_with(lambda path: os.mkfifo(path / "pipe.png"))),
    ("a name that is not UTF-8", LEFT_OUT, r"\udcff.png",
     folder_with(lambda path: (path / os.fsdecode(b"\xff.png")).write_bytes(encoded()))),
    ("a class folder with a line break in its name", LEFT_OUT, r"a\nb/two.png",
     folder_with(lambda path: in_new_folder(path / "a\nb"))),
    ("a picture that changes while the data are prepared", REFUSED, "'late.png'", changing),
    ("a zip that is none", REFUSED, "pictures.zip", archive(member("two.png"), lambda _: b"PK")),
    ("a zip cut off", REFUSED, "pictures.zip", archive(member("two.png"), half)),
    ("a zip with ../two.png", REFUSED, "'../two.png'", archive(member("../two.png"))),
    ("a zip with /etc/two.png", REFUSED, "'/etc/two.png'", archive(member("/etc/two.png"))),
    ("a zip with two files of one name", REFUSED, "'a/two.png' twice",
     archive(lambda zipped: (member("a/two.png")(zipped), member("a//two.png")(zipped)))),
    ("a zip with a link", REFUSED, "'link.png'", archive(linked)),
    ("an encrypted zip", REFUSED, "'two.png'", archive(member("two.png"), header(8, b"\1"))),
    ("a zip with a damaged picture", LEFT_OUT, "two.png",
     archive(member("two.png", bytes(99)), header(16, b"\1\2\3\4"))),
    ("a zip with a picture that is said to have 4 GB", LEFT_OUT, "two.png",
     archive(member("two.png"), header(24, b"\xfe\xff\xff\xff"))),
    ("a zip with a gigabyte of metadata", REFUSED, "metadata.jsonl",
     archive(member("metadata.jsonl"), header(24, struct.pack("<I", 2**30)))),
]  # fmt: skip


COPIES = [
    ("dataset_info.json cut off", REFUSED, "prepared",
     copy(file_in_copy("dataset_info.json", half))),
    ("features.json missing", REFUSED, "prepared", copy(file_in_copy("features.json", None))),
    ("metadata.json without bytes", REFUSED, "prepared",
     copy(file_in_copy("metadata.json", lambda _: b""))),
    ("records missing", REFUSED, "prepared", copy(file_in_copy("*train.array_record*", None))),
    ("records cut off", REFUSED, "train[0]", copy(file_in_copy("*train.array_record*", half))),
    ("one record with a byte changed", LEFT_OUT, "train[",
     copy(file_in_copy("*train.array_record*", flip(b"IDAT", 2000)))),
]  # fmt: skip

WEIGHTS = [
    ("a pickle", REFUSED, "model.pth", weights("model.pth", b"\x80\x02}q\x00.")),
    ("safetensors cut off", REFUSED, "model.safetensors",
     weights("model.safetensors", stored()[:-3])),
    ("safetensors with a header of 2^62 bytes", REFUSED, "model.safetensors",
     weights("model.safetensors", stored(2**62))),
    ("safetensors with a header of 90 MB in 90 bytes", REFUSED, "model.safetensors",
     weights("model.safetensors", stored(90_000_000))),
    ("safetensors with a tensor of 2^40 numbers", REFUSED, "model.safetensors",
     weights("model.safetensors",
             stored(w={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}))),
    ("safetensors with a tensor beyond the file's end", REFUSED, "model.safetensors",
     weights("model.safetensors",
             stored(w={"dtype": "F32", "shape": [2**20], "data_offsets": [0, 2**22]}))),
    ("an index with a shard ../x.safetensors", REFUSED, "../x.safetensors",
     shards("../x.safetensors")),
    ("an index with an absolute shard", REFUSED, "x.safetensors",
     shards("FOLDER/x.safetensors")),
    ("an index with a list as a shard", REFUSED, "index.json", shards(["x.safetensors"])),
    ("an index with the folder above as a shard", REFUSED, "index.json", shards("..")),
    ("an index with a shard that is not there", REFUSED, "y.safetensors",
     shards("y.safetensors")),
    ("HDF5 that is none", REFUSED, "model.h5", weights("model.h5", b"hello")),
    ("HDF5 with a link to another file", REFUSED, "'secret'", hdf5(external_link)),
    ("HDF5 with a soft link", REFUSED, "'again'", hdf5(soft_link)),
    ("HDF5 with numbers kept in another file", REFUSED, "'secret'", hdf5(external_storage)),
    ("HDF5 with a virtual dataset", REFUSED, "'secret'", hdf5(virtual)),
]  # fmt: skip

TOKENIZERS = [
    ("no JSON", REFUSED, "tokenizer.json", words(b"{")),
    ("bytes that are not UTF-8", REFUSED, "tokenizer.json", words(b"\xff")),
    ("brackets 100,000 deep", REFUSED, "tokenizer.json", words(b"[" * 100_000)),
    ("no tokens for begin and end", REFUSED, "tokenizer.json", words(vocabulary({"a": 0}))),
    ("a token 4,294,967,295", REFUSED, "tokenizer.json",
     words(vocabulary(SPECIAL | {"a": 2**32 - 1}))),
    ("a damaged table of characters, of which the library panics", REFUSED, "tokenizer.json",
     words(vocabulary(
         SPECIAL, normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}))),
    ("no token for unknown words", REFUSED, "a dog",
     words(json.dumps({"model": UNKNOWN}).encode())),
]  # fmt: skip

CASES = [
    Case(kind, *row)
    for kind, rows in {
        "pictures": PICTURES,
        "metadata.jsonl": METADATA,
        "folders and zips": FOLDERS,
        "prepared copies": COPIES,
        "weights": WEIGHTS,
        "tokenizers": TOKENIZERS,
    }.items()
    for row in rows
]


def table(record: list[dict[str, str]]) -> str:
    """All inputs, as in README.md beside this file."""
    rows = ["| input | outcome | what is said |", "|---|---|---|"]
    for entry in record:
        said = entry["said"] if len(entry["said"]) <= SHOWN else entry["said"][:SHOWN] + " ..."
        cells = (f"{entry['kind']}: {entry['input']}", entry["outcome"], said)
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def summary(record: list[dict[str, str]]) -> str:
    """How many of each kind, as in the repository's README.md."""
    rows = ["| bad inputs | tried | left out | refused | read |", "|---|---|---|---|---|"]
    for kind in [*dict.fromkeys(entry["kind"] for entry in record), "all"]:
        outcomes = [entry["outcome"] for entry in record if kind in (entry["kind"], "all")]
        counts = [len(outcomes), *(outcomes.count(o) for o in (LEFT_OUT, REFUSED, READ))]
        rows.append(f"| {kind} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(rows)


def main(_: list[str]) -> None:
    record = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            outcome, said = tried(case, Path(folder))
        if outcome != case.outcome or case.said not in said:
            raise SystemExit(f"{case.kind}: {case.name}: {outcome}, not {case.outcome}: {said}")
        record.append({"kind": case.kind, "input": case.name, "outcome": outcome, "said": said})
    Path(flags.FLAGS.out).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(table(record), summary(record), sep="\n\n")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The record, JSON.", required=True)
    app.run(main)

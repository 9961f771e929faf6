"""What is in a folder (or zip) of pictures: which file, with which words, in which split.

Hugging Face's imagefolder convention: `metadata.jsonl` in the folder or in its sub-folders, one
JSON object per line with `file_name` (relative to that file), `text` (a string or several),
`label` (a name, a number, or a list), `split`, `group`; other fields are kept as strings. Without
metadata the sub-folders are the classes; sub-folders called train, validation and test are splits.
Where no picture is in validation, sources.py holds out the last tenth of train.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
import reprlib
from typing import Any

from vision_lang.data.builders.folder_files import SPLITS, Files, is_unicode
from vision_lang.errors import InputError, choose, printable

METADATA = "metadata.jsonl"
KNOWN_FIELDS = ("file_name", "text", "label", "split", "group")
LARGEST_LABEL = 1_000_000


@dataclasses.dataclass(frozen=True)
class Record:
    """One example of a folder: `where` says its metadata line in messages, or is its path.

    labels: None = nothing is said; () = it is said that there is none (in a list).
    broken: why the line cannot be used, though its file is there; '' = it can.
    """

    path: str
    where: str
    texts: tuple[str, ...]
    labels: tuple[str | int, ...] | None
    split: str
    fields: dict[str, str]
    broken: str = ""


class Unusable(Exception):
    """An empty caption, a label that is no class, or a text that is none: the line is left out, the
    rest goes on."""


@dataclasses.dataclass(frozen=True)
class Index:
    """All examples; class names by label (() = no labels); names of the other fields.

    several: whether any line has more or fewer labels than one, in a list.
    """

    records: tuple[Record, ...]
    class_names: tuple[str, ...]
    field_names: tuple[str, ...]
    several: bool
    unlisted: int  # pictures that no metadata line mentions


def read_index(files: Files) -> Index:
    """Reads what a folder holds.

    Raises:
      InputError: no picture, invalid metadata (with the line), a line whose file is missing or
        lies outside of the folder, a picture in two splits, two fields of one name.
    """
    pictures = files.pictures()
    metadata = [name for name in files.names() if posixpath.basename(name) == METADATA]
    if metadata:
        fields: dict[str, str] = {}
        records = [record for name in metadata for record in _read_metadata(files, name, fields)]
        unlisted = len(set(pictures) - {record.path for record in records})
    else:
        records, unlisted = _from_sub_folders(pictures), 0
    if not records:
        raise InputError(
            f"There is no picture in {files.path}. Put pictures (png, jpg, ...) into it, with "
            f"{METADATA} or in one sub-folder per class."
        )
    _check_texts(records)
    _check_splits(records)
    names = sorted({name for record in records for name in record.fields})
    several = any(record.labels is not None and len(record.labels) != 1 for record in records)
    return Index(tuple(records), _class_names(records), tuple(names), several, unlisted)


def split_of(key: str) -> str:
    """The split that a group or file name falls into: 80 % train, 10 % validation, 10 % test.

    A hash of the name alone, so that adding files moves none of the others.
    """
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def _read_metadata(files: Files, name: str, fields: dict[str, str]) -> list[Record]:
    folder = posixpath.dirname(name)
    try:
        # Not splitlines: a string of JSON may hold U+2028 and others that end lines for Python.
        lines = files.read(name).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{files.path}: {name} is not UTF-8 text: {error}.") from error
    return [
        _read_line(files, folder, line, f"{files.path}: {name} line {number}", fields)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _read_line(files: Files, folder: str, line: str, where: str, fields: dict[str, str]) -> Record:
    """One line as a record.

    Args:
      folder: of the metadata file.
      where: what to call the line in messages.
      fields: name here -> name in the metadata, of the other fields so far; grows.
    """
    try:
        entry = json.loads(line, object_pairs_hook=_each_once)
        is_text = "\\u" not in line or is_unicode(json.dumps(entry, ensure_ascii=False))
    except (ValueError, RecursionError) as error:  # also: a number of thousands of digits
        raise InputError(f"{where} is not valid JSON: {error}.") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise InputError(f'{where} must be an object with "file_name": "...".')
    path = files.resolve(folder, entry["file_name"], where)
    if not is_text:
        # Only counted and named, so that its split does not matter.
        why = "its line has half of a surrogate pair, which is no character"
        return Record(printable(path), where, (), None, "train", {}, why)
    if not files.exists(path):
        raise InputError(f"{where} names the file '{entry['file_name']}', which does not exist.")
    others = _other_fields(entry, where)
    for name in others:
        flat = name.replace("/", "_")
        if fields.setdefault(flat, name) != name:
            raise InputError(
                f"{where}: the fields '{fields[flat]}' and '{name}' of the metadata would both be "
                f"called '{flat}'. Rename one."
            )
    key = entry.get("group") if entry.get("group") not in (None, "") else path
    # A line's own split wins, then a folder called train, validation or test around the metadata.
    split = entry.get("split") or SPLITS.get(folder.split("/")[0], "")
    try:
        texts, labels, broken = _texts(entry, where), _labels(entry, where), ""
    except Unusable as error:
        texts, labels, broken = (), None, str(error)
    return Record(
        path=path,
        where=where,
        texts=texts,
        labels=labels,
        broken=broken,
        split=choose(SPLITS, str(split), f"split in {where}:") if split else split_of(str(key)),
        fields={name.replace("/", "_"): value for name, value in others.items()},
    )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Where a name stands twice, the last would win without a word."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice}' stands twice in an object")
    return entry


def _other_fields(entry: dict[str, Any], where: str) -> dict[str, str]:
    known = set(KNOWN_FIELDS) - {"group"}
    try:
        return {name: as_string(value) for name, value in entry.items() if name not in known}
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply.") from error


def _texts(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    """The captions of a line; raises Unusable where all are empty."""
    if "text" not in entry:
        return ()
    texts = [entry["text"]] if isinstance(entry["text"], str) else entry["text"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f'{where}: "text" must be a string or a list of strings.')
    usable = tuple(text.strip() for text in texts if text.strip())
    if not usable:
        raise Unusable('its "text" is empty')
    return usable


def _labels(entry: dict[str, Any], where: str) -> tuple[str | int, ...] | None:
    label = entry.get("label")
    if label is None:
        return None
    labels = tuple(label) if isinstance(label, list) else (label,)
    for one in labels:
        if isinstance(one, bool) or not isinstance(one, int | str) or one == "":
            raise InputError(
                f'{where}: "label" must be a name or a class number from 0 on, or a list of '
                f"them, not {reprlib.repr(one)}."
            )
        if isinstance(one, int) and not 0 <= one < LARGEST_LABEL:
            raise Unusable(f"its label {str(one)[:20]} is no class")
    return tuple(_class_name(one) if isinstance(one, str) else one for one in labels)


def _class_name(text: str) -> str:
    """A class's name as TFDS keeps it, a line of a file without what is blank around it.

    Raises:
      Unusable: nothing is left, or it would be two lines: the numbers of all classes after it
        would mean others.
    """
    name = text.strip()
    if not name or "\n" in name or "\r" in name:
        raise Unusable(f"its label {ascii(text)} is no name")
    return name


def as_string(value: Any) -> str:
    """Any other field as a string: lists of strings joined by ", ", null empty, the rest JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


def _from_sub_folders(pictures: list[str]) -> list[Record]:
    """Class sub-folders, perhaps below train/, validation/ and test/."""
    tops = {path.split("/")[0] for path in pictures}
    by_split = bool(tops) and tops <= set(SPLITS) and all("/" in path for path in pictures)
    records = []
    for path in pictures:
        parts = path.split("/")
        split = SPLITS[parts.pop(0)] if by_split else split_of(path)
        try:
            labels, broken = (_class_name(parts[0]),) if len(parts) > 1 else None, ""
        except Unusable as error:
            labels, broken = None, str(error)
        records.append(Record(path, path, (), labels, split, {}, broken))
    return records


def _check_texts(records: list[Record]) -> None:
    """Either every line has a text, or none: a forgotten one would train on nothing."""
    records = [record for record in records if not record.broken]
    with_text = [record for record in records if record.texts]
    if with_text and len(with_text) < len(records):
        first = next(record for record in records if not record.texts)
        raise InputError(
            f'{first.where} has no "text", though {len(with_text)} of {len(records)} lines have '
            "one. Give every line a text, or none."
        )


def _check_splits(records: list[Record]) -> None:
    """Several lines of one picture are in one split: none is learned and then asked for."""
    first: dict[str, Record] = {}
    for record in records:
        other = record if record.broken else first.setdefault(record.path, record)
        if other.split != record.split:
            raise InputError(
                f"'{record.path}' is in two splits: {other.where} puts it into '{other.split}', "
                f"{record.where} into '{record.split}'. Give both the same split, or one group."
            )


def _class_names(records: list[Record]) -> tuple[str, ...]:
    labels = {label for record in records for label in record.labels or ()}
    if not labels:
        return ()
    if all(isinstance(label, str) for label in labels):
        return tuple(sorted(str(label) for label in labels))
    mixed = next((record for record in records if _named(record)), None)
    if mixed is not None:
        raise InputError(f'{mixed.where}: "label" is a name here and a number in other lines.')
    return tuple(str(number) for number in range(max(int(label) for label in labels) + 1))


def _named(record: Record) -> bool:
    return any(isinstance(label, str) for label in record.labels or ())

"""TFDS builder on a user's own folder, or zip, of pictures.

What belongs to what is read by folder_index.py. Pictures that cannot be read or decoded, whose
text is empty or whose label is no class are left out, counted and named, here and in the copy's
metadata. Plain PNG and JPEG files are stored as they are; others become PNG, with EXIF rotation
applied and transparency kept (see images.normalise).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from vision_lang.data import images
from vision_lang.data.builders import copies
from vision_lang.data.builders.folder_files import Files, Unreadable
from vision_lang.data.builders.folder_index import METADATA, Index, Record, read_index
from vision_lang.errors import InputError, printable

NAMES_SHOWN = 20  # of broken files, in the log; all are in the copy's metadata


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """files: the folder; index: what is in it."""

    # Not in the repr: TFDS writes that to the log.
    files: Files = dataclasses.field(repr=False)
    index: Index = dataclasses.field(repr=False)


class Folder(tfds.core.GeneratorBasedBuilder):
    """Features: image (encoded), file_name, text (any number), label (any number of them where
    the metadata have lists), and fields/<other field>."""

    VERSION = tfds.core.Version("3.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        index = self.builder_config.index
        label = tfds.features.ClassLabel(names=list(index.class_names))
        features: dict[str, Any] = {
            # 0 channels: as the file has them (RGB, greyscale or RGBA).
            "image": tfds.features.Image(shape=(None, None, 0)),
            "file_name": tfds.features.Text(),
            "text": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.Sequence(label) if index.several else label,
        }
        if index.field_names:
            features["fields"] = {name: tfds.features.Text() for name in index.field_names}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Pictures from {self.builder_config.files.path}",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(broken={}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        """The splits with at least one good picture: TFDS refuses to write an empty one."""
        by_split: dict[str, list[Record]] = {}
        for record in self.builder_config.index.records:
            by_split.setdefault(record.split, []).append(record)
        good = {}
        for split, records in sorted(by_split.items()):
            if any(isinstance(self._load(record), bytes) for record in records):
                good[split] = self._generate_examples(records)
            else:
                list(self._generate_examples(records))  # only notes what is broken
        if not good:
            path = self.builder_config.files.path
            raise InputError(f"None of the pictures in {path} can be used.")
        return good

    def _generate_examples(self, records: list[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
        names, several = self.builder_config.index.field_names, self.builder_config.index.several
        classes = {name: n for n, name in enumerate(self.builder_config.index.class_names)}
        seen: Counter[str] = Counter()
        for record in records:
            seen[record.path] += 1
            picture = self._load(record)
            if isinstance(picture, images.BadImage):
                again = f", line {seen[record.path]} of it" if seen[record.path] > 1 else ""
                self.info.metadata["broken"][record.path + again] = str(picture)
                continue
            said = [-1] if record.labels is None else [classes[str(x)] for x in record.labels]
            example: dict[str, Any] = {
                "image": picture,
                "file_name": record.path,
                "text": list(record.texts),
                "label": said if several else said[0],
            }
            if names:
                example["fields"] = {name: record.fields.get(name, "") for name in names}
            # TFDS orders examples by a hash of their keys, and the last tenth of train may be held
            # out: no key may say where the folder lies, nor change when lines are added.
            yield f"{record.path} {seen[record.path]}", example

    def _load(self, record: Record) -> bytes | images.BadImage:
        if record.broken:
            return images.BadImage(record.broken)
        try:
            return images.normalise(self.builder_config.files.read(record.path))
        except images.BadImage as error:
            return error
        except Unreadable as error:
            return images.BadImage(error.reason)


def prepare(path: str, directory: str) -> tuple[Any, str]:
    """The prepared data set of a folder or zip, and the fingerprint of its state.

    Args:
      path: the folder or zip.
      directory: where prepared data sets live.

    Raises:
      InputError: see `read_index`; or no picture can be decoded.
    """
    files = Files(path)
    fingerprint = fingerprint_of(files)

    def make_config(name: str) -> FolderConfig:
        index = read_index(files)
        if index.unlisted:
            logging.warning(
                "%d pictures in %s are in no %s: left out.", index.unlisted, path, METADATA
            )
        return FolderConfig(name=name, files=files, index=index)

    builder = copies.prepare(
        Folder, make_config,
        source=os.path.realpath(path), fingerprint=fingerprint, directory=directory,
    )  # fmt: skip
    report_broken(builder, path)
    return builder, fingerprint


def fingerprint_of(files: Files) -> str:
    """A hash of the files' names, sizes and times, the metadata and the builder's version."""
    digest = hashlib.sha256(f"{Folder.VERSION}\n".encode())
    for name, state in files.states().items():
        digest.update(f"{name}\t{state}\n".encode())
        if name.endswith(METADATA):
            digest.update(files.read(name))
    return digest.hexdigest()[:16]


def report_broken(builder: Any, path: str) -> None:
    """Says at each start which pictures of the source could not be used, and why."""
    with copies.described(builder.data_path):
        broken = dict(builder.info.metadata["broken"])
    if broken:
        first = sorted(broken)[:NAMES_SHOWN]
        shown = printable(", ".join(f"{name} ({broken[name]})" for name in first))
        more = f" and {len(broken) - NAMES_SHOWN} more" if len(broken) > NAMES_SHOWN else ""
        logging.warning(
            "%d broken pictures in %s are left out: %s%s", len(broken), path, shown, more
        )

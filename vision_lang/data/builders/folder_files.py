"""The files of a folder or of a zip, seen alike, and kept inside of it."""

from __future__ import annotations

import functools
import lzma
import os
import posixpath
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from absl import logging

from vision_lang.errors import InputError, printable

PICTURE_ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".tga", ".ico", ".jp2", ".avif",
)  # fmt: skip
SPLITS = {
    "train": "train", "validation": "validation", "val": "validation", "valid": "validation",
    "test": "test",
}  # fmt: skip
# How zipfile reports damage, by where it is: checksum, compressed data, headers and their texts
# (ValueError), a method or an encryption that it does not know (RuntimeError), the end of the file.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, ValueError, RuntimeError,
    EOFError, OSError, MemoryError,
)  # fmt: skip
# Bytes of one picture or metadata file; the largest picture of images.py has 0.4 GB of pixels.
LARGEST_FILE = 2**29
# Bytes that a zip is unpacked by. bzip2 and LZMA give all that a piece of compressed bytes expands
# to, some thousand times as much, however little was asked for.
CHUNK = 2**12
NAMES_SHOWN = 5  # of what is left out of a folder, in the log


class Unreadable(InputError):
    """A file that is there and cannot be read; `reason` says why, without its name."""

    def __init__(self, path: str, name: str, reason: str):
        self.reason = reason
        super().__init__(
            f"'{name}' in {path} cannot be read ({reason}). Replace it by an intact copy."
        )


class Entry(NamedTuple):
    """inner: the name inside the archive or folder; state: size and time, or checksum."""

    inner: str
    size: int
    state: str


class Files:
    """Names are relative to the folder, with forward slashes; hidden files are not there.

    Links to folders or to nothing, what is no file, and names that are not UTF-8 are left out, and
    the log says so.

    Raises (all methods):
      InputError: the path is no folder and no zip; a file lies outside of the folder; a zip has two
        of one name; a file has changed since the names were listed. Unreadable, which is one: a
        file is damaged, encrypted, too large or may not be read.
    """

    def __init__(self, path: str):
        self.path = path
        if not path:
            raise InputError("The data set 'folder' needs data.path: a folder or zip of pictures.")
        self._root = Path(path).expanduser()
        if not self._root.exists():
            raise InputError(f"There is no folder or zip at {path} (data.path).")
        self._real_root = os.path.realpath(self._root)
        self._zip: zipfile.ZipFile | None = None
        if self._root.is_file():
            try:
                self._zip_state = _state(os.stat(self._root))
                self._zip = zipfile.ZipFile(self._root)
            except DAMAGE as error:
                raise InputError(f"{path} is neither a folder nor a zip: {error}.") from error

    @functools.cached_property
    def _entries(self) -> dict[str, Entry]:
        entries = self._zip_entries(self._zip) if self._zip else self._folder_entries()
        return dict(sorted(entries.items()))

    def _folder_entries(self) -> dict[str, Entry]:
        entries, left_out = {}, {}
        for folder, folders, names in os.walk(self._root, onerror=self._refuse_folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = os.path.relpath(folder, self._root)
            for name in folders:
                if os.path.islink(os.path.join(folder, name)):  # not walked into
                    left_out[_join(inside, name)] = "a link to a folder"
            for name in map(functools.partial(_join, inside), names):
                if posixpath.basename(name).startswith("."):
                    continue
                found = self._look(name)
                if isinstance(found, Entry):
                    entries[name] = found
                elif name.lower().endswith(".jsonl"):
                    raise Unreadable(self.path, name, found)
                elif name.lower().endswith(PICTURE_ENDINGS):
                    left_out[name] = found
        if left_out:
            shown = [f"{printable(n)} ({why})" for n, why in list(left_out.items())[:NAMES_SHOWN]]
            more = f" and {len(left_out) - NAMES_SHOWN} more" if len(left_out) > NAMES_SHOWN else ""
            logging.warning(
                "%d entries of %s are left out: %s%s. Copy or rename what is meant to be read.",
                len(left_out), self.path, ", ".join(shown), more,
            )  # fmt: skip
        return entries

    def _look(self, name: str) -> Entry | str:
        """What is at `name` in the folder, or why it is left out."""
        full = os.path.join(self._root, name)
        if not is_unicode(name):
            return "its name is not UTF-8"
        try:
            info = os.stat(full)
        except OSError as error:
            return "a link to nothing" if os.path.islink(full) else str(error.strerror)
        # Links are only followed inside of the folder: a data set that someone sends must not be
        # able to read other files of this machine.
        root = self._real_root
        if os.path.commonpath([root, os.path.realpath(full)]) != root:
            if name.lower().endswith((*PICTURE_ENDINGS, ".jsonl")):
                raise InputError(
                    f"'{name}' in {self.path} is a link that leaves the folder: refused. "
                    "Copy the file to where the link is."
                )
            return "a link that leaves the folder"
        return Entry(name, info.st_size, _state(info)) if stat.S_ISREG(info.st_mode) else "no file"

    def _refuse_folder(self, error: OSError) -> None:
        raise InputError(
            f"The folder {error.filename} cannot be listed ({error.strerror}): what is in it would "
            "be missing. Get permission, or take it out."
        ) from error

    def _zip_entries(self, archive: zipfile.ZipFile) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for info in archive.infolist():
            name = info.filename.replace("\\", "/")
            hidden = any(part.startswith(".") and part != ".." for part in name.split("/"))
            if info.is_dir() or hidden or name.startswith("__MACOSX/"):
                continue
            _check_inside(name, f"{self.path} holds the entry")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise InputError(f"'{name}' in {self.path} is a link; links are refused in a zip.")
            if info.flag_bits & 1:
                raise InputError(f"'{name}' in {self.path} is encrypted; unpack it first.")
            state = f"{info.file_size} {info.CRC} {info.date_time}"
            name = posixpath.normpath(name)
            if name in entries:
                raise InputError(
                    f"{self.path} holds '{name}' twice, and nothing says which is meant: refused. "
                    "Pack it anew."
                )
            entries[name] = Entry(info.filename, info.file_size, state)
        tops = {name.split("/")[0] for name in entries}
        if len(tops) == 1 and all("/" in name for name in entries) and not tops & set(SPLITS):
            # The usual zip of a folder has that folder as its only top entry. A single class
            # folder looks the same and loses nothing but a label that all pictures would share.
            return {name.split("/", 1)[1]: entry for name, entry in entries.items()}
        return entries

    def names(self) -> list[str]:
        """All files, sorted."""
        return list(self._entries)

    def pictures(self) -> list[str]:
        """All files that are called like a picture, sorted."""
        return [name for name in self._entries if name.lower().endswith(PICTURE_ENDINGS)]

    def states(self) -> dict[str, str]:
        """name -> size and time (zip: size, checksum and time), sorted by name."""
        return {name: entry.state for name, entry in self._entries.items()}

    def exists(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str) -> bytes:
        inner, size, _ = entry = self._entries[name]
        if size > LARGEST_FILE:
            raise Unreadable(self.path, name, f"{size:,} bytes, more than {LARGEST_FILE:,}")
        try:
            if not self._zip:
                with open(self._root / inner, "rb") as file:
                    return file.read(size + 1)  # no more than what is expected, but for a trace
            with self._zip.open(inner) as unpacked:
                return b"".join(iter(lambda: unpacked.read(CHUNK), b""))
        except DAMAGE as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise Unreadable(self.path, name, reason) from error
        finally:  # also where it could not be read: it may be gone, or written at this moment
            self._refuse_if_changed(name, entry)

    def _refuse_if_changed(self, name: str, entry: Entry) -> None:
        before = self._zip_state if self._zip else entry.state
        try:
            same = _state(os.stat(self._root if self._zip else self._root / entry.inner)) == before
        except OSError:
            same = False
        if not same:
            raise InputError(
                f"'{name}' in {self.path} changed while the data were prepared: nothing of them is "
                "kept. Start again once nothing writes to it."
            )

    def resolve(self, folder: str, name: str, where: str) -> str:
        """A file name in a metadata file, relative to that file's folder -> a name here."""
        name = name.replace("\\", "/")
        _check_inside(posixpath.join(folder, name), f"{where} names")
        return posixpath.normpath(posixpath.join(folder, name))


def is_unicode(text: str) -> bool:
    """False where a string has halves of surrogate pairs, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _join(folder: str, name: str) -> str:
    """A name in a folder of os.walk, with forward slashes."""
    return name if folder == "." else f"{folder}/{name}".replace(os.sep, "/")


def _state(info: os.stat_result) -> str:
    return f"{info.st_size} {info.st_mtime_ns}"


def _check_inside(name: str, what: str) -> None:
    """Refuses absolute names and those that climb out of the folder."""
    outside = name.startswith("/") or ":" in name.split("/")[0]
    if outside or posixpath.normpath(name).split("/")[0] == "..":
        raise InputError(f"{what} '{name}', which lies outside of the folder: refused.")

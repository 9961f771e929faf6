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

from vision_lang.errors import InputError

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
    EOFError, OSError,
)  # fmt: skip


class Unreadable(InputError):
    """A file that is there and cannot be read; `reason` says why, without its name."""

    def __init__(self, path: str, name: str, error: BaseException):
        self.reason = " ".join(f"{type(error).__name__}: {error}".split())
        super().__init__(
            f"'{name}' in {path} cannot be read ({self.reason}). Replace it by an intact copy."
        )


class Files:
    """Names are relative to the folder, with forward slashes; hidden files are not there.

    Raises (all methods):
      InputError: the path is no folder and no zip; a file lies outside of the folder. Unreadable,
        which is one: a file is damaged, encrypted or may not be read.
    """

    def __init__(self, path: str):
        self.path = path
        if not path:
            raise InputError("The data set 'folder' needs data.path: a folder or zip of pictures.")
        self._root = Path(path).expanduser()
        if not self._root.exists():
            raise InputError(f"There is no folder or zip at {path} (data.path).")
        self._zip: zipfile.ZipFile | None = None
        if self._root.is_file():
            try:
                self._zip = zipfile.ZipFile(self._root)
            except DAMAGE as error:
                raise InputError(f"{path} is neither a folder nor a zip: {error}.") from error

    @functools.cached_property
    def _entries(self) -> dict[str, tuple[str, str]]:
        """name -> (name inside the archive or folder, state: size and time or checksum)."""
        entries = self._zip_entries(self._zip) if self._zip else self._folder_entries()
        return dict(sorted(entries.items()))

    def _folder_entries(self) -> dict[str, tuple[str, str]]:
        entries = {}
        real_root = os.path.realpath(self._root)
        for folder, folders, names in os.walk(self._root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                full = os.path.join(folder, name)
                relative = os.path.relpath(full, self._root).replace(os.sep, "/")
                if name.startswith(".") or not os.path.exists(full):  # a link to nothing
                    continue
                # Links are only followed inside of the folder: a data set that someone sends
                # must not be able to read other files of this machine.
                if os.path.commonpath([real_root, os.path.realpath(full)]) != real_root:
                    if not name.lower().endswith((*PICTURE_ENDINGS, ".jsonl")):
                        continue
                    raise InputError(
                        f"'{relative}' in {self.path} is a link that leaves the folder: refused. "
                        "Copy the file to where the link is."
                    )
                info = os.stat(full)
                entries[relative] = (relative, f"{info.st_size} {info.st_mtime_ns}")
        return entries

    def _zip_entries(self, archive: zipfile.ZipFile) -> dict[str, tuple[str, str]]:
        entries = {}
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
            entries[posixpath.normpath(name)] = (info.filename, state)
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
        return {name: state for name, (_, state) in self._entries.items()}

    def exists(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str) -> bytes:
        inner, _ = self._entries[name]
        try:
            return self._zip.read(inner) if self._zip else (self._root / inner).read_bytes()
        except DAMAGE as error:
            raise Unreadable(self.path, name, error) from error

    def resolve(self, folder: str, name: str, where: str) -> str:
        """A file name in a metadata file, relative to that file's folder -> a name here."""
        name = name.replace("\\", "/")
        _check_inside(posixpath.join(folder, name), f"{where} names")
        return posixpath.normpath(posixpath.join(folder, name))


def _check_inside(name: str, what: str) -> None:
    """Refuses absolute names and those that climb out of the folder."""
    outside = name.startswith("/") or ":" in name.split("/")[0]
    if outside or posixpath.normpath(name).split("/")[0] == "..":
        raise InputError(f"{what} '{name}', which lies outside of the folder: refused.")

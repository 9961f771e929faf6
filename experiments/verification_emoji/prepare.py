"""Makes a folder in which an identity is an emoji, and its two pictures are two styles.

    python -m experiments.verification_emoji.prepare --noto=noto_emoji64.zip \
        --blob=blobmoji64.zip --out=DIR

Takes the file names that are in both zips. DIR/metadata.jsonl has the name without its suffix as
`label`, and the `split` that both zips give it; an emoji of test is in no other part.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path, PurePosixPath

from absl import flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS
METADATA = "metadata.jsonl"


def main() -> None:
    """Defines the flags and runs the command."""
    data = "../shared/data/emoji64"
    flags.DEFINE_string("noto", f"{data}/noto_emoji64.zip", "One style.")
    flags.DEFINE_string("blob", f"{data}/blobmoji64.zip", "The other style.")
    flags.DEFINE_string("out", "emoji_pairs", "The folder to make.")
    commands.run(_run)


def _run() -> None:
    out = Path(FLAGS.out)
    if out.exists():
        raise InputError(f"'{out}' exists: give another --out.")
    styles = {"noto": read(FLAGS.noto), "blob": read(FLAGS.blob)}
    lines = pairs({style: splits for style, (splits, _) in styles.items()})
    for style, (_, zipped) in styles.items():
        (out / style).mkdir(parents=True)
        with zipped:
            for line in lines:
                if line["style"] == style:
                    name = PurePosixPath(line["file_name"]).name
                    (out / line["file_name"]).write_bytes(zipped.read(name))
    (out / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(lines) // 2} emoji in two styles each: {out}")


def read(path: str) -> tuple[dict[str, str], zipfile.ZipFile]:
    """Returns the split of each file that a zip's metadata name, and the open zip.

    Raises:
      InputError: it is no zip with metadata.
    """
    try:
        zipped = zipfile.ZipFile(path)
        rows = map(json.loads, zipped.read(METADATA).decode().splitlines())
        return {row["file_name"]: row["split"] for row in rows}, zipped
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"'{path}' is no zip with {METADATA}: {error}.") from error


def pairs(styles: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """A line of metadata for each style of each name that all styles have, by name.

    Args:
      styles: style -> file name -> split.

    Raises:
      InputError: no name is in all of them, or one is in different splits.
    """
    names = sorted(set.intersection(*map(set, styles.values())))
    if not names:
        raise InputError("No file name is in both zips.")
    lines = []
    for name in names:
        if len({splits[name] for splits in styles.values()}) > 1:
            raise InputError(f"'{name}' is in different splits, by its style.")
        lines += [
            {
                "file_name": f"{style}/{name}",
                "label": PurePosixPath(name).stem,
                "split": splits[name],
                "style": style,
            }
            for style, splits in styles.items()
        ]
    return lines


if __name__ == "__main__":
    main()

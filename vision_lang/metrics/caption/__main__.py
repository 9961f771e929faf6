"""Scores captions in COCO's formats, without Java.

    python -m vision_lang.metrics.caption --annotations=captions.json --results=results.json

`annotations` holds {"images": [{"id"}...], "annotations": [{"image_id", "caption"}...]}, `results`
a list of {"image_id", "caption"}: one for each image, no more and no less. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from absl import flags, logging
from etils import epath

from vision_lang import flags as commands
from vision_lang.errors import InputError
from vision_lang.metrics import caption

FLAGS = flags.FLAGS
Id = int | str  # of an image; COCO's are numbers


def main() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string(
        "annotations", None, "References, as COCO's captions_*.json.", required=True
    )
    flags.DEFINE_string("results", None, "Hypotheses, as COCO's *_results.json.", required=True)
    flags.DEFINE_string("out", "", "Also write the scores to this file.")
    commands.run(_run)


def _run() -> None:
    references = _references(FLAGS.annotations)
    hypotheses = _hypotheses(FLAGS.results)
    if unknown := [image for image in hypotheses if image not in references]:
        raise InputError(
            f"'{FLAGS.results}' has a hypothesis for image {_first(unknown)}, which is not among "
            f"the images of '{FLAGS.annotations}'."
        )
    if missing := [image for image in references if image not in hypotheses]:
        raise InputError(
            f"'{FLAGS.results}' has no hypothesis for image {_first(missing)}: every image of "
            f"'{FLAGS.annotations}' needs one."
        )
    if len(references) == 1:
        logging.warning("CIDEr of a single image is 0: it compares the references of images.")
    record = caption.score([hypotheses[image] for image in references], list(references.values()))
    print(json.dumps(record))
    if FLAGS.out:
        commands.write_record(FLAGS.out, record)


def _references(path: str) -> dict[Id, list[str]]:
    """The captions of each image of COCO's annotations, in the order of the images."""
    data = _read(path)
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise InputError(f'\'{path}\' has to hold {{"images": [...], "annotations": [...]}}.')
    found: dict[Id, list[str]] = {}
    for row in _rows(data["images"], f"'images' of '{path}'"):
        image = _image_id(row, "id", path)
        if image in found:
            raise InputError(f"'{path}' lists image {image!r} twice.")
        found[image] = []
    for row in _rows(data["annotations"], f"'annotations' of '{path}'"):
        image = _image_id(row, "image_id", path)
        if image not in found:
            raise InputError(f"'{path}' has a caption for image {image!r}, which it does not list.")
        found[image].append(_caption(row, image, path))
    if not found:
        raise InputError(f"'{path}' lists no images.")
    if bare := [image for image, captions in found.items() if not captions]:
        raise InputError(f"'{path}' has no caption for image {_first(bare)}.")
    return found


def _hypotheses(path: str) -> dict[Id, str]:
    """The one caption of each image of COCO's results."""
    found: dict[Id, str] = {}
    for row in _rows(_read(path), f"'{path}'"):
        image = _image_id(row, "image_id", path)
        if image in found:
            raise InputError(f"'{path}' has two hypotheses for image {image!r}; one is wanted.")
        found[image] = _caption(row, image, path)
    return found


def _read(path: str) -> Any:
    try:
        return json.loads(epath.Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # no JSON, or no text
        raise InputError(f"'{path}' is not JSON: {error}.") from error


def _rows(value: Any, what: str) -> list[dict]:
    if not isinstance(value, list):
        raise InputError(f"{what} has to be a list, not {_kind(value)}.")
    for i, row in enumerate(value):
        if not isinstance(row, dict):
            raise InputError(f"Entry {i} of {what} has to be an object, not {_kind(row)}.")
    return value


def _image_id(row: dict, key: str, path: str) -> Id:
    image = row.get(key)
    if isinstance(image, bool) or not isinstance(image, (int, str)):
        raise InputError(f"'{key}' has to be a number or a string in {_shown(row)} of '{path}'.")
    return image


def _caption(row: dict, image: Id, path: str) -> str:
    text = row.get("caption")
    if not isinstance(text, str):
        raise InputError(f"'caption' of image {image!r} in '{path}' has to be a string.")
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    return names.get(type(value), "nothing" if value is None else "a number")


def _shown(row: dict) -> str:
    text = json.dumps(row)
    return text if len(text) <= 60 else text[:57] + "..."


def _first(images: list[Id]) -> str:
    """'7' or '7 and 3 more'."""
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return f"{images[0]!r}{more}"


if __name__ == "__main__":
    main()
    sys.exit(0)

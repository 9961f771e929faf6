"""What commands that compare pictures with descriptions share: flags, and what they hold."""

from __future__ import annotations

import csv
from typing import Any

from absl import flags
from etils import epath

from vision_lang.errors import InputError

FLAGS = flags.FLAGS
# flag -> the tasks whose runs it concerns
OPTIONS = {
    "templates": ("clip", "contrastive"),
    "per_token": ("captioning",),
    "noises": ("diffusion",),
    "error": ("diffusion",),
}


def define_flags() -> None:
    """Flags of the ways to compare; one that is not given has its default of descriptions.How."""
    flags.DEFINE_multi_string(
        "templates", None, "Clip and contrastive runs: texts with {} for the description or class, "
        "also {name}, or {a} with an article; given several times, their mean is compared.",
    )  # fmt: skip
    flags.DEFINE_bool("per_token", None, "Captioning runs: likelihood per token, not of the whole.")
    flags.DEFINE_integer("noises", None, "Diffusion runs: noises of the error.", lower_bound=1)
    flags.DEFINE_string("error", None, "Diffusion runs: the error of the noise, or of the picture.")


def given(task: str) -> dict[str, Any]:
    """The flags that were given, by name.

    Raises:
      InputError: one concerns the runs of another task.
    """
    values: dict[str, Any] = {name: FLAGS[name].value for name in OPTIONS}
    found = {name: value for name, value in values.items() if value is not None}
    if "templates" in found:
        found["templates"] = tuple(found["templates"])
    for name in found:
        if task not in OPTIONS[name]:
            known = " or ".join(OPTIONS[name])
            raise InputError(f"--{name} is for {known} runs; this is a {task} run.")
    return found


def read(value: str) -> list[str]:
    """--descriptions: a file with one description a line, or descriptions between commas, in quotes
    where they have commas of their own.

    Raises:
      InputError: there are not two or more, one is empty or given twice, the file is no text.
    """
    path = epath.Path(value)
    if is_file := _is_file(path):
        try:
            found = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"'{value}' cannot be read as text: {error}.") from error
    else:
        try:
            (found,) = csv.reader([value], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError) as error:
            raise InputError(
                f'--descriptions={value}: no file, and no list such as \'"a red circle","a blue '
                f"square\"' ({error})."
            ) from error
    found = [text.strip() for text in found]
    what = f"'{value}'" if is_file else f"--descriptions={value}"
    for number, text in enumerate(found, 1):
        if not text:
            raise InputError(f"{what}: description {number} is empty.")
        if found.index(text) + 1 < number:
            raise InputError(f"{what}: description {number}, '{text}', is there twice.")
    if len(found) < 2:
        hint = "" if is_file else ", and there is no such file"
        raise InputError(f"{what}: {len(found)} description(s) leave no choice{hint}.")
    return found


def _is_file(path: epath.Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a list that is longer than any name
        return False

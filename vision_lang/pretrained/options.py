"""The fields of a published config.json: what is read, and what must have the value built here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vision_lang.errors import InputError


class Options:
    """A config by its fields.

    Attributes:
      fields: the JSON object.
      source: the file, for messages.
    """

    def __init__(self, fields: Mapping[str, Any], source: Any) -> None:
        self.fields = dict(fields)
        self.source = source

    def part(self, name: str) -> Options:
        """The config of a network in it, such as 'text_config'.

        Raises:
          InputError: it has no such part.
        """
        part = self.fields.get(name)
        if not isinstance(part, dict):
            raise InputError(f"{self.source} has no '{name}': it is another architecture's.")
        return Options(part, f"{self.source}, {name}")

    def __getitem__(self, name: str) -> Any:
        """A size, or a list of them, that must be there.

        Raises:
          InputError: it is not, or is a text.
        """
        if name not in self.fields:
            raise InputError(f"{self.source} has no '{name}': it is another architecture's.")
        return self._size(name)

    def get(self, name: str, default: Any) -> Any:
        """A field, or the library's default where it is missing or null.

        Raises:
          InputError: it is a text where the default is a number.
        """
        if self.fields.get(name) is None:
            return default
        return self._size(name) if isinstance(default, int | float) else self.fields[name]

    def _size(self, name: str) -> Any:
        value = self.fields[name]
        if isinstance(value, str | dict):
            raise InputError(f"{self.source}: {name}={value!r} is no number.")
        return value

    def demand(self, **only: tuple[Any, ...]) -> None:
        """Demands of each field that it is missing or one of the values that are built here.

        Raises:
          InputError: it is another; says which are built.
        """
        for name, values in only.items():
            value = self.fields.get(name, values[0])
            if value not in values:
                built = " or ".join(map(repr, values))
                raise InputError(f"{self.source}: {name}={value!r} is not built here, {built} is.")


def as_mask(attention_mask: Any) -> jax.Array | None:
    """A mask of the libraries, of zeros and ones, as ours."""
    return None if attention_mask is None else jnp.asarray(attention_mask, bool)

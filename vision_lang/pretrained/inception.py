"""The Inception-v3 that FID is computed with, as torch-fidelity publishes it.

Its file, `pt_inception-2015-12-05-6726825d.pth`, is named by how its sha256 begins, and
`from_torch` keeps that sum. Only numbers of these very weights may be called FID.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from vision_lang.models.inception import Inception, is_fid
from vision_lang.pretrained import layout, tensors
from vision_lang.pretrained.layout import BATCH_NORM, CONV, DENSE, Row

IGNORED = r".*\.num_batches_tracked"


@dataclass(frozen=True, eq=False)
class PublishedInception:
    """Attributes:
    net: the network.
    source_sha256: of the file that the weights were converted from; '' where it is not known.
    """

    net: Inception
    source_sha256: str = ""

    @property
    def is_fid(self) -> bool:
        """Whether these are the weights that FID is defined by."""
        return is_fid(self.source_sha256)

    def apply(self, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        """images [B, H, W, 3], 0 to 255, of any size -> "64", "192", "768", "2048" [B, n],
        "logits_unbiased" and "logits" [B, 1008]."""
        found: Any = self.net.apply(variables, images)
        return found

    def shapes(self) -> Any:
        """Its variables as shapes."""
        image = jnp.zeros((1, 8, 8, 3))
        return jax.eval_shape(lambda key: self.net.init(key, image), jax.random.key(0))

    def rows(self) -> tuple[Row, ...]:
        """The table of its layout: names are the same on both sides."""
        paths = flax.traverse_util.flatten_dict(self.shapes()["params"], sep="/")
        modules = sorted({path.rpartition("/")[0] for path in paths})
        kinds = {"conv": CONV, "bn": BATCH_NORM, "fc": DENSE}
        return tuple(
            Row(module.replace("/", "."), module, kinds[module.rpartition("/")[2]])
            for module in modules
        )


def read(path: Any) -> tuple[PublishedInception, Any]:
    """Returns the network and its variables."""
    found = tensors.open(path)
    model = PublishedInception(Inception(), found.metadata.get("source_sha256", ""))
    return model, layout.read(found, model.shapes(), model.rows(), IGNORED)

"""A torch pickle as safetensors, where torch is installed; vision_lang itself does without.

    python -m vision_lang.pretrained.from_torch weights.pth weights.safetensors

Only tensors are unpickled. The sha256 of the pickle stands in the new file's metadata, which is how
the weights that FID is defined by are told from others.
"""

from __future__ import annotations

import hashlib
import pathlib
import sys


def main(source: str, target: str) -> None:
    """Reads the state dict in `source`, also where it lies under 'state_dict', and writes it."""
    import torch  # noqa: TID251
    from safetensors.torch import save_file

    content = torch.load(source, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content)
    found = {name: x for name, x in state.items() if isinstance(x, torch.Tensor)}
    sha256 = hashlib.sha256(pathlib.Path(source).read_bytes()).hexdigest()
    named = {"source": pathlib.Path(source).name, "source_sha256": sha256}
    save_file({name: x.contiguous().clone() for name, x in found.items()}, target, named)
    print(f"{target}: {len(found)} tensors, sha256 of the source {sha256}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m vision_lang.pretrained.from_torch SOURCE.pth TARGET.safetensors")
    main(*sys.argv[1:])

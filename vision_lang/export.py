"""Writes a network of a run as published weights, for the libraries that read them.

    python -m vision_lang.export --run=RUN --network=unet --out=diffusion_pytorch_model.safetensors

| --network    | of a run of                          | layout                               |
|--------------|--------------------------------------|--------------------------------------|
| unet         | diffusion                            | diffusers' UNet2DConditionModel      |
| autoencoder  | diffusion                            | diffusers' AutoencoderKL             |
| text_encoder | diffusion, contrastive               | transformers' CLIPTextModel          |
| decoder      | captioning                           | transformers' GPT2LMHeadModel        |
| encoder      | recognition, captioning, contrastive | torchvision's VGG                    |

The averaged weights are written where there are any, LoRA's updates merged. What the library wants
beside them, config.json and a tokenizer, is that of the folder that the run was converted from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from vision_lang import flags as commands
from vision_lang.errors import InputError, choose

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_string("network", "", "Which of the run's networks: " + ", ".join(NETWORKS) + ".")
    flags.DEFINE_string("out", "", "The .safetensors file to write.")
    flags.DEFINE_bool("overwrite", False, "Replace --out if it is there.")
    commands.run(_run)


def _run() -> None:
    from safetensors.numpy import save

    from vision_lang.pretrained import layout
    from vision_lang.runs import folder
    from vision_lang.training import setup

    rows_of = choose(NETWORKS, FLAGS.network, "network (--network)")
    out = epath.Path(FLAGS.out)
    if not FLAGS.out.endswith(".safetensors"):
        raise InputError("Say where to write the weights: --out=FILE.safetensors.")
    if out.exists() and not FLAGS.overwrite:
        raise InputError(f"'{out}' is there already; --overwrite replaces it.")
    config = folder.open(FLAGS.run.rpartition("@")[0] or FLAGS.run).read_config()
    spec = f"{FLAGS.run}:{FLAGS.weights}" if FLAGS.weights else FLAGS.run
    source, found = setup.weights_of(spec)
    own = {}
    for path, array in found.items():
        collection, _, rest = path.partition("/")
        if rest.startswith(FLAGS.network + "/"):
            own[f"{collection}/{rest.removeprefix(FLAGS.network + '/')}"] = array
    if not own:
        raise InputError(f"Run '{FLAGS.run}' has no network '{FLAGS.network}'.")
    try:
        tensors = layout.write(layout.nested(own), rows_of(config))
    except ValueError as error:
        raise InputError(
            f"The {FLAGS.network} of '{FLAGS.run}' is not of the published architecture: {error}."
        ) from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(save(tensors, metadata={"format": "pt"}))
    except OSError as error:
        raise InputError(f"'{out}' cannot be written: {error.strerror or error}.") from error
    logging.info("%d tensors of %s", len(tensors), source)
    print(out)


def _demand(what: str, **fields: tuple[Any, Any]) -> None:
    """Raises ValueError for a field whose value (found, published) is not the published one."""
    for name, (found, published) in fields.items():
        if found != published:
            raise ValueError(f"{what}.{name}={found}, where {published} is published")


def _unet(config: ConfigDict) -> Any:
    from vision_lang.pretrained import unet

    spec = config.model.unet
    _demand("model.unet", positions=(spec.positions, False), pooled_text=(spec.pooled_text, False))
    return unet.rows(spec.linear_projection)


def _autoencoder(config: ConfigDict) -> Any:
    from vision_lang.pretrained import autoencoder

    return autoencoder.ROWS


def _text_encoder(config: ConfigDict) -> Any:
    from vision_lang.pretrained import clip, t5
    from vision_lang.pretrained.layout import under

    spec = config.get("model", {}).get("text", {})
    if "buckets" in spec or config.get("network") == "t5_encoder":
        return t5.ROWS
    if spec:
        slopes = tuple(spec.distance_slopes)
        _demand("model.text", causal=(spec.causal, True), distance_slopes=(slopes, ()))
    rows = under(clip.TEXT, "text_model", "")
    return tuple(row._replace(ours=row.ours.removeprefix("/")) for row in rows)


def _decoder(config: ConfigDict) -> Any:
    from vision_lang.pretrained import gpt2

    return gpt2.ROWS


def _encoder(config: ConfigDict) -> Any:
    from vision_lang.models.vgg import VGGSpec
    from vision_lang.pretrained import vgg

    spec = VGGSpec(**config.model.encoder)
    _demand(
        "model.encoder",
        padding=(spec.padding, "SAME"),
        stages=(len(spec.stages), vgg.STAGES),
    )
    if spec.head == "pool":
        raise ValueError("model.encoder.head=pool, where dense is published")
    return vgg.ROWS["torchvision"](spec)


NETWORKS: dict[str, Callable[[ConfigDict], Any]] = {
    "unet": _unet,
    "autoencoder": _autoencoder,
    "text_encoder": _text_encoder,
    "decoder": _decoder,
    "encoder": _encoder,
}

if __name__ == "__main__":
    main()

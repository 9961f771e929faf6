"""Picture files through run folders: CLIP's preprocessing against transformers', and FID's features
against torch-fidelity's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vision_lang import convert, extract
from vision_lang.data import pictures
from vision_lang.pretrained import from_torch
from vision_lang.training import setup

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.fixtures import make_references  # noqa: E402
from tests.parity import test_inception  # noqa: E402
from tests.parity.mapping import close, rms  # noqa: E402
from tests.parity.test_inception import theirs  # noqa: E402, F401 - a fixture

pytestmark = pytest.mark.parity
# Width and height: square, wide, high, odd, by one pixel; to be shrunk and to be enlarged.
SIZES = [
    (24, 24), (300, 300), (640, 480), (480, 640), (501, 333), (333, 501), (25, 24), (24, 25),
    (37, 41), (231, 1000), (1000, 231), (20, 16), (16, 21), (7, 11), (9, 3), (1, 1),
]  # fmt: skip


def drawn(size):
    return np.random.default_rng(size).integers(0, 256, (*size[::-1], 3), np.uint8)


@pytest.mark.parametrize("side", [24, 224])
def test_clips_pictures_are_those_of_its_image_processor(side, command, tmp_path):
    """Of the processor that resizes by PIL, as OpenAI did. The one that resizes by torchvision
    rounds elsewhere: it shows the same places, but for a level of 255 here and there."""
    pil = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    processor, torchvision = pil(**sizes), transformers.CLIPImageProcessor(**sizes)
    make_references.PIPELINES["clip_folder"](5)(tmp_path)
    (tmp_path / "example.safetensors").unlink()
    command(convert.main, "--kind=clip", f"--path={tmp_path}", f"--run={tmp_path / 'run'}")
    loaded = setup.load(str(tmp_path / "run"))
    with loaded.config.unlocked():
        loaded.config.data.resolution = side
    reader = pictures.Reader(loaded.config.data)
    for size in SIZES:
        Image.fromarray(drawn(size)).save(tmp_path / "x.png")
        ours = np.asarray(loaded.task.preprocess(reader.read(str(tmp_path / "x.png"))[None]))[0]
        image = Image.open(tmp_path / "x.png")
        expected, rounded = (
            np.asarray(kind(images=image, return_tensors="np").pixel_values)[0].transpose(1, 2, 0)
            for kind in (processor, torchvision)
        )
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6, err_msg=str(size))
        assert rms(ours - rounded) < 0.02, size


def test_features_of_inceptions_run_are_torch_fidelitys(theirs, command, tmp_path):  # noqa: F811
    """From the pickle to features.npz: pictures of several sizes, which nobody resizes before."""
    test_inception.randomise(theirs, 7)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    from_torch.main(str(tmp_path / "x.pth"), str(tmp_path / "x.safetensors"))
    run, sizes = (
        tmp_path / "run",
        [(299, 299), (32, 32), (331, 57), (57, 331), (403, 330), (600, 1)],
    )
    made = command(
        convert.main, "--kind=inception_fid", f"--path={tmp_path / 'x.safetensors'}", f"--run={run}"
    )
    assert made.code == 0, made.err
    for i, size in enumerate(sizes):
        Image.fromarray(drawn(size)).save(tmp_path / f"{i}.png")
    files = [f"--images={tmp_path / f'{i}.png'}" for i in range(len(sizes))]
    out = tmp_path / "features.npz"
    made = command(extract.main, f"--run={run}", *files, f"--out={out}")
    assert made.code == 0, made.err
    with np.load(out) as archive:
        assert str(archive["network"]) == "inception_2048"  # random weights are not FID's
        found = archive["features"]
    for row, size in zip(found, sizes, strict=True):
        features = theirs(test_inception.nchw(drawn(size)[None]))
        expected = dict(zip(test_inception.NAMES, features, strict=True))
        close(row, expected["2048"][0], str(size))

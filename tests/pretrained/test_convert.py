"""Run folders made of published weights: what they draw and recognise, and how they are used."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests.pretrained import references
from vision_lang import convert, describe, generate, pretrained, recognize
from vision_lang.diffusion import samplers
from vision_lang.pretrained import scheduler
from vision_lang.pretrained.options import Options
from vision_lang.runs import config as config_lib
from vision_lang.runs import manifest
from vision_lang.tasks import diffusion
from vision_lang.training import setup, stored

REFERENCES = pathlib.Path(__file__).parents[1] / "fixtures" / "references"
PROMPTS = ["a RED cat", "a  cat's 2 red?"]  # those of make_references.py


@pytest.mark.parametrize("case", ["pipeline", "pipeline_older"])
def test_a_whole_folder_of_diffusers_draws_its_pictures(case, command, tmp_path):
    """The same tokens, and from the same noise the same pictures. The older folder has no
    tokenizer.json, and both pad with another token than the last."""
    run = tmp_path / "run"
    command(convert.main, "--kind=diffusers", f"--path={REFERENCES / case}", f"--run={run}")
    loaded, (_, parts) = setup.load(str(run)), references.read(REFERENCES / case)
    (step,) = epath.Path(run / "checkpoints").iterdir()
    assert manifest.read(step)["config"] == config_lib.lasting_hash(loaded.config)
    tokens, mask = loaded.tokenizer.encode_batch(PROMPTS, loaded.config.data.text_length)
    np.testing.assert_array_equal(tokens, parts["inputs"]["tokens"])
    if case == "pipeline_older":
        return  # its networks are those of the other

    task, sampling = loaded.task, diffusion.Sampling(**loaded.config.sampling)
    assert (sampling.sampler, sampling.spacing, sampling.guidance) == ("ddim", "leading_1", 7.5)
    sampling = dataclasses.replace(sampling, steps=5, guidance=3.0)

    @jax.jit
    def draw(variables, tokens, mask, noise):
        condition = task.make_condition(tokens, mask, np.full(len(PROMPTS), -1))
        denoiser = task.denoiser(variables, condition, sampling)
        sampler = diffusion.make_sampler(sampling)
        x = samplers.sample(sampler, denoiser, task.levels(sampling), noise, None)
        return task.latents.decode(variables, x)

    images = draw(loaded.variables, tokens, mask, parts["inputs"]["noise"])
    images = np.clip(np.asarray(images) / 2 + 0.5, 0, 1)
    expected = parts["outputs"]["images"]
    allowed = max(3e-6 * references.rms(expected), 10 * float(parts["errors"]["images"]))
    assert references.rms(images - expected) <= allowed


@pytest.mark.slow
def test_generate_draws_from_it(command, tmp_path):
    run = tmp_path / "run"
    command(convert.main, "--kind=diffusers", f"--path={REFERENCES / 'pipeline'}", f"--run={run}")
    made = command(
        generate.main, f"--run={run}", "--prompt=a red cat", "--num=2", "--steps=2",
        f"--out={tmp_path / 'out.png'}", f"--out_dir={tmp_path / 'single'}",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert Image.open(tmp_path / "single" / "000-001.png").size == (16, 16)


def test_a_vgg_recognises(command, tmp_path):
    case, run = REFERENCES / "vgg_torchvision_bn", tmp_path / "run"
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    command(
        convert.main, "--kind=vgg", f"--path={references.weights(case)}", f"--run={run}",
        f"--classes={tmp_path / 'names.txt'}",
    )  # fmt: skip
    made = command(recognize.main, f"--run={run}", str(tmp_path / "x.png"))
    assert made.code == 0, made.err
    model, variables = pretrained.load("vgg", references.weights(case))
    assert model.preprocessing == "torchvision"
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    logits = model.apply(variables, ((picture / 255 - mean) / std)[None].astype(np.float32))
    probability = jax.nn.softmax(logits["logits"][0])
    found = json.loads(made.out)
    assert found["label"] == "abcdefg"[int(probability.argmax())]
    assert found["probability"] == pytest.approx(float(probability.max()), rel=1e-4)


def test_kerass_preprocessing_goes_with_kerass_weights(command, tmp_path):
    run, file = tmp_path / "run", references.weights(REFERENCES / "vgg_keras3")
    command(convert.main, "--kind=vgg", f"--path={file}", f"--run={run}")
    config = setup.load(str(run)).config
    assert (config.model.preprocessing, config.data.resolution) == ("keras", 64)


def test_a_network_alone_begins_other_runs(command, tmp_path):
    run, file = tmp_path / "run", references.weights(REFERENCES / "gpt2")
    command(convert.main, "--kind=gpt2", f"--path={file}", f"--run={run}")
    _, found = stored.weights_of(str(run))
    _, variables = pretrained.load("gpt2", file)
    table = variables["params"]["wte"]["embedding"]
    np.testing.assert_array_equal(found["params/decoder/wte/embedding"], table)
    refused = command(describe.main, f"--run={run}", "x.png")
    assert "--config.init.decoder=RUN" in refused.sentence


def test_the_last_step_ends_where_the_scheduler_says(command, tmp_path):
    folder, run = tmp_path / "sd", tmp_path / "run"
    shutil.copytree(REFERENCES / "pipeline", folder)
    file = folder / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(file.read_text())
    assert scheduler["_class_name"] == "DDIMScheduler"
    file.write_text(json.dumps(scheduler | {"set_alpha_to_one": False}))
    command(convert.main, "--kind=diffusers", f"--path={folder}", f"--run={run}")
    assert setup.load(str(run)).config.sampling.final_sigma == "sigma_min"


@pytest.mark.parametrize(
    "fields, sampler, spacing, words",
    [
        ({"_class_name": "DDIMScheduler", "clip_sample": False}, "ddim", "leading", ""),
        ({"_class_name": "DDIMScheduler"}, "ddim", "leading", "clip_sample=True"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing"},
            "dpmpp_2m", "trailing", "",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing",
             "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            "dpmpp_2m", "trailing", "algorithm_type=sde-dpmsolver++, solver_order=3",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m", "trailing", "linspace"),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading",
             "steps_offset": 1, "final_sigmas_type": "sigma_min"},
            "euler", "leading_1", "final_sigmas_type=sigma_min",
        ),
        ({"_class_name": "HeunDiscreteScheduler"}, "dpmpp_2m", "trailing", "HeunDiscrete"),
        ({"_class_name": "PNDMScheduler", "steps_offset": 1}, "dpmpp_2m", "trailing", "PNDM"),
    ],
)  # fmt: skip
def test_what_draws_otherwise_is_said(fields, sampler, spacing, words, caplog):
    """Of what is not built to the last option the log tells; a field that is missing has the
    library's default."""
    trained, drawn = scheduler.read(Options(fields, "there"))
    assert trained == {"schedule": "linear", "prediction": "epsilon"}
    assert (drawn["sampler"], drawn["spacing"]) == (sampler, spacing)
    assert words in caplog.text and bool(words) == bool(caplog.records)


def test_what_does_not_fit_together_is_refused(command, tmp_path):
    def sentence(*arguments):
        return command(convert.main, *arguments).sentence

    folder = tmp_path / "sd"
    shutil.copytree(REFERENCES / "pipeline", folder)
    arguments = ("--kind=diffusers", f"--path={folder}", f"--run={tmp_path / 'run'}")

    def change(file, **fields):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | fields))

    change("scheduler/scheduler_config.json", beta_end=0.02)
    assert "beta_end=0.02" in sentence(*arguments)
    change("scheduler/scheduler_config.json", beta_end=0.012, prediction_type="velocity")
    assert "prediction_type" in sentence(*arguments)
    change("scheduler/scheduler_config.json", prediction_type="epsilon")
    shutil.rmtree(folder / "vae")
    assert "vae" in sentence(*arguments)
    (folder / "model_index.json").unlink()
    assert "model_index.json" in sentence(*arguments)
    assert "--kind" in sentence(f"--path={folder}", "--run=x")
    assert "--path" in sentence("--kind=vgg", f"--run={tmp_path / 'x'}")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    file = references.weights(REFERENCES / "vgg_torchvision")
    vgg = ("--kind=vgg", f"--path={file}", f"--classes={names}")
    assert "names 2 classes, the weights have 7" in sentence(*vgg, f"--run={tmp_path / 'y'}")
    missing = ("--kind=vgg", f"--path={file}", f"--classes={tmp_path / 'none.txt'}")
    assert "none.txt cannot be read" in sentence(*missing, f"--run={tmp_path / 'z'}")
    assert not (tmp_path / "run").exists()

"""`python -m vision_lang.metrics.caption`: COCO's files in, one JSON object out, errors by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vision_lang.metrics import caption
from vision_lang.metrics.caption.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {
    7: ("a red circle", ["A red circle.", "One circle, red."]),
    3: ("two dogs run", ["Two dogs are running", "dogs run on grass", "It's a dog."]),
    12: ("", ["nothing here"]),
}


def coco(texts=TEXTS):
    """Annotations and results in COCO's formats; images in another order than their captions."""
    rows = [(image, text) for image in sorted(texts) for text in texts[image][1]]
    annotations = {
        "info": {},
        "images": [{"id": image, "file_name": f"{image}.jpg"} for image in texts],
        "annotations": [
            {"image_id": image, "id": i, "caption": text} for i, (image, text) in enumerate(rows)
        ],
    }
    results = [{"image_id": image, "caption": text} for image, (text, _) in reversed(texts.items())]
    return annotations, results


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)

    def run(annotations, results, *more):
        for name, value in [("a.json", annotations), ("r.json", results)]:
            if value is not None:
                text = value if isinstance(value, (str, bytes)) else json.dumps(value)
                Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return command(main, "--annotations=a.json", "--results=r.json", *more)

    return run


def test_prints_and_writes_the_record(run):
    outcome = run(*coco(), "--out=new/scores.json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    texts = list(TEXTS.values())
    assert record == caption.score([c for c, _ in texts], [r for _, r in texts])
    assert record["images"] == 3 and record["tokenizer"] == caption.ptb.NAME
    assert json.loads(Path("new/scores.json").read_text()) == record


def test_a_single_image_is_scored_and_cider_explained(run, caplog):
    outcome = run(*coco({"x": TEXTS[7]}))
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["CIDEr"] == 0
    assert "CIDEr of a single image is 0" in caplog.text


def test_as_a_module(tmp_path):
    for name, value in zip(("a.json", "r.json"), coco(), strict=True):
        (tmp_path / name).write_text(json.dumps(value))
    module = [sys.executable, "-m", "vision_lang.metrics.caption"]
    files = [f"--annotations={tmp_path}/a.json", f"--results={tmp_path}/r.json"]
    done = subprocess.run([*module, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 3
    assert done.stdout.count("\n") == 1


def changed(part, value):
    annotations, results = coco()
    if part == "results":
        return annotations, value(results)
    return annotations | {part: value(annotations[part])}, results


A, R = coco()
REFUSED = {
    "no hypothesis": (changed("results", lambda r: r[1:]), "no hypothesis for image 12:"),
    "none at all": (changed("results", lambda r: []), "no hypothesis for image 7 and 2 more:"),
    "two": (changed("results", lambda r: r + [r[1]]), "two hypotheses for image 3;"),
    "unknown": (
        changed("results", lambda r: [*r, {"image_id": 5, "caption": ""}]),
        "hypothesis for image 5, which is not among",
    ),
    "a string for a number": (
        changed("results", lambda r: [r[0] | {"image_id": "12"}, *r[1:]]),
        "hypothesis for image '12', which is not among",
    ),
    "bare image": (changed("images", lambda i: [*i, {"id": 5}]), "no caption for image 5."),
    "image twice": (changed("images", lambda i: [*i, i[0]]), "lists image 7 twice"),
    "unlisted image": (changed("images", lambda i: i[1:]), "image 7, which it does not list"),
    "no images": (({"images": [], "annotations": []}, []), "'a.json' lists no images"),
    "not annotations": ((R, R), "'a.json' has to hold"),
    "not results": ((A, A), "'r.json' has to be a list, not an object"),
    "not objects": ((A, ["a"]), "Entry 0 of 'r.json' has to be an object, not a string"),
    "no list": (changed("images", lambda i: 3), "'images' of 'a.json' has to be a list, not a num"),
    "caption missing": ((A, [{"image_id": 7}]), "'caption' of image 7 in 'r.json' has to be a str"),
    "caption a list": ((A, [{"image_id": 7, "caption": ["a"]}]), "has to be a string"),
    "id missing": ((A, [{"caption": "a"}]), "'image_id' has to be a number or a string"),
    "id true": ((A, [{"image_id": True, "caption": "a"}]), "'image_id' has to be"),
    "no file": ((A, None), "Cannot read 'r.json': No such file or directory."),
    "malformed": ((A, '[{"image_id": 7, '), "'r.json' is not JSON: "),
    "not text": ((A, b"\xff\xfe\x00\xd8"), "'r.json' is not JSON: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_one_sentence_that_names_it(name, run):
    files, message = REFUSED[name]
    outcome = run(*files)
    assert message in outcome.sentence
    assert outcome.sentence.count("\n") == 1 and outcome.out == ""


def test_flags_are_needed_and_checked(run, command):
    assert "--results" in command(main, "--annotations=a.json").sentence
    outcome = run(*coco(), "--out=a.json/scores.json")
    assert "'a.json/scores.json' cannot be written" in outcome.sentence
    assert json.loads(outcome.out)["images"] == 3  # the scores are not lost

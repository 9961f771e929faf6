"""Counts what the judge lets pass, on full-size batteries (batteries.py).

    python -m vision_lang.shapes.measure --out=experiments/oracle/results.json [--n=1000]

On one CPU core about half an hour. Expect: clean >= 99.9 %, noisy and blurred >= 99 % at each
resolution; of every wrong kind 0; of the unrelated pictures only what chance makes right.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from vision_lang.shapes.batteries import RIGHT, UNRELATED, WRONG, picture
from vision_lang.shapes.oracle import grade, read, render_error

RESOLUTIONS = (32, 64, 128)


def measure(kind: str, count: int, resolution: int) -> dict[str, object]:
    """Grades pictures 0..count-1 of a kind.

    Returns:
      n, passed (graded right), unreadable (reason: how many), render_error (median and 95th
      percentile), milliseconds of processor time per reading.
    """
    passed, seconds = 0, 0.0
    reasons: Counter[str] = Counter()
    errors = []
    for number in range(count):
        image, stated = picture(kind, number, resolution)
        start = time.process_time()
        reading = read(image)
        seconds += time.process_time() - start
        passed += grade(reading, stated)["all_right"]
        if reading.reason is not None:
            reasons[reading.reason] += 1
        errors.append(render_error(image, reading))
    return {
        "n": count,
        "passed": passed,
        "unreadable": dict(reasons.most_common()),
        "render_error": {
            "median": round(float(np.median(errors)), 5),
            "p95": round(float(np.percentile(errors, 95)), 5),
        },
        "milliseconds": round(1000 * seconds / count, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--n", type=int, default=1000, help="pictures of each kind")
    args = parser.parse_args()
    jobs = [(kind, args.n, side) for side in RESOLUTIONS for kind in (*RIGHT, *WRONG)]
    # At each resolution 10,000 unrelated pictures in all.
    jobs += [(kind, args.n * 5 // 2, side) for side in RESOLUTIONS for kind in UNRELATED]
    results: dict[str, object] = {
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    for i, (kind, count, side) in enumerate(jobs):
        results[f"{side}/{kind}"] = row = measure(kind, count, side)
        print(
            f"[{i + 1}/{len(jobs)}] {side} px {kind}: {row['passed']} of {count}", file=sys.stderr
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

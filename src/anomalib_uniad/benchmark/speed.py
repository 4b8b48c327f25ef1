# SPDX-License-Identifier: Apache-2.0
"""Speed of exported files, when nothing else of the benchmark runs: those that are compared take turns.

    python -m anomalib_uniad.benchmark.speed IMAGES FOLDER...

Each ``FOLDER`` is that of a finished training. The last line of the output is JSON.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from anomalib_uniad.image_files import read_image

from .trainings import RESULT, SPEED, Training, read_json, write_json

_AT_A_TIME = 8  # files in memory
_SECONDS = 1.0  # of throughput


def groups(trainings: Sequence[Training]) -> Iterator[list[Training]]:
    """Finished trainings whose files are compared with each other, where one of them has not been measured so.

    Files of the same data and seed are together, the unified ones of all methods first.
    """
    together: dict[tuple[str, int], list[Training]] = {}
    for training in trainings:
        if (training.read(RESULT) or {}).get("exported"):
            together.setdefault((training.data, training.seed), []).append(training)
    for found in together.values():
        found.sort(key=lambda training: (training.category != "", training.category))  # stable: by method as it was
        for start in range(0, len(found), _AT_A_TIME):
            group = found[start : start + _AT_A_TIME]
            if any((training.read(SPEED) or {}).get("beside") != names(group) for training in group):
                yield group


def names(group: Sequence[Training]) -> list[str]:
    """What a group consists of."""
    return [training.label for training in group]


def measure(folders: Sequence[Path], timed_images: int) -> list[dict[str, float]]:
    """Measure exported files in turn.

    Args:
        folders (Sequence[Path]): Folders of finished trainings.
        timed_images (int): Number of images.

    Returns:
        list[dict[str, float]]: For each, ``latency_ms``, the median time from an image in memory to its result, one
        image at a time, and ``images_per_second`` with as many at a time as the processor takes best.
    """
    from anomalib_uniad.parity.models import ExportedModel
    from anomalib_uniad.parity.timing import latencies, throughput

    results = [read_json(folder / RESULT) or {} for folder in folders]
    models = [
        ExportedModel(folder / result["exported"], normalises=True)
        for folder, result in zip(folders, results, strict=True)
    ]
    paths = list(dict.fromkeys(path for result in results for path in result["images"]))
    chosen = [paths[number * len(paths) // timed_images] for number in range(timed_images)]
    value_range = next((model.value_range for model in models if model.value_range), None)
    images = [read_image(path, value_range) for path in chosen]
    seconds = latencies(models, images)
    rates = [throughput(model, images, _SECONDS) for model in models]
    return [
        {"latency_ms": round(1000 * latency, 3), "images_per_second": round(rate, 2)}
        for latency, rate in zip(seconds, rates, strict=True)
    ]


def measure_all(trainings: Sequence[Training], timed_images: int, say: Callable[[str], None]) -> None:
    """Measure all files that have not been measured beside those that they are compared with.

    Args:
        trainings (Sequence[Training]): Trainings of a benchmark.
        timed_images (int): Number of images.
        say (Callable[[str], None]): Shows a line.
    """
    for group in list(groups(trainings)):
        say(f"Measuring the speed of {len(group)} exported files ({group[0].data}, seed {group[0].seed})")
        folders = [str(training.folder) for training in group]
        command = [sys.executable, "-m", "anomalib_uniad.benchmark.speed", str(timed_images), *folders]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            errors = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            say(f"Not measured: {errors[-1]}")
            continue
        for training, found in zip(group, json.loads(lines[-1]), strict=True):
            write_json(training.folder / SPEED, {**found, "beside": names(group)})


if __name__ == "__main__":
    print(json.dumps(measure([Path(text) for text in sys.argv[2:]], int(sys.argv[1]))))  # noqa: T201

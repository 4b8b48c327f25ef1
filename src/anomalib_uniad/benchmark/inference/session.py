# SPDX-License-Identifier: Apache-2.0
"""One run of the benchmark: exports, measures, writes and shows."""

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.markdown import Markdown
from tqdm import tqdm

from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.benchmark.training.operations import matrix_rate
from anomalib_uniad.benchmark.training.rows import describe_device
from anomalib_uniad.metrics.run_files import versions

from . import profile, start, tables
from .command import Part, Variant
from .figure import draw
from .files import PAPER, SMALL, Files
from .speed import Eager, Exported, measure, supports_bf16

WHOLE = "whole"
PROFILED: tuple[Variant, ...] = ("f32", "bf16", "int8_ptq")
_IMAGES = 8
_START_ROUNDS = 3
_RATE = {"f32": torch.float32, "bf16": torch.bfloat16}


class Session:
    """Measures the parts of the benchmark.

    Args:
        output_dir (Path): Folder of the results.
        work_dir (Path | None): Folder that keeps the exported files; ``None`` is a temporary one.
        threads (int): Threads of torch and OpenVINO; 0 takes all cores.
        training_images (int): Number of images of which PatchCore's memory bank is as large.
        calibration_images (int): Number of generated images with which INT8 is calibrated.
        resume (bool): Whether rows that are there are kept and not measured again.
        seed (int): Seed of weights and images.
        quick (bool): Small models and numbers.
    """

    def __init__(
        self,
        output_dir: Path,
        work_dir: Path | None,
        threads: int,
        training_images: int,
        calibration_images: int,
        resume: bool,
        seed: int,
        quick: bool,
    ) -> None:
        self._output, self._work, self._threads = output_dir, work_dir, threads
        self._numbers = (training_images, calibration_images)
        self._resume, self._seed, self._quick = resume, seed, quick
        self._sizes = SMALL if quick else PAPER
        if threads:
            torch.set_num_threads(threads)
        self._device = describe_device(torch.device("cpu"))
        self._console = Console(width=None if sys.stdout.isatty() else 120)

    def run(self, parts: Sequence[Part], variants: Sequence[Variant], rounds: int, seconds: float) -> None:
        """Measure.

        Args:
            parts (Sequence[Part]): What to measure.
            variants (Sequence[Variant]): Variants of ``"speed"``.
            rounds (int): How often.
            seconds (float): About how long each variant in a round.
        """
        with ExitStack() as stack:
            folder = self._work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            files = Files(folder.resolve(), self._sizes, *self._numbers, self._seed)
            if "speed" in parts:
                self.speed(files, variants, rounds, seconds)
            if "profile" in parts:
                self.profile(files, variants)
            if "start" in parts:
                self.start(files, 1 if self._quick else _START_ROUNDS)

    def speed(self, files: Files, variants: Sequence[Variant], rounds: int, seconds: float) -> None:
        """Latency and throughput of all variants, in turn."""
        others = [name for name in variants if name != "torch" and (name != "bf16" or supports_bf16())]
        models: dict[str, Eager | Exported] = {"torch": Eager(files.uniad)}
        sizes: dict[str, int] = {}
        with tqdm(others, desc="Exporting") as bar:
            for name in bar:
                bar.set_postfix_str(name)
                file = files.openvino(name)
                models[name] = Exported(file, "bf16" if name == "bf16" else "f32", self._threads)
                sizes[name] = file.stat().st_size + file.with_suffix(".bin").stat().st_size
        done = self._start_table("inference_speed", ("variant", "round"))
        images = {size: self._images(size) for size in {files.size_of_images(name) for name in models}}
        with tqdm(total=rounds * len(models), desc="Speed") as bar:
            for number in range(1, rounds + 1):
                for name, model in models.items():
                    bar.set_postfix_str(name)
                    if (name, str(number)) not in done:
                        row = {"variant": name, "round": number}
                        row |= measure(model, images[files.size_of_images(name)], seconds)
                        row |= {"bank_vectors": files.bank(name), "size_bytes": sizes.get(name)}
                        self._save("inference_speed", [row], ("variant", "round"))
                    bar.update()
        self._show("inference_speed", tables.speed)

    def profile(self, files: Files, variants: Sequence[Variant]) -> None:
        """Time by part and type of layer, and the floor, of f32, bf16 and int8_ptq."""
        done = self._start_table("inference_profile", ("variant",))
        if not done:
            self._start_table("inference_floor", ())
        chosen = [name for name in PROFILED if name in variants and (name != "bf16" or supports_bf16())]
        parts = profile.parts_of(files.onnx)
        images = self._images(files.image_size) * (1 if self._quick else 5)
        with tqdm(chosen, desc="Profile") as bar:
            for name in bar:
                if (name,) in done:
                    continue
                file, precision = files.openvino(name), "bf16" if name == "bf16" else "f32"
                found = profile.profile(file, parts, images, precision, self._threads)
                total = sum(found.seconds.values())
                rows = [
                    {"variant": name, "part": part, "layer": layer, "ms": 1000 * value, "share": value / total}
                    for (part, layer), value in found.seconds.items()
                ]
                rate = matrix_rate(torch.device("cpu"), _RATE[name]) if name in _RATE else None
                self._save("inference_floor", floor_rows(name, found, rate), ("variant", "part"))
                self._save("inference_profile", rows, ("variant", "part", "layer"))
        layers, floor = (pd.read_csv(self._output / f"inference_{table}.csv") for table in ("profile", "floor"))
        draw(layers, floor, self._output / "inference_profile.png")
        self._show("inference_floor", tables.floor)

    def start(self, files: Files, rounds: int) -> None:
        """Seconds and memory of whole processes."""
        done = self._start_table("inference_start", ("method", "images", "round"))
        checkpoint, config = files.checkpoint()
        model = files.openvino("f32")
        counts = (1, 2 if self._quick else 20)
        with tqdm(total=rounds * len(counts) * len(start.METHODS), desc="Start") as bar:
            for number in range(1, rounds + 1):
                for count in counts:
                    for method in start.METHODS:
                        bar.set_postfix_str(f"{method}, {count} images")
                        if (method, str(count), str(number)) not in done:
                            with tempfile.TemporaryDirectory() as folder:
                                images = files.images(2 * count) / "cloth" / "train"  # half of them
                                arguments = start.command(
                                    method, model, checkpoint, config, images, Path(folder, "output")
                                )
                                row = {"method": method, "images": count, "round": number}
                                row |= start.run(arguments, Path(folder))
                            self._save("inference_start", [row], ("method", "images", "round"))
                        bar.update()
        self._show("inference_start", tables.start)

    def _images(self, size: tuple[int, int]) -> list[np.ndarray]:
        draw_numbers = np.random.default_rng(self._seed)
        return [draw_numbers.random((1, 3, *size), np.float32) for _ in range(_IMAGES)]

    def _start_table(self, name: str, case: Sequence[str]) -> set[tuple[str, ...]]:
        """Drop the rows of this device, or, to resume, tell the cases that are there."""
        path = self._output / f"{name}.csv"
        if not path.is_file():
            return set()
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        own = frame["device"] == self._device
        if self._resume:
            same = own & (frame["versions"] == _versions()) & (frame["seed"] == str(self._seed))
            return {tuple(row) for row in frame.loc[same, list(case)].itertuples(index=False)}
        frame[~own].to_csv(path, index=False)
        return set()

    def _save(self, name: str, rows: Sequence[Mapping[str, Any]], case: Sequence[str]) -> None:
        frame = pd.DataFrame(list(rows)).assign(
            backbone=self._sizes.backbone,
            image_size=self._sizes.uniad.get("image_size", 224),
            device=self._device,
            versions=_versions(),
            seed=self._seed,
            command=_command(),
        )
        add_rows(self._output / f"{name}.csv", frame, ("device", *case))

    def _show(self, name: str, table: Any) -> None:
        path = self._output / f"{name}.csv"
        self._console.print(Markdown(table(pd.read_csv(path))))
        self._console.print(f"Written to {path}.", soft_wrap=True)


def floor_rows(variant: str, found: profile.Profile, rate: float | None) -> list[dict[str, Any]]:
    """Time and operations of each part and of the whole, and the least possible time.

    Args:
        variant (str): The variant.
        found (profile.Profile): Its profile.
        rate (float | None): Operations per second of matrix products; ``None`` if it is not known.
    """
    rows = []
    for part in (*profile.PARTS, WHOLE):
        seconds = sum(value for (place, _), value in found.seconds.items() if part in (place, WHOLE))
        count = sum(value for place, value in found.operations.items() if part in (place, WHOLE))
        rows.append(
            {
                "variant": variant,
                "part": part,
                "ms": 1000 * seconds,
                "operations": count,
                "gflop_per_second": count / seconds / 1e9 if seconds else None,
                "matrix_gflop_per_second": rate / 1e9 if rate else None,
                "floor_ms": 1000 * count / rate if rate else None,
            }
        )
    return rows


def _versions() -> str:
    return f"{versions()}; openvino {version('openvino')}"


def _command() -> str:
    name = Path(sys.argv[0]).name
    program = ["python", "-m", "anomalib_uniad.benchmark.inference"] if name == "__main__.py" else [name]
    return shlex.join([*program, *sys.argv[1:]])

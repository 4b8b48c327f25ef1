# SPDX-License-Identifier: Apache-2.0
"""One run of the benchmark: measures, writes and shows."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown
from tqdm import tqdm

from . import floor, images, scaling, speed, tables
from .figure import draw_scaling
from .lightning_run import device_of
from .rows import save

# Few layers and channels, for `quick`.
SMALL: dict[str, Any] = {"hidden_dim": 32, "feedforward_dim": 64, "neighbor_size": 1}
SMALL_PLAIN: dict[str, Any] = {**SMALL, "neighbor_size": (1, 1), "backbone": "resnet18", "image_size": 64}


class Session:
    """Measures the parts of the benchmark.

    Args:
        device (str): ``"cpu"``, ``"cuda"`` or ``"auto"``.
        output_dir (Path): Folder of the results.
        work_dir (Path | None): Folder for images and caches during the measurement.
        seed (int): Seed of images, features and training.
        quick (bool): A small model and small numbers.

    Raises:
        ValueError: If there is no such device.
    """

    def __init__(self, device: str, output_dir: Path, work_dir: Path | None, seed: int, quick: bool) -> None:
        there = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        if device not in ("auto", *there):
            msg = f"device must be 'auto' or one of {', '.join(map(repr, there))} on this machine, got {device!r}."
            raise ValueError(msg)
        self.device = device_of(there[-1] if device == "auto" else device)
        self.output_dir = output_dir
        self.work_dir = work_dir
        self.seed = seed
        self.quick = quick
        self.console = Console(width=None if sys.stdout.isatty() else 120)

    def throughput(self, rounds: int, steps: int, image_pixels: int, num_workers: int, compiled: bool) -> None:
        """Training from images."""
        with tempfile.TemporaryDirectory(dir=self.work_dir) as folder:
            self.console.print(f"Writing PNG images of {image_pixels} px ...")
            count = speed.images_needed(steps, num_workers)
            paths = images.write_images(Path(folder, "images"), count, image_pixels, self.seed)
            setting = speed.Setting(
                paths,
                Path(folder, "images"),
                self.device,
                steps,
                num_workers,
                self.seed,
                model=self._model(),
                plain=SMALL_PLAIN if self.quick else None,
            )
            about = {"image_pixels": image_pixels, "bytes_per_image": round(images.mean_bytes(paths))}
            chosen = speed.variants(compiled)
            with tqdm(total=rounds * len(chosen), desc="Throughput") as bar:
                speed.compare(
                    setting,
                    chosen,
                    rounds,
                    lambda rows: self._save("speed", [row | about for row in rows], case=()),
                    lambda: _advance(bar),
                )
        self._show("training_speed", tables.speed)

    def floor(self, rounds: int, steps: int) -> None:
        """Where the time of a step goes."""
        with tqdm(total=rounds * len(floor.PRECISIONS), desc="Floor") as bar:
            for precision in floor.PRECISIONS:
                rows = floor.measure(
                    self.device, precision, rounds, steps, self.seed, self._model(), lambda: _advance(bar)
                )
                self._save("floor", rows, case=("dtype",))
        self._show("training_floor", tables.floor)

    def scaling(self, steps: int) -> None:
        """Number of images, image size, batch."""
        cases = scaling.scaling_cases(steps, self.quick)
        with tqdm(total=len(cases), desc="Scaling") as bar:
            for row in scaling.measure(cases, self._common(self.device), progress=lambda: _advance(bar)):
                # Images held and steps measured follow from the case, but for that series.
                case = ("series", "image_size", "batch_size", "cache")
                self._save("scaling", [row], case=(*case, "images") if row["series"] == "images" else case)
        self._show("training_scaling", tables.scaling)
        draw_scaling(tables.read(self._path("scaling")), self.output_dir / "training_scaling.png")

    def gpu(self, batches: Sequence[int], steps: int) -> None:
        """The size of MVTec AD on a GPU."""
        if not torch.cuda.is_available():
            self.console.print("There is no GPU that torch can use: the part 'gpu' is left out.")
            return
        device = device_of("cuda")
        rate = scaling.gpu_rate(device)
        cases = scaling.gpu_cases(batches, steps)
        with tqdm(total=len(cases), desc="GPU") as bar:
            for row in scaling.measure(cases, self._common(device), progress=lambda: _advance(bar)):
                self._save("gpu", [scaling.gpu_row(row, rate)], case=("batch_size", "compile_mode"), device=device)
        self._show("training_gpu", tables.gpu)

    def _model(self) -> dict[str, Any] | None:
        small = {"backbone": "resnet10_synthetic", "layers": (0, 1), "image_size": 64, **SMALL}
        return small if self.quick else None

    def _common(self, device: torch.device) -> dict[str, Any]:
        model = {name: value for name, value in (self._model() or {}).items() if name != "image_size"}
        return {"device": device.type, "seed": self.seed, "work_dir": self.work_dir, "model": model or None}

    def _path(self, name: str) -> Path:
        return self.output_dir / f"training_{name}.csv"

    def _save(
        self, name: str, rows: list[dict[str, Any]], case: Sequence[str], device: torch.device | None = None
    ) -> None:
        save(self._path(name), rows, case, device or self.device, self.seed)

    def _show(self, name: str, table: Any) -> None:
        path = self.output_dir / f"{name}.csv"
        if path.is_file():
            self.console.print(Markdown(table(tables.read(path))))
            self.console.print(f"Written to {path}.", soft_wrap=True)


def _advance(bar: tqdm) -> None:
    bar.update()

# SPDX-License-Identifier: Apache-2.0
"""Training from images: a plain loop, UniAD without cache and with it, on the same files."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from anomalib_uniad.data import MultiCategory
from anomalib_uniad.model import UniAD

from .lightning_run import BATCH_SIZE, MVTEC_IMAGES, PAPER, synchronize, train_steps
from .plain_loop import PlainLoop

PLAIN = "plain loop"
NO_CACHE = "UniAD without cache"
WARM_UP = 3


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        name (str): Its name in the results.
        precision (str): Lightning's name of the precision. Defaults to ``"32-true"``.
        arguments (Mapping[str, Any] | None): Arguments of UniAD; ``None`` is the plain loop. Defaults to ``None``.
    """

    name: str
    precision: str = "32-true"
    arguments: Mapping[str, Any] | None = None

    @property
    def cached(self) -> bool:
        """Whether it has a feature cache."""
        return (self.arguments or {}).get("feature_cache", "off") != "off"


def variants(compiled: bool) -> list[Variant]:
    """What is compared; the last one, ``torch.compile``, only if wanted."""
    cache = {"feature_cache": "memory"}
    found = [
        Variant(PLAIN),
        Variant(NO_CACHE, arguments={}),
        Variant("UniAD with cache", arguments=cache),
        Variant("UniAD with cache, bf16", "bf16-mixed", cache),
        Variant("UniAD with cache, bf16, compiled", "bf16-mixed", {**cache, "compile_mode": "default"}),
    ]
    return found if compiled else found[:-1]


@dataclass(frozen=True)
class Setting:
    """What is the same for all variants.

    Attributes:
        paths (Sequence[Path]): Training images.
        root (Path): Their folder, in the layout of MVTec AD.
        device (torch.device): Where to train.
        steps (int): Steps that are counted, per round.
        num_workers (int): Processes that read images.
        seed (int): Seed of the training.
        model (Mapping[str, Any] | None): Arguments of UniAD in place of the paper's, for tests. Defaults to ``None``.
        plain (Mapping[str, Any] | None): Arguments of the plain loop, for tests. Defaults to ``None``.
    """

    paths: Sequence[Path]
    root: Path
    device: torch.device
    steps: int
    num_workers: int
    seed: int
    model: Mapping[str, Any] | None = None
    plain: Mapping[str, Any] | None = None


def images_needed(steps: int, num_workers: int) -> int:
    """Images for one round: more than are used, so that the workers have something to read until its end."""
    return (WARM_UP + steps + 2 * num_workers + 1) * BATCH_SIZE


def measure_round(setting: Setting, variant: Variant) -> tuple[float, float | None]:
    """Train a variant for some steps.

    Args:
        setting (Setting): What is the same for all.
        variant (Variant): The variant.

    Returns:
        tuple[float, float | None]: Seconds per step, and seconds for building the cache if it has one.
    """
    if variant.arguments is None:
        return _plain(setting), None
    model = UniAD(**{**PAPER, "seed": setting.seed, **(setting.model or {}), **variant.arguments})
    datamodule = MultiCategory(
        "MVTecAD", root=setting.root, train_batch_size=BATCH_SIZE, num_workers=setting.num_workers
    )
    times = train_steps(model, datamodule, setting.device, variant.precision, WARM_UP, setting.steps)
    return times.mean, max(times.before - times.mean, 0.0) if variant.cached else None


def _plain(setting: Setting) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        loop = PlainLoop(setting.paths, setting.device, BATCH_SIZE, setting.num_workers, **(setting.plain or {}))
        steps = loop.steps()
        for _ in range(WARM_UP):
            next(steps)
        synchronize(setting.device)
        start = time.perf_counter()
        for _ in range(setting.steps):
            next(steps)
        synchronize(setting.device)
        return (time.perf_counter() - start) / setting.steps


def compare(
    setting: Setting,
    chosen: Sequence[Variant],
    rounds: int,
    save: Callable[[list[dict[str, Any]]], None],
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Measure all variants in turn, several times, so that what disturbs the machine disturbs all.

    Args:
        setting (Setting): What is the same for all.
        chosen (Sequence[Variant]): The variants; the plain loop and the one without cache have to be among them.
        rounds (int): How often.
        save (Callable[[list[dict[str, Any]]], None]): Gets the results after each round.
        progress (Callable[[], None]): Called after each measurement. Defaults to nothing.
    """
    seconds: dict[str, list[float]] = {variant.name: [] for variant in chosen}
    builds: dict[str, list[float]] = {variant.name: [] for variant in chosen}
    for _ in range(rounds):
        measured = []
        for variant in chosen:
            measured.append(measure_round(setting, variant))
            progress()
        for variant, (step, build) in zip(chosen, measured, strict=True):  # only whole rounds
            seconds[variant.name].append(step)
            if build is not None:
                builds[variant.name].append(build)
        save([_row(setting, variant, seconds, builds[variant.name]) for variant in chosen])


def _row(setting: Setting, variant: Variant, seconds: Mapping[str, list[float]], builds: list[float]) -> dict[str, Any]:
    steps_per_epoch = math.ceil(MVTEC_IMAGES / BATCH_SIZE)
    own = seconds[variant.name]
    row: dict[str, Any] = {
        "variant": variant.name,
        "dtype": "bfloat16" if variant.precision.startswith("bf16") else "float32",
        "seconds_per_step": median(own),
        "seconds_min": min(own),
        "seconds_max": max(own),
        "epochs_per_hour": 3600 / (steps_per_epoch * median(own)),
    }
    for label, name in (("plain", PLAIN), ("no_cache", NO_CACHE)):
        ratios = [other / mine for other, mine in zip(seconds[name], own, strict=True)]
        row |= {f"{label}_ratio": median(ratios), f"{label}_ratio_min": min(ratios), f"{label}_ratio_max": max(ratios)}
    if builds:
        build = median(builds) / len(setting.paths)  # seconds per image
        row["build_images_per_second"] = 1 / build
        row["build_in_epochs_without_cache"] = build * MVTEC_IMAGES / (steps_per_epoch * median(seconds[NO_CACHE]))
    return row | {
        "images": len(setting.paths),
        "batch_size": BATCH_SIZE,
        "num_workers": setting.num_workers,
        "rounds": len(own),
        "steps": setting.steps,
    }

# SPDX-License-Identifier: Apache-2.0
"""How fast UniAD trains on this machine, at the paper's size and with the fast recipe.

python benchmarks/training.py                                # everything, about an hour on two cores
python benchmarks/training.py --parts [step,embedding,floor] # a step of the fast recipe, a few minutes
python benchmarks/training.py --parts [gpu]                  # MVTec AD's size on a CUDA GPU, a few minutes
python benchmarks/training.py --quick true                   # small numbers that only show that it runs
"""

import logging
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, get_args

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler: nothing of its own on the terminal

import numpy as np
import pandas as pd
import torch
import yaml
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.training.cached_dataset import CachedBatch
from anomalib_uniad.training.precision import bfloat16_is_faster
from harness import (
    RESULTS,
    Memory,
    add_rows,
    apart,
    at_least,
    find_device,
    in_turn,
    matrix_rate,
    origin,
    quiet,
    ratios,
    show,
    synchronize,
    write_images,
)

logger = logging.getLogger(__name__)

Part = Literal["throughput", "step", "embedding", "floor", "scaling", "gpu"]
Row = dict[str, Any]

# The model at the paper's size, without weights from a hub and without checkpoints; and a small one for --quick.
PAPER: Row = {"backbone": "tf_efficientnet_b4", "pre_trained": False, "resume_interval": 0}
SMALL: Row = {**PAPER, "backbone": "resnet18", "image_size": 64, "hidden_dim": 32, "feedforward_dim": 64}
SMALL |= {"neighbor_size": 1}
FAST = Path(__file__).parents[1] / "configs" / "model" / "uniad_fast.yaml"
SMALL_PLAIN: Row = {"backbone": "resnet18", "image_size": 64, "dim": 32, "inner": 64, "window": 1}
MVTEC_IMAGES = 3629  # training images of MVTec AD
BATCH_SIZE = 8
PLAIN, NO_CACHE = "plain loop", "UniAD without cache"


def train(
    parts: Sequence[Part] = get_args(Part),
    rounds: int = 5,
    steps: int = 8,
    image_pixels: int = 1024,
    num_workers: int = 2,
    gpu_batches: Sequence[int] = (8, 64),
    gpu_steps: int = 300,
    device: str = "auto",
    output_dir: Path = RESULTS,
    work_dir: Path | None = None,
    seed: int = 0,
    quick: bool = False,
) -> None:
    """Measure how fast UniAD trains, and write csv files and a figure.

    Images and features are generated; nothing is downloaded. Times are those of Lightning's trainer with UniAD's
    arguments, without validation and checkpoints. What was measured before an interruption is kept, and rows of the
    same case on the same device are replaced.

    Args:
        parts: "throughput": from images, with and without cache and against a plain loop. "step": the fast recipe
            with each optimizer and precision. "embedding": images through its backbone, some at a time. "floor": where
            the time of its step goes. "scaling": number of images, image size, batch. "gpu": MVTec AD's size on a GPU;
            left out where there is none.
        rounds: How often each variant of "throughput", "step" and "embedding" is measured, in turn.
        steps: Steps per measurement.
        image_pixels: Height and width of the generated PNG images.
        num_workers: Processes that read images, for all variants.
        gpu_batches: Images per step on the GPU.
        gpu_steps: Steps per measurement on the GPU.
        device: Where to measure everything but "gpu": "cpu", "cuda", or "auto", which takes a GPU if there is one.
        output_dir: Folder of the results; with quick, the folder "quick" in it.
        work_dir: Folder for images and features during the measurement, on a disk with 3 GB free; default: the
            system's temporary folder.
        seed: Seed of images, features and training.
        quick: Small numbers that only show that everything runs.
    """
    if quick:
        rounds, steps, image_pixels, gpu_steps, output_dir = 1, 3, min(image_pixels, 128), 10, output_dir / "quick"
    at_least(1, rounds=rounds, steps=steps, gpu_steps=gpu_steps, image_pixels=image_pixels)
    at_least(0, num_workers=num_workers)
    where, model = find_device(device), {**(SMALL if quick else PAPER), "seed": seed}
    common = {"work_dir": work_dir, "model": model, "seed": seed}
    if "throughput" in parts:
        path = output_dir / "training_speed.csv"
        for rows in throughput(where, rounds, steps, image_pixels, num_workers, quick, **common):
            add_rows(path, [{**row, **origin(where, seed)} for row in rows], ("device",))
        show(path, ("device", "variant", "seconds_per_step", "plain_ratio", "no_cache_ratio"))
    fast = fast_recipe(seed, quick)
    if "step" in parts:
        path = output_dir / "training_step.csv"
        for rows in compare_steps(where, rounds, steps, fast, seed):
            add_rows(path, [{**row, **origin(where, seed)} for row in rows], ("device",))
        show(path, ("device", "variant", "seconds_per_step", "first_ratio"))
    if "embedding" in parts:
        path = output_dir / "training_embedding.csv"
        for rows in embed(where, rounds, fast, seed):
            add_rows(path, [{**row, **origin(where, seed)} for row in rows], ("device",))
        show(path, ("device", "at_once", "seconds_per_image", "all_ratio"))
    if "floor" in parts:
        path = output_dir / "training_floor.csv"
        for precision in ("32-true", "bf16-mixed"):
            rows = floor(where, precision, rounds // 2 + 1, steps, fast, seed)
            rows = [{"recipe": "fast", **row} for row in rows]
            add_rows(path, [{**row, **origin(where, seed)} for row in rows], ("device", "recipe", "dtype"))
        show(path, ("device", "dtype", "part", "seconds_per_step", "share_of_step"))
    if "scaling" in parts:
        path = output_dir / "training_scaling.csv"
        for row in measure_cases(scaling_cases(steps, quick), {"device": where.type, **common}, "Scaling"):
            # Images held follow from the case, but in that series.
            case = ("series", "image_size", "batch_size", "cache", *(["images"] if row["series"] == "images" else []))
            add_rows(path, [{**row, **origin(where, seed)}], ("device", *case))
        show(path, ("device", "series", "images", "image_size", "batch_size", "cache", "seconds_per_step"))
        draw_scaling(pd.read_csv(path), output_dir / "training_scaling.png")
    if "gpu" in parts and torch.cuda.is_available():
        measure_gpu(output_dir / "training_gpu.csv", find_device("cuda"), gpu_batches, gpu_steps, common)
    elif "gpu" in parts:
        print("There is no GPU that torch can use: the part 'gpu' is left out.")


def fast_recipe(seed: int, quick: bool) -> Row:
    """Arguments of the fast recipe, for features that are there already."""
    arguments = yaml.safe_load(FAST.read_text())["init_args"] | (SMALL if quick else {})
    # The rate at which a step is taken changes nothing about its time.
    return {**arguments, "pre_trained": False, "feature_cache": "off", "resume_interval": 0, "seed": seed} | {
        "lr_schedule": "step",
        "lr_warmup_epochs": 0.0,
        "auto_precision": False,
    }


# Training for some steps, as users do.


class StepTimer(Callback):
    """Takes the time at the end of each training step; a GPU is waited for where counting begins and ends."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.waits = (warm_up, warm_up + steps)
        self.times: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del trainer, outputs, batch, batch_idx
        if len(self.times) + 1 in self.waits:
            synchronize(pl_module.device)
        self.times.append(time.perf_counter())


def train_steps(
    model: UniAD,
    data: LightningDataModule,
    device: torch.device,
    precision: Any,
    warm_up: int,
    steps: int,
) -> tuple[list[float], float]:
    """Train with Lightning's trainer and the arguments that the model wants, without validation and checkpoints.

    Returns the seconds of each step after the warm-up, of which on a GPU only the mean means something, and the
    seconds from the start of the training to the end of its first step.
    """
    timer = StepTimer(warm_up, steps)
    with quiet():
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1,
            precision=precision,
            max_epochs=-1,
            max_steps=warm_up + steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timer],
            **model.trainer_arguments,
        )
        start = time.perf_counter()
        trainer.fit(model, datamodule=data)
    times = timer.times
    counted = zip(times[warm_up - 1 :], times[warm_up:], strict=False)
    return [end - begin for begin, end in counted], times[0] - start


class FeatureBatches(LightningDataModule):
    """Batches like those of the feature cache, of features (n, C, h, w) in memory or on a disk."""

    def __init__(self, features: torch.Tensor, batch_size: int) -> None:
        super().__init__()
        self.features = features
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(len(self.features)), self.batch_size, shuffle=True, collate_fn=self.batch)

    def batch(self, rows: list[int]) -> CachedBatch:
        index = torch.tensor(rows, device=self.features.device)
        return CachedBatch(image=torch.zeros(1).expand(len(rows), 3, 1, 1), features=self.features[index])


class GeneratedFeatures(FeatureBatches):
    """Features of images that never were: in memory, or in a file in ``folder``.

    ``shape`` is images, channels, height and width. On a GPU, the features lie there as well.
    """

    def __init__(
        self, shape: tuple[int, ...], batch_size: int, device: torch.device, seed: int, folder: Path | None = None
    ) -> None:
        block = np.random.default_rng(seed).standard_normal((min(64, shape[0]), *shape[1:]), dtype=np.float32)
        file = folder and folder / "features.npy"
        opened = np.empty(shape, np.float32) if file is None else np.lib.format.open_memmap(file, "w+", "f4", shape)
        for start in range(0, shape[0], len(block)):
            opened[start : start + len(block)] = block[: shape[0] - start]
        features = torch.from_numpy(opened if file is None else np.load(file, mmap_mode="c"))
        super().__init__(features.to(device) if device.type == "cuda" else features, batch_size)


def feature_shape(model: UniAD, images: int) -> tuple[int, ...]:
    """Shape of the features of so many images: ``(images, C, h, w)``."""
    return (images, sum(model.model.backbone.channels), *model.model.grid_size)


def without_images(arguments: Mapping[str, Any]) -> UniAD:
    """A model for features that are there already: nothing is left to do with images."""
    return UniAD(**arguments, pre_processor=False, visualizer=False)


def count_operations(model: UniAD, batch: int) -> tuple[int, int, int]:
    """Operations of the matrix products of a training step; an addition counts as one.

    All of them, those of attention, and those of the optimizer.
    """
    features = torch.randn(feature_shape(model, batch), device=model.device)
    model.train()
    # On a CPU in float32, attention is one kernel, which the counter does not know; in bfloat16 it is made of products.
    products = torch.autocast("cpu", torch.bfloat16, enabled=model.device.type == "cpu")
    with FlopCounterMode(display=False) as counter:
        with products:
            reconstruction = model.model.reconstruct(features)
        model.loss(reconstruction, features).backward()
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for name, count in counts.items() if "bmm" in name or "attention" in name)
    optimizer = optimizer_of(model)
    with FlopCounterMode(display=False) as update:
        optimizer.step()
    model.zero_grad()
    return sum(counts.values()) + update.get_total_flops(), attention, update.get_total_flops()


def optimizer_of(model: UniAD) -> torch.optim.Optimizer:
    """The optimizer that the model has in a training on its device."""
    with quiet():
        accelerator = "gpu" if model.device.type == "cuda" else "cpu"
        model.trainer = Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False)
    return model.configure_optimizers()["optimizer"]


# Part "throughput": from images, against a plain loop.


def throughput(
    device: torch.device,
    rounds: int,
    steps: int,
    image_pixels: int,
    num_workers: int,
    quick: bool,
    work_dir: Path | None,
    model: Row,
    seed: int,
) -> Iterator[list[Row]]:
    """Train a plain loop, UniAD without cache and with it on the same files, in turn; yields rows after each round."""
    cache = {"feature_cache": "memory"}
    variants = {
        NO_CACHE: ("32-true", {}),
        "UniAD with cache": ("32-true", cache),
        "UniAD with cache, bf16": ("bf16-mixed", cache),
    }
    warm_up = 3
    # More images than are used, so that the workers have something to read until the end.
    count = (warm_up + steps + 2 * num_workers + 1) * BATCH_SIZE
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        paths = write_images(Path(folder), count, image_pixels, seed)

        def plain() -> tuple[float, None]:
            from plain_uniad import plain_loop

            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                loop = plain_loop(paths, device, BATCH_SIZE, num_workers, **(SMALL_PLAIN if quick else {}))
                for _ in islice(loop, warm_up):
                    pass
                synchronize(device)
                start = time.perf_counter()
                for _ in islice(loop, steps):
                    pass
                synchronize(device)
                return (time.perf_counter() - start) / steps, None

        def ours(precision: str, arguments: Row) -> tuple[float, float | None]:
            data = MultiCategory("MVTecAD", root=folder, train_batch_size=BATCH_SIZE, num_workers=num_workers)
            seconds, before = train_steps(UniAD(**model, **arguments), data, device, precision, warm_up, steps)
            return mean(seconds), max(before - mean(seconds), 0.0) if "feature_cache" in arguments else None

        measures = {PLAIN: plain, **{name: partial(ours, *variant) for name, variant in variants.items()}}
        about = {
            "images": count,
            "batch_size": BATCH_SIZE,
            "num_workers": num_workers,
            "steps": steps,
            "image_pixels": image_pixels,
            "bytes_per_image": round(mean(path.stat().st_size for path in paths)),
        }
        for results in in_turn(measures, rounds, "Throughput"):
            yield [{**row, **about} for row in throughput_rows(results, count)]


def throughput_rows(results: Mapping[str, Sequence[tuple[float, float | None]]], images: int) -> list[Row]:
    """Rows of the variants, from seconds per step and seconds to build the cache (if there is one) in each round."""
    steps_per_epoch = math.ceil(MVTEC_IMAGES / BATCH_SIZE)
    seconds = {name: [step for step, _ in rounds] for name, rounds in results.items()}
    rows = []
    for name, own in seconds.items():
        row: Row = {
            "variant": name,
            "dtype": "bfloat16" if "bf16" in name else "float32",
            "seconds_per_step": median(own),
            "seconds_min": min(own),
            "seconds_max": max(own),
            "epochs_per_hour": 3600 / (steps_per_epoch * median(own)),
            "rounds": len(own),
            **ratios("plain", seconds[PLAIN], own),
            **ratios("no_cache", seconds[NO_CACHE], own),
        }
        builds = [build for _, build in results[name] if build is not None]
        if builds:
            build = median(builds) / images  # seconds per image
            epoch = steps_per_epoch * median(seconds[NO_CACHE])
            row |= {"build_images_per_second": 1 / build, "build_in_epochs_without_cache": build * MVTEC_IMAGES / epoch}
        rows.append(row)
    return rows


# Part "step": the fast recipe with each optimizer and precision.


def compare_steps(device: torch.device, rounds: int, steps: int, fast: Row, seed: int) -> Iterator[list[Row]]:
    """Train for some steps with cached features, all variants in turn; yields rows after each round."""
    faster = bfloat16_is_faster(device)
    variants: dict[str, Row] = {
        "AdamW, float32": {"optimizer": "adamw"},
        "Muon, float32": {"optimizer": "muon"},
        "AdamW, as measured": {"optimizer": "adamw", "auto_precision": True},
        "Muon, as measured": {"optimizer": "muon", "auto_precision": True},
    }

    def measure(name: str) -> float:
        model = without_images({**fast, **variants[name]})
        data = GeneratedFeatures(feature_shape(model, max(200, 2 * steps * BATCH_SIZE)), BATCH_SIZE, device, seed)
        return mean(train_steps(model, data, device, "32-true", 2, steps)[0])

    reference, *_ = variants
    for seconds in in_turn({name: partial(measure, name) for name in variants}, rounds, "Step"):
        yield [
            {
                "variant": name,
                "dtype": "bfloat16" if "auto_precision" in variants[name] and faster else "float32",
                "seconds_per_step": median(own),
                "seconds_min": min(own),
                "seconds_max": max(own),
                **ratios("first", seconds[reference], own),
                "batch_size": BATCH_SIZE,
                "rounds": len(own),
                "steps": steps,
            }
            for name, own in seconds.items()
        ]


# Part "embedding": features of images, once.


def embed(device: torch.device, rounds: int, fast: Row, seed: int) -> Iterator[list[Row]]:
    """Embed the same images some at a time, in turn; yields rows after each round."""
    model = without_images({**fast, "seed": seed}).to(device).eval()
    images = torch.rand(16, 3, *model.model.image_size, device=device)

    def measure(at_once: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        with torch.inference_mode():
            for some in images.split(at_once):
                model.model.neck(model.model.backbone(some))
        synchronize(device)
        return (time.perf_counter() - start) / len(images)

    sizes = {str(at_once): at_once for at_once in (16, 8, 4, 2, 1)}
    for seconds in in_turn({name: partial(measure, size) for name, size in sizes.items()}, rounds, "Embedding"):
        yield [
            {
                "at_once": sizes[name],
                "seconds_per_image": median(own),
                **ratios("all", seconds["16"], own),
                "image_size": " x ".join(map(str, model.model.image_size)),
                "rounds": len(own),
                "dtype": "float32",
            }
            for name, own in seconds.items()
        ]


# Part "floor": where the time of a step goes.

LINEAR, PRODUCTS = "matrix products of linear layers", "matrix products of attention"
WEIGHTS, RANDOM = "softmax, mask and dropout of attention weights", "random numbers for dropout and jitter"
NORMS, OTHER = "layer norms", "other elementwise operations, copies"
DATA, UPDATE = "reading batches from the cache", "clipping and optimizer"
LIGHTNING, STEP, FLOOR = "Lightning and callbacks", "step", "floor: operations over matrix rate"


def floor(device: torch.device, precision: str, rounds: int, steps: int, model: Row, seed: int) -> list[Row]:
    """A row for each part of a training step with cached features; the last two are the whole step and the floor."""
    uniad = without_images(model)
    data = GeneratedFeatures(feature_shape(uniad, max(200, 2 * steps * BATCH_SIZE)), BATCH_SIZE, device, seed)
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
    measures = {
        "rate": partial(matrix_rate, device, dtype),
        "iteration": partial(matrix_rate, device, torch.float32),  # Muon's, without auto_precision
        "step": lambda: mean(train_steps(without_images(model), data, device, precision, 2, steps)[0]),
        "parts": lambda: break_down(uniad, data, device, dtype, 2, steps)[0],
    }
    *_, found = in_turn(measures, rounds, f"Floor, {precision}")
    step, rate, parts = median(found["step"]), max(found["rate"]), found["parts"]
    seconds = {name: median(part[name] for part in parts) for name in parts[0]}
    # The difference of each round: what disturbs the machine disturbs both.
    pairs = zip(found["step"], parts, strict=True)
    seconds[LIGHTNING] = median(whole - sum(part.values()) for whole, part in pairs)
    total, attention, update = count_operations(uniad, BATCH_SIZE)
    linear = total - attention - update
    least = (total - update) / rate + update / max(found["iteration"])
    operations = {LINEAR: linear, PRODUCTS: attention, UPDATE: update, STEP: total, FLOOR: total}
    return [
        {
            "dtype": str(dtype).removeprefix("torch."),
            "part": name,
            "seconds_per_step": value,
            "share_of_step": value / step,
            "operations": operations.get(name) or None,
            "gflop_per_second": operations[name] / value / 1e9 if operations.get(name) else None,
            "batch_size": BATCH_SIZE,
            "rounds": rounds,
            "steps": steps,
        }
        for name, value in {**seconds, STEP: step, FLOOR: least}.items()
    ]


def break_down(
    model: UniAD, data: GeneratedFeatures, device: torch.device, dtype: torch.dtype, warm_up: int, steps: int
) -> tuple[dict[str, float], float]:
    """Measure the parts of a training step without Lightning.

    Returns part -> seconds, and the share of attention in forward and backward: products, softmax, mask, dropout.
    """
    model = model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_of(model)
    batches = chain.from_iterable(data.train_dataloader() for _ in repeat(None))

    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    def forward_backward(features: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            target = model.model.normalise(features)
            loss = model.loss(model.model.reconstruct(target), target)
        loss.backward()

    marks = []
    for _ in range(warm_up + steps):
        times = [now()]
        features = next(batches).features.to(device)
        times.append(now())
        forward_backward(features)
        times.append(now())
        if model.gradient_clip_norm:
            torch.nn.utils.clip_grad_norm_(trained, model.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        times.append(now())
        marks.append(times)
    reading, gradients, update = (median(times[i + 1] - times[i] for times in marks[warm_up:]) for i in range(3))

    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda], record_shapes=True) as profiler:
        for _ in range(max(1, steps // 3)):
            forward_backward(features)
            optimizer.zero_grad()
        synchronize(device)
    tokens = math.prod(model.model.grid_size)
    weights = len(features) * int(model.hparams["num_heads"]) * tokens**2
    parts = dict.fromkeys((LINEAR, PRODUCTS, WEIGHTS, RANDOM, NORMS, OTHER), 0.0)
    attention: dict[bool, float] = defaultdict(float)
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.device_type == torch.autograd.DeviceType.CPU:  # a kernel's time is also that of what started it
            seconds = event.self_device_time_total if cuda else event.self_cpu_time_total
            part, of_attention = classify(event.key, event.input_shapes or [], tokens, weights)
            parts[part] += seconds
            attention[of_attention] += seconds
    # A profile says how time is divided; it makes everything slower, so how much there is was measured without it.
    profiled = sum(parts.values())
    scaled = {name: gradients * seconds / profiled for name, seconds in parts.items()}
    return {DATA: reading, **scaled, UPDATE: update}, attention[True] / profiled


def classify(name: str, shapes: Sequence[Any], tokens: int, weights: int) -> tuple[str, bool]:
    """Tell to which part of the step an operation of the profile belongs, and whether it is work on attention weights.

    ``weights`` is the number of attention weights of a layer, over all heads and images of a batch.

    Example:
        >>> classify("aten::bmm", [[64, 196, 32], [64, 32, 196]], tokens=196, weights=64 * 196**2)
        ('matrix products of attention', True)
    """
    if "attention" in name or name in {"aten::bmm", "aten::baddbmm"}:
        return PRODUCTS, True
    if name in {"aten::mm", "aten::addmm", "aten::matmul", "aten::linear"}:
        return LINEAR, False
    sizes = [shape for shape in shapes if shape and all(isinstance(length, int) for length in shape)]
    elements = max(map(math.prod, sizes), default=0)
    if name.startswith(("aten::random_", "aten::bernoulli", "aten::normal_", "aten::ge", "aten::native_dropout")):
        return RANDOM, elements in {weights, (weights + 3) // 4}  # the package's dropout draws for four at once
    if "layer_norm" in name:
        return NORMS, False
    # All weights of a layer, or its mask: activations may have as many channels as there are tokens.
    if elements == weights or [tokens, tokens] in map(list, sizes):
        return WEIGHTS, True
    return OTHER, False


# Parts "scaling" and "gpu": with generated features, each case in a process of its own.


def scaling_cases(steps: int, quick: bool = False) -> list[Row]:
    """What is measured: each case grows one thing, the others stay at the paper's."""
    size = 64 if quick else 224
    cases: list[Row] = []
    for images in (16, 32) if quick else (500, 2000, 8000):
        cases += [{"series": "images", "images": images, "cache": cache} for cache in ("memory", "disk")]
    cases += [
        {"series": "image size", "image_size": s, "profile_steps": 3} for s in ((64, 96) if quick else (224, 320, 448))
    ]
    cases += [{"series": "batch", "batch_size": batch} for batch in ((1, 2) if quick else (1, 8, 32, 64))]
    cases = [{"image_size": size, "batch_size": BATCH_SIZE, "cache": "memory", **case} for case in cases]
    for case in cases:
        work = case["batch_size"] / BATCH_SIZE * (case["image_size"] / 224) ** 2
        case["steps"] = max(3, min(steps, math.ceil(steps / work)))
        case.setdefault("images", case["batch_size"] * (case["steps"] + 3))  # one epoch is long enough
    return cases


def gpu_cases(batches: Sequence[int], steps: int) -> list[Row]:
    """What is measured on a GPU: about MVTec AD's number of images, in bfloat16."""
    return [
        # Whole batches alone, since the last one of an epoch would be compiled for itself.
        {"batch_size": batch, "compile_mode": mode, "images": MVTEC_IMAGES // batch * batch, "steps": steps}
        | {"precision": "bf16-mixed", "warm_up": 30}
        for batch in batches
        for mode in (None, "default", "reduce-overhead")
    ]


def measure_cases(cases: Sequence[Row], common: Row, label: str) -> Iterator[Row]:
    """Measure one case after the other; yields it with what was measured. One that fails is reported and left out."""
    with tqdm(cases, desc=label) as bar:
        for case in bar:
            arguments = {name: value for name, value in case.items() if name != "series"}
            bar.set_postfix_str(", ".join(f"{value}" for value in case.values()))
            try:
                values = apart(measure_features, {**arguments, **common})
            except (RuntimeError, ChildProcessError) as error:
                logger.warning("%s: %s", case, error)
            else:
                yield {**case, **values}


def measure_features(
    images: int,
    batch_size: int,
    steps: int,
    model: Row,
    image_size: int | None = None,
    precision: str = "32-true",
    compile_mode: str | None = None,
    cache: Literal["memory", "disk"] = "memory",
    warm_up: int = 2,
    profile_steps: int = 0,
    device: str = "cpu",
    work_dir: Path | None = None,
    seed: int = 0,
) -> Row:
    """Train UniAD for some steps on generated features.

    Args:
        images: Images that the cache holds.
        batch_size: Images per step.
        steps: Steps that are counted, after ``warm_up`` others.
        model: Arguments of UniAD.
        image_size: Height and width of the images that the features would be of; ``None`` is the model's.
        precision: Lightning's name of the precision.
        compile_mode: Compile the step in this mode.
        cache: Features in memory or in a file in ``work_dir``.
        warm_up: Steps that are not counted.
        profile_steps: Steps of a profile that tells the share of attention; 0 for none.
        device: Where to train: "cpu" or "cuda".
        work_dir: Where the file is for the time of the measurement.
        seed: Seed of features and training.
    """
    where = find_device(device)
    if image_size is not None:
        model = {**model, "image_size": image_size}
    uniad = without_images({**model, "compile_mode": compile_mode})
    memory = Memory(where)
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        file = Path(folder) if cache == "disk" else None
        data = GeneratedFeatures(feature_shape(uniad, images), batch_size, where, seed, file)
        start = time.perf_counter()
        for _ in data.train_dataloader():
            pass
        reading = time.perf_counter() - start
        times, before = train_steps(uniad, data, where, precision, warm_up, steps)
        seconds = mean(times) if where.type == "cuda" else median(times)  # the median leaves out interruptions
        values: Row = {
            "dtype": "bfloat16" if precision.startswith("bf16") else "float32",
            "tokens": math.prod(uniad.model.grid_size),
            "seconds_per_step": seconds,
            "seconds_min": min(times),
            "seconds_max": max(times),
            "images_per_second": batch_size / seconds,
            "seconds_per_epoch": seconds * math.ceil(images / batch_size),
            "reading_seconds_per_epoch": reading,
            "seconds_to_first_step": before,
            "disk_bytes": sum(path.stat().st_size for path in Path(folder).iterdir()),
            "of_it_files_bytes": memory.files(),
            "peak_memory_bytes": memory.peak(),
        }
        if profile_steps:
            dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float32
            values["attention_of_time"] = break_down(uniad, data, where, dtype, 1, profile_steps)[1]
    total, attention, _ = count_operations(uniad, batch_size)
    return {**values, "operations_per_step": total, "attention_of_operations": attention / total}


def measure_gpu(path: Path, device: torch.device, batches: Sequence[int], steps: int, common: Row) -> None:
    """Measure the cases of a GPU and write ``training_gpu.csv``."""
    rate = matrix_rate(device, torch.bfloat16)
    for row in measure_cases(gpu_cases(batches, steps), {"device": device.type, **common}, "GPU"):
        seconds = row["seconds_per_step"]
        row |= {
            "compile_mode": row["compile_mode"] or "",
            "steps_per_second": 1 / seconds,
            "minutes_for_1000_epochs": 1000 * math.ceil(MVTEC_IMAGES / row["batch_size"]) * seconds / 60,
            "matrix_gflop_per_second": rate / 1e9,
            "utilisation": row["operations_per_step"] / seconds / rate,
            **origin(device, common["seed"]),
        }
        add_rows(path, [row], ("device", "batch_size", "compile_mode"))
    if path.is_file():
        show(path, ("device", "batch_size", "compile_mode", "steps_per_second", "utilisation"))


def draw_scaling(frame: pd.DataFrame, path: Path) -> None:
    """Draw time and memory over image size, images and batch, and the share of attention, for the last device."""
    from matplotlib.figure import Figure

    frame = frame[frame["device"] == frame["device"].iloc[-1]]
    figure = Figure(figsize=(11, 7), layout="constrained")
    share, *others = figure.subplots(2, 2).flat
    sizes = frame[frame["series"] == "image size"].sort_values("image_size")
    # Operations of attention per token grow with the number of tokens, those of the rest do not.
    first, sides = sizes.iloc[0], np.arange(96, 1025, 16)
    growth = (1 / first["attention_of_operations"] - 1) * first["tokens"]
    share.plot(sides, 100 / (1 + growth / (sides / 16) ** 2), color="tab:blue", label="of the operations (formula)")
    share.plot(sizes["image_size"], 100 * sizes["attention_of_time"], "o", color="tab:orange", label="of the time")
    share.axhline(50, color="grey", linewidth=0.8, linestyle=":")
    share.set(xlabel="image size, px", ylabel="attention's share, %", ylim=(0, 100))
    share.legend()
    plots = (
        ("image size", "image_size", "image size, px", "seconds_per_step"),
        ("images", "images", "images", "seconds_per_epoch"),
        ("batch", "batch_size", "images per step", "seconds_per_step"),
    )
    for axes, (series, column, label, seconds) in zip(others, plots, strict=True):
        rows, right = frame[frame["series"] == series].sort_values(column), axes.twinx()
        for cache, group in rows.groupby("cache"):
            line = "--" if cache == "disk" else "-"
            name = f", {cache}" if rows["cache"].nunique() > 1 else ""
            axes.plot(group[column], group[seconds], f"o{line}", color="tab:blue", label=f"time{name}")
            memory = group["peak_memory_bytes"] / 1e9
            right.plot(group[column], memory, f"s{line}", color="tab:red", label=f"memory{name}")
        axes.set(xlabel=label, ylim=(0, None))
        axes.set_ylabel(seconds.replace("_", " "), color="tab:blue")
        right.set_ylim(bottom=0)
        right.set_ylabel("peak memory, GB", color="tab:red")
        axes.legend(handles=[*axes.lines, *right.lines])
    figure.suptitle(str(frame["device"].iloc[-1]))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    auto_cli(train)

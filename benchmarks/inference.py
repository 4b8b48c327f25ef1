# SPDX-License-Identifier: Apache-2.0
"""How fast UniAD predicts on this CPU, at the paper's size, against torch, PatchCore and PaDiM.

python benchmarks/inference.py                       # about ten minutes on two idle cores, half of it exports
python benchmarks/inference.py --model lite --parts '[precision]'   # the small backbone, in all precisions
python benchmarks/inference.py --quick true          # small models that only show that it runs
"""

import ast
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import openvino as ov
import pandas as pd
import torch
import yaml
from anomalib.deploy import CompressionType
from anomalib.models import Padim, Patchcore
from jsonargparse import auto_cli
from lightning.pytorch import Trainer
from tqdm import tqdm

from anomalib_uniad import MultiCategory, UniAD
from harness import CPU, RESULTS, add_rows, at_least, in_turn, matrix_rate, origin, quiet, show, write_images

Part = Literal["speed", "precision", "profile", "start"]
# The first one is what the others are compared with.
Variant = Literal[
    "torch",
    "f32",
    "f16",
    "bf16",
    "int8",
    "int8_ptq",
    "any_size",
    "any_size_1024",
    "patchcore_10",
    "patchcore_1",
    "padim",
]
Row = dict[str, Any]
PROGRAMS = Path(sys.executable).parent

# Models with one backbone: arguments of UniAD, and layers of the strides of the others' own.
PAPER: Row = {
    "uniad": {"pre_trained": False, "backbone": "tf_efficientnet_b4", "image_size": 224},
    "patchcore_layers": ("blocks.2", "blocks.4"),  # strides 8 and 16
    "padim_layers": ("blocks.1", "blocks.2", "blocks.4"),  # strides 4, 8 and 16
    "padim_features": 100,
}
# EfficientNet-Lite0, which was made for INT8 (no squeeze-and-excitation, ReLU6), and a small transformer.
LITE: Row = {
    **PAPER,
    "uniad": {
        "pre_trained": False,
        "backbone": "tf_efficientnet_lite0",
        "image_size": 256,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "feature_norm": "standard",
    },
}
SMALL: Row = {
    "uniad": {
        "pre_trained": False,
        "backbone": "resnet18",
        "image_size": 64,
        "hidden_dim": 32,
        "feedforward_dim": 64,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "neighbor_size": 1,
    },
    "patchcore_layers": ("layer2", "layer3"),
    "padim_layers": ("layer1", "layer2", "layer3"),
    "padim_features": 20,
}


def inference(
    model: Literal["paper", "lite"] = "paper",
    parts: Sequence[Part] = get_args(Part),
    variants: Sequence[Variant] = get_args(Variant),
    rounds: int = 5,
    seconds: int = 2,
    training_images: int = 648,
    calibration_images: int = 100,
    output_dir: Path = RESULTS,
    work_dir: Path | None = None,
    seed: int = 0,
    quick: bool = False,
) -> None:
    """Measure how fast exported models are; all have the same backbone and image size.

    Weights and images are generated; nothing is downloaded. Writes ``inference_speed.csv``,
    ``inference_precision.csv``, ``inference_profile.csv`` with a picture, ``inference_floor.csv`` and
    ``inference_start.csv``, in place of the rows of this device (of "precision" and "profile": and of this model).

    Args:
        model: "paper": EfficientNet-b4 at 224 px, 4 + 4 layers. "lite": EfficientNet-Lite0 at 256 px, 2 + 2 layers.
        parts: "speed": latency of one image after the other and throughput, by OpenVINO's benchmark_app. "precision":
            processor time of one image on one thread in all precisions, and what free sizes cost, in turn; other work
            of the machine hardly changes it, as it does latency. "profile": where OpenVINO's time goes in f32, bf16
            and int8_ptq, and the floor, operations over the measured rate of matrix products. "start": seconds and
            memory of `anomalib-uniad predict`, `anomalib predict` and anomalib's OpenVINOInferencer, from the start
            of the process.
        variants: What is measured; in "speed" torch in any case, as the others are compared with it, and bf16 where
            the CPU has it. "any_size" is the file that `anomalib export` writes by default, in f32, which resizes;
            "any_size_1024" the same with images of 1024 x 1024 pixels; other files take images of the model's size.
            "patchcore_10" keeps 10 % of the training images' patches, "patchcore_1" 1 %.
        rounds: How often everything is measured, in turn.
        seconds: How long each variant is measured in a round, for latency and for throughput.
        training_images: Number of images that PatchCore's memory bank is as large as if it were from.
        calibration_images: Generated images with which INT8 is calibrated.
        output_dir: Folder of the results; with quick, the folder "quick" in it.
        work_dir: Folder that keeps the exported files, about 1 GB, for the next time; default: a temporary one.
        seed: Seed of weights and images.
        quick: Small models and numbers that only show that everything runs.
    """
    if quick:
        rounds, seconds, calibration_images, training_images = 2, 1, 4, 8
        output_dir = output_dir / "quick"
    at_least(1, rounds=rounds, seconds=seconds, training_images=training_images, calibration_images=calibration_images)
    sizes = SMALL if quick else {"paper": PAPER, "lite": LITE}[model]
    has_bf16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    variants = [name for name in variants if name != "bf16" or has_bf16]
    about = {"backbone": sizes["uniad"]["backbone"], "image_size": sizes["uniad"]["image_size"]}
    about |= origin(CPU, seed, ("openvino",))

    def save(name: str, rows: Sequence[Row], case: Sequence[str], first: bool) -> Path:
        path = output_dir / f"inference_{name}.csv"
        # The first rows replace all of this device: only what was measured in turn can be compared.
        same = ("device", "backbone") if name in ("precision", "profile", "floor") else ("device",)
        add_rows(path, [{**row, **about} for row in rows], (*same, *(() if first else case)))
        return path

    with ExitStack() as stack:
        folder = work_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = Models(folder.resolve(), sizes, training_images, calibration_images, seed)
        if "speed" in parts:
            measures = {"torch": partial(measure_torch, models, seconds)}
            for name in tqdm([name for name in variants if name != "torch"], desc="Exporting"):
                models.openvino(name)
                measures[name] = partial(measure_file, models, name, seconds)
            for number, results in enumerate(in_turn(measures, rounds, "Speed"), 1):
                rows = [{"variant": name, "round": number, **found[-1]} for name, found in results.items()]
                path = save("speed", rows, ("variant", "round"), first=number == 1)
            show(path, ("device", "variant", "round", "latency_ms", "images_per_second"))
        if "precision" in parts:
            cases = {name: case for name, case in PRECISIONS.items() if has_bf16 or case.precision == "f32"}
            turns = {
                name: Turn(models.openvino(case.file), case, models.image_size)
                for name, case in tqdm(cases.items(), desc="Exporting")
            }
            found = list(in_turn(turns, 6 * rounds, "Precision"))[-1]
            rows = [
                {"variant": name, "round": number, **row}
                for name, results in found.items()
                for number, row in enumerate(results, 1)
            ]
            path = save("precision", rows, ("variant", "round"), first=True)
            medians = pd.read_csv(path).groupby(["device", "backbone", "variant"], sort=False)["processor_ms"].median()
            print(medians)
        profiled = [name for name in ("f32", "bf16", "int8_ptq") if name in variants]
        if "profile" in parts and profiled:
            for name in tqdm(profiled, desc="Profile"):
                layers, floor = profile_rows(models, name, 1 if quick else 5)
                profile = save("profile", layers, ("variant", "part", "layer"), first=name == profiled[0])
                path = save("floor", floor, ("variant", "part"), first=name == profiled[0])
            draw(pd.read_csv(profile), pd.read_csv(path), output_dir / "inference_profile.png")
            show(path, ("device", "variant", "part", "ms", "gflop_per_second", "floor_ms"))
        if "start" in parts:
            cases = {f"{name}, {count}": (name, count) for count in (1, 2 if quick else 20) for name in STARTED}
            measures = {case: partial(start, models, *cases[case]) for case in cases}
            for number, results in enumerate(in_turn(measures, 1 if quick else 3, "Start"), 1):
                rows = [
                    {"method": cases[case][0], "images": cases[case][1], "round": number, **found[-1]}
                    for case, found in results.items()
                ]
                path = save("start", rows, ("method", "images", "round"), first=number == 1)
            show(path, ("device", "method", "images", "round", "seconds", "peak_memory_bytes"))


class Models:
    """The models that are measured, exported when first asked for; what the folder has already is taken as it is.

    PatchCore's memory bank is as large as if it were from ``training_images``.
    """

    def __init__(self, folder: Path, sizes: Row, training_images: int, calibration_images: int, seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self._training, self._calibration = training_images, calibration_images
        # Files of other arguments are others.
        self.folder = folder / f"{sizes['uniad']['backbone']}-{training_images}-{calibration_images}-{seed}"
        self.image_size = (sizes["uniad"]["image_size"],) * 2
        self.uniad = UniAD(**sizes["uniad"], seed=seed, visualizer=True).eval()
        pre_processor, post_processor = self.uniad.pre_processor, self.uniad.post_processor
        with torch.inference_mode():  # it normalises and decides as after a validation
            images = torch.rand(4, 3, *self.image_size, generator=torch.Generator().manual_seed(seed))
            raw = self.uniad.model(pre_processor(images))
        for level, values in (("image", raw.pred_score), ("pixel", raw.anomaly_map)):
            getattr(post_processor, f"_{level}_threshold").copy_(values.mean())
            getattr(post_processor, f"{level}_min").copy_(values.min())
            getattr(post_processor, f"{level}_max").copy_(values.max())

    def openvino(self, name: str) -> Path:
        """File of a variant, exported if it is not there."""
        name = {"bf16": "f32", "any_size_1024": "any_size"}.get(name, name)
        file = self.folder / "weights" / "openvino" / f"{name}.xml"
        if not file.is_file():
            common: Row = {"export_root": self.folder, "model_file_name": name}
            with quiet():
                if name == "any_size":
                    self.uniad.to_openvino(**common)
                elif name in ("padim", "patchcore_10", "patchcore_1"):
                    model = self.padim() if name == "padim" else self.patchcore(name)
                    # For one image, which is what is measured.
                    model.eval().to_openvino(**common, input_size=self.image_size, onnx_kwargs={"dynamic_shapes": None})
                else:
                    data = None
                    if name == "int8_ptq":
                        data = MultiCategory("MVTecAD", root=self.images(self._calibration), num_workers=0)
                    types = {"f16": "FP16", "int8": "INT8", "int8_ptq": "INT8_PTQ"}
                    compression = CompressionType[types[name]] if name in types else None
                    self.uniad.to_openvino(
                        **common, input_size=self.image_size, compression_type=compression, datamodule=data
                    )
        return file

    def onnx(self) -> Path:
        """UniAD in ONNX, in which names of modules are kept."""
        file = self.folder / "weights" / "onnx" / "uniad.onnx"
        if not file.is_file():
            with quiet():
                self.uniad.to_onnx(self.folder, "uniad", input_size=self.image_size)
        return file

    def checkpoint(self) -> tuple[Path, Path]:
        """UniAD as a Lightning checkpoint, and the config of its arguments."""
        checkpoint, config = self.folder / "uniad.ckpt", self.folder / "uniad.yaml"
        if not checkpoint.is_file():
            with quiet():
                trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
                trainer.strategy.connect(self.uniad)
                trainer.save_checkpoint(checkpoint)
            config.write_text(yaml.safe_dump({"model": {"class_path": "UniAD", "init_args": self.sizes["uniad"]}}))
        return checkpoint, config

    def images(self, count: int) -> Path:
        """Folder with so many generated training images of two categories, in the layout of MVTec AD."""
        folder = self.folder / f"images_{count}"
        if not folder.is_dir():
            write_images(folder, count, self.image_size[0], self.seed)
        return folder

    def bank(self, name: str) -> int | None:
        """Vectors in PatchCore's memory bank, ``None`` for other methods."""
        part = {"patchcore_10": 0.1, "patchcore_1": 0.01}.get(name)
        patches = (self.image_size[0] // 8) * (self.image_size[1] // 8)
        return None if part is None else max(int(self._training * patches * part), 9)  # a score needs 9 neighbors

    def patchcore(self, name: str) -> Patchcore:
        """PatchCore with a memory bank of the right size; its time does not depend on the values."""
        model = Patchcore(
            backbone=self.sizes["uniad"]["backbone"],
            layers=self.sizes["patchcore_layers"],
            pre_trained=False,
            pre_processor=Patchcore.configure_pre_processor(self.image_size),
            evaluator=False,
            visualizer=False,
        )
        channels = sum(model.model.feature_extractor.out_dims)
        random = torch.Generator().manual_seed(self.seed)
        model.model.memory_bank = torch.randn(self.bank(name) or 0, channels, generator=random)
        return model

    def padim(self) -> Padim:
        """PaDiM with statistics of the right size."""
        features = self.sizes["padim_features"]
        model = Padim(
            backbone=self.sizes["uniad"]["backbone"],
            layers=list(self.sizes["padim_layers"]),
            pre_trained=False,
            n_features=features,
            pre_processor=Padim.configure_pre_processor(self.image_size),
            evaluator=False,
            visualizer=False,
        )
        patches = (self.image_size[0] // 4) * (self.image_size[1] // 4)
        random = torch.Generator().manual_seed(self.seed)
        model.model.gaussian.mean = torch.randn(features, patches, generator=random)
        model.model.gaussian.inv_covariance = torch.randn(patches, features, features, generator=random)
        return model


# Part "speed".


def measure_file(models: Models, name: str, seconds: int) -> Row:
    """Latency and throughput of a variant in OpenVINO."""
    file = models.openvino(name)
    size = (1024, 1024) if name == "any_size_1024" else models.image_size
    precision = "bf16" if name == "bf16" else "f32"
    return {
        **benchmark_app(file, size, name.startswith("any_size"), precision, seconds),
        "bank_vectors": models.bank(name),
        "size_bytes": file.stat().st_size + file.with_suffix(".bin").stat().st_size,
    }


def measure_torch(models: Models, seconds: float) -> Row:
    """Latency and throughput of UniAD in torch, one image after the other."""
    model = models.uniad
    image = torch.rand(1, 3, *models.image_size, generator=torch.Generator().manual_seed(models.seed))
    times: list[float] = []
    with torch.inference_mode():
        model(image)  # warm
        end = time.perf_counter() + seconds
        while len(times) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            model(image)
            times.append(time.perf_counter() - start)
    return {
        "latency_ms": 1000 * median(times),
        "latency_ms_min": 1000 * min(times),
        "images_per_second": len(times) / sum(times),
        "inferences": len(times),
    }


def benchmark_app(file: Path, size: Sequence[int], dynamic: bool, precision: str, seconds: int) -> Row:
    """Latency and throughput of a file by OpenVINO's benchmark_app, for one image of ``size`` at a time.

    Args:
        file: The file.
        size: Height and width of the images.
        dynamic: Leave height and width of the file open.
        precision: Precision of the computation.
        seconds: How long, for latency and for throughput each.
    """
    shape = f"[1,3,{size[0]},{size[1]}]"
    results = {}
    for hint in ("latency", "throughput"):
        with tempfile.TemporaryDirectory() as folder:
            options = f"-hint {hint} -t {seconds} -infer_precision {precision} -data_shape {shape}"
            options += f" -shape {'[1,3,?,?]' if dynamic else shape} -d CPU -json_stats -report_type no_counters"
            command = [str(PROGRAMS / "benchmark_app"), "-m", str(file), "-report_folder", folder, *options.split()]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"benchmark_app failed on {file}: {chr(10).join(done.stdout.splitlines()[-5:])}")
            report = json.loads((Path(folder) / "benchmark_report.json").read_text())
        results[hint] = report["execution_results"]
    return {
        "latency_ms": float(results["latency"]["latency (ms)"]),
        "latency_ms_min": float(results["latency"]["min latency"]),
        "images_per_second": float(results["throughput"]["throughput"]),
        "inferences": int(results["latency"]["total number of iterations"]),
    }


# Part "precision".


class Case(NamedTuple):
    """A file of :class:`Models`, the precision of what is not in INT8, and the shape of its input; empty: as it is."""

    file: str
    precision: str = "f32"
    shape: str = "[1,3,{0},{1}]"


# The first one is what the others are compared with.
PRECISIONS = {
    "f32": Case("f32"),
    "f16": Case("f16"),
    "bf16": Case("f32", "bf16"),
    "int8_ptq": Case("int8_ptq"),
    "int8_ptq, bf16": Case("int8_ptq", "bf16"),
    "any_size, one image": Case("any_size", shape="[1,3,?,?]"),
    "any_size": Case("any_size", shape=""),
}


class Turn:
    """Measures one image of the model's size at a time: the least of three, after one that is not counted."""

    def __init__(self, file: Path, case: Case, image_size: Sequence[int]) -> None:
        core = ov.Core()
        model = core.read_model(file)
        if case.shape:
            model.reshape(ov.PartialShape(case.shape.format(*image_size)))
        config: Row = {"INFERENCE_PRECISION_HINT": case.precision, "INFERENCE_NUM_THREADS": 1}
        config["PERFORMANCE_HINT"] = "LATENCY"
        self._request = core.compile_model(model, "CPU", config).create_infer_request()
        self._image = np.random.default_rng(0).random((1, 3, *image_size), np.float32)

    def __call__(self) -> Row:
        """Milliseconds of processor time."""
        times = []
        for _ in range(4):
            start = time.process_time()
            self._request.infer({0: self._image})
            times.append(time.process_time() - start)
        return {"processor_ms": 1000 * min(times[1:])}


# Part "profile": time and operations by part of the model.

PARTS = ("input", "backbone", "neck", "encoder", "decoder", "head")
# Beginnings of the names of modules -> part, the first that fits.
MODULES = {
    "pre_processor": "input",
    "model.backbone": "backbone",
    "model.neck": "neck",
    "model.transformer.decoder": "decoder",
    "model.transformer.output_projection": "decoder",
    "model.transformer": "encoder",
    "model.anomaly_map": "head",
    "model.score": "head",
    "post_processor": "head",
}


def profile_rows(models: Models, variant: str, repeats: int) -> tuple[list[Row], list[Row]]:
    """Rows of a variant for ``inference_profile.csv`` and ``inference_floor.csv``."""
    parts = parts_of(models.onnx())
    bf16 = variant == "bf16"
    random = np.random.default_rng(models.seed)
    images = [random.random((1, 3, *models.image_size), np.float32) for _ in range(8)] * repeats
    seconds, operations = profile(models.openvino(variant), parts, images, "bf16" if bf16 else "f32")
    rate = None if variant == "int8_ptq" else matrix_rate(CPU, torch.bfloat16 if bf16 else torch.float32)
    total = sum(seconds.values())
    layers = [
        {"variant": variant, "part": part, "layer": layer, "ms": 1000 * value, "share": value / total}
        for (part, layer), value in seconds.items()
    ]
    return layers, floor_rows(variant, seconds, operations, rate)


def floor_rows(
    variant: str, seconds: Mapping[tuple[str, str], float], operations: Mapping[str, int], rate: float | None
) -> list[Row]:
    """Time and operations of each part and of the whole, and the least possible time at a rate of matrix products."""
    rows = []
    for part in (*PARTS, "whole"):
        time_of = sum(value for (place, _), value in seconds.items() if part in (place, "whole"))
        count = sum(value for place, value in operations.items() if part in (place, "whole"))
        rows.append(
            {
                "variant": variant,
                "part": part,
                "ms": 1000 * time_of,
                "operations": count,
                "gflop_per_second": count / time_of / 1e9 if time_of else None,
                "matrix_gflop_per_second": rate / 1e9 if rate else None,
                "floor_ms": 1000 * count / rate if rate else None,
            }
        )
    return rows


def parts_of(onnx_file: Path) -> dict[str, str]:
    """Name of a node, or of one of its outputs -> part of UniAD, by the names of torch's modules in an ONNX file."""
    import onnx

    parts = {}
    for node in onnx.load(onnx_file, load_external_data=False).graph.node:
        scopes = [p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        modules = ast.literal_eval(scopes[0]) if scopes else []
        for prefix, part in MODULES.items():
            if any(name == prefix or name.startswith(f"{prefix}.") for name in modules):
                parts.update(dict.fromkeys((node.name, *node.output), part))
                break
    return parts


def profile(
    file: Path, parts: Mapping[str, str], images: Sequence[np.ndarray], precision: str
) -> tuple[dict[tuple[str, str], float], dict[str, int]]:
    """Measure a file layer by layer with images ``(1, 3, H, W)``.

    Returns (part, type of layer) -> seconds, the least of all images, which others disturb least; and part ->
    operations. There are as many threads as torch has, with which the rate of matrix products is measured.
    """
    core = ov.Core()
    model = core.read_model(file)
    model.reshape(images[0].shape)
    config: Row = {"PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    config["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    request.infer({0: images[0]})  # warm
    times: dict[str, list[float]] = defaultdict(list)
    types: dict[str, str] = {}
    for image in images:
        request.infer({0: image})
        for layer in request.profiling_info:
            times[layer.node_name].append(layer.real_time.total_seconds())
            types[layer.node_name] = layer.node_type
    # Part of each layer as it is executed: that of the layers it was made of, else of the layer before it.
    places: dict[str, str] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        names = str(info["originalLayersNames"].value).split(",") if "originalLayersNames" in info else []
        found = [part for name in (*names, node.get_friendly_name()) if (part := part_of(name, parts))]
        before = [places[value.get_node().get_friendly_name()] for value in node.input_values()]
        places[node.get_friendly_name()] = [*found, *before, "input"][0]
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for name, measured in times.items():
        seconds[places.get(name, "head"), types[name]] += min(measured)
    return {place: value for place, value in seconds.items() if value > 0}, count_operations(model, parts)


def count_operations(model: ov.Model, parts: Mapping[str, str]) -> dict[str, int]:
    """Operations of a model of fixed shape (products and additions of matrices and convolutions), part by part."""
    counts = dict.fromkeys(PARTS, 0)
    part = "input"
    for node in model.get_ordered_ops():
        part = part_of(node.get_friendly_name(), parts) or part
        kind = node.get_type_name()
        if kind in {"Convolution", "GroupConvolution"}:
            weights = list(node.input_value(1).shape)  # (O, I, ...) or (groups, O, I, ...)
            inner = math.prod(weights[1:] if kind == "Convolution" else weights[2:])
        elif kind == "MatMul":
            inner = node.input_value(0).shape[-2 if node.get_attributes()["transpose_a"] else -1]
        elif kind == "ScaledDotProductAttention":
            inner = 2 * node.input_value(1).shape[-2]
        else:
            continue
        counts[part] += 2 * math.prod(node.output(0).shape) * inner
    return counts


def part_of(name: str, parts: Mapping[str, str]) -> str | None:
    """Part of a node; transformations put something behind the names of the nodes that they were made of."""
    return parts.get(name) or parts.get(name.split("/")[0].split(".")[0])


# Part "start": whole processes.

STARTED = ("predict", "predict, no heatmaps", "OpenVINOInferencer", "anomalib predict")
# A small process in between: a process has the peak memory of the one that it was forked from.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
error = process.stderr.read()
_, status, usage = os.wait4(process.pid, 0)
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"seconds": time.perf_counter() - start, "peak_memory_bytes": peak}))
if status:
    sys.exit(error.decode(errors="replace"))
"""
INFERENCER = """
import sys
from pathlib import Path
from anomalib.deploy import OpenVINOInferencer
inferencer = OpenVINOInferencer(sys.argv[1], device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
for path in sorted(Path(sys.argv[2]).rglob("*.png")):
    prediction = inferencer.predict(path)
    print(path, prediction.pred_score, prediction.pred_label)
"""


def start(models: Models, method: str, count: int) -> Row:
    """Predict so many images with one of :data:`STARTED`, in a process of its own."""
    model, images = str(models.openvino("f32")), str(models.images(2 * count) / "cloth" / "train")  # half of them
    with tempfile.TemporaryDirectory() as folder:
        if method == "OpenVINOInferencer":
            command = [sys.executable, "-c", INFERENCER, model, images]
        elif method == "anomalib predict":
            checkpoint, config = map(str, models.checkpoint())
            command = [str(PROGRAMS / "anomalib"), "predict", "--config", config, "--ckpt_path", checkpoint]
            command += ["--data", images, "--default_root_dir", folder]
        else:
            command = [str(PROGRAMS / "anomalib-uniad"), "predict", model, images, "--output", f"{folder}/output"]
            command += [] if method == "predict" else ["--heatmaps", "false"]
        return run(command, Path(folder))


def run(command: Sequence[str], folder: Path) -> Row:
    """Run a command in a folder; returns seconds from its start to its end and the peak memory of its process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {chr(10).join(done.stderr.splitlines()[-5:])}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def draw(profile: pd.DataFrame, floor: pd.DataFrame, path: Path) -> None:
    """Draw the time by part, with the floor, and by type of layer, for the last device and the last model."""
    from matplotlib.figure import Figure

    device, backbone = profile[["device", "backbone"]].iloc[-1]
    profile, floor = (rows[(rows["device"] == device) & (rows["backbone"] == backbone)] for rows in (profile, floor))
    variants = list(profile["variant"].unique())
    figure = Figure(figsize=(11, 2.5 + 1.3 * len(variants)), layout="constrained")
    by_part, by_layer = figure.subplots(1, 2)
    first = profile[profile["variant"] == variants[0]]
    largest = first.groupby("layer")["ms"].sum().nlargest(8).index
    first = first.assign(layer=first["layer"].where(first["layer"].isin(largest), "other"))
    for axes, rows, column, names in (
        (by_part, profile, "variant", variants),
        (by_layer, first, "layer", [*largest, *["other"] * ("other" in set(first["layer"]))]),
    ):
        cells = rows.pivot_table(index=column, columns="part", values="ms", aggfunc="sum", fill_value=0)
        cells.reindex(index=names, columns=PARTS, fill_value=0).plot.barh(stacked=True, ax=axes, legend=False)
        axes.invert_yaxis()
        axes.set(xlabel="ms per image", ylabel="")
    least = floor[floor["part"] == "whole"].set_index("variant")["floor_ms"].reindex(variants)
    by_part.vlines(least, *np.array([[-0.45], [0.45]]) + np.arange(len(variants)), "black", "--", label="floor")
    by_part.set_title("by part")
    by_layer.set_title(f"by type of layer, {variants[0]}")
    figure.legend(*by_part.get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS) + 1)
    figure.suptitle(f"One image through UniAD ({backbone}) in OpenVINO, {device}", fontsize="medium")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    auto_cli(inference)

# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the metrics against scikit-learn and anomalib, and whether the values are the same.

python benchmarks/metrics.py                  # with scikit-learn on 4,000 images, hours
python benchmarks/metrics.py --quick true     # small numbers that only show that it runs
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Protocol, get_args

import cv2
import numpy as np
import pandas as pd
import torch
from anomalib.data import ImageBatch
from jsonargparse import auto_cli
from tqdm import tqdm

from anomalib_uniad.category import categories_of
from anomalib_uniad.metrics import TPRAtFPR, functional, standard_metrics
from anomalib_uniad.metrics.category_metrics import CategoryMetrics
from anomalib_uniad.metrics.scores import LEVELS, ScorePool
from harness import CPU, RESULTS, Memory, add_rows, apart, at_least, limit_memory, origin, show

logger = logging.getLogger(__name__)

# The first one is what the others are compared with.
MethodName = Literal["per_category", "functions", "shuffled", "pooled", "sklearn", "anomalib"]
METHODS = get_args(MethodName)
# What the values of a method are compared with: the same images in the same groups.
REFERENCES = {"functions": "per_category", "shuffled": "per_category", "sklearn": "per_category", "anomalib": "pooled"}
# Largest differences of exact values to scikit-learn.
TOLERANCE, TOLERANCE_AUPRO = 1e-6, 1e-4
OUT_OF_MEMORY = ("can't allocate memory", "Insufficient memory", "bad_alloc")
Values = dict[str, float]  # "<metric>/<category>" -> value


def metrics(
    images: Sequence[int] = (200, 500, 1725, 4000),
    image_size: int = 224,
    categories: int = 15,
    methods: Sequence[MethodName] = METHODS,
    batch_size: int = 32,
    threads: int = 1,
    time_limit: float = 300.0,
    memory_limit: float = 12.0,
    output_dir: Path = RESULTS,
    seed: int = 0,
    quick: bool = False,
) -> None:
    """Measure time and memory of the metrics against scikit-learn and anomalib, and compare their values.

    Anomaly maps and masks are generated. Each measurement is a process of its own, and adds a row to
    ``evaluation_speed.csv`` as soon as it is done, in place of the row of the same case; ``evaluation_speed.png`` is
    drawn from all rows.

    Args:
        images: Numbers of images to measure with; MVTec AD has 1,725 test images.
        image_size: Height and width of the maps, in pixels.
        categories: Number of categories that the images are of.
        methods: What to measure; per_category comes first in any case, as the others are compared with it.
        batch_size: Images per batch.
        threads: Threads that each measurement may use.
        time_limit: Seconds that one measurement may take in all; then its row says so instead.
        memory_limit: GiB that one measurement may allocate; then its row says so instead.
        output_dir: Folder of the results; with quick, the folder "quick" in it.
        seed: Seed of maps and masks.
        quick: Small numbers that only show that everything runs.
    """
    if quick:
        images, image_size, categories, output_dir = (20, 40), 32, 2, output_dir / "quick"
    at_least(1, image_size=image_size, batch_size=batch_size, threads=threads, categories=categories)
    for name, limit in (("time_limit", time_limit), ("memory_limit", memory_limit)):
        if limit <= 0:
            raise ValueError(f"{name} must be positive, got {limit}.")
    if not images or min(images) < 4 * categories:
        msg = f"There must be at least 4 images of each category, got {list(images)} images of {categories} categories."
        raise ValueError(msg)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    torch.set_num_threads(threads)  # for the description of the device
    path = output_dir / "evaluation_speed.csv"
    chosen = [name for name in METHODS if name in methods or name == METHODS[0]]
    common = {"batch_size": batch_size, "memory_limit": memory_limit, "seed": seed}
    about = origin(CPU, seed, ("numpy", "scikit-learn"))
    with tqdm(total=len(images) * len(chosen), desc="Metrics") as bar:
        for count in images:
            done: dict[str, dict[str, Any]] = {}
            size = {"images": count, "image_size": image_size, "categories": categories}
            for name in chosen:
                bar.set_postfix_str(f"{name}, {count} images")
                try:
                    done[name] = apart(measure, {"method": name, "threads": threads, **size, **common}, time_limit)
                except (TimeoutError, ChildProcessError) as error:
                    done[name] = {"note": str(error)}
                row = {"method": name, **size, **compared(name, done)}
                row["category_bytes"] = GeneratedMaps(count, image_size, categories).category_bytes
                add_rows(path, [{**row, **common, **about}], ("device", "method", *size))
                bar.update()
    frame = pd.read_csv(path)
    draw(frame, path.with_suffix(".png"))
    show(path, ("device", "method", "images", "processor_seconds", "ratio", "peak_memory_bytes", "difference", "note"))


def measure(
    method: MethodName,
    images: int,
    image_size: int,
    categories: int,
    batch_size: int = 32,
    threads: int = 1,
    memory_limit: float = 12.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the metrics of generated maps. Making the maps is not counted. Arguments as of :func:`metrics`."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    # Everything that takes memory is imported, and has run once, before memory is looked at.
    small = GeneratedMaps(8, 32, 1, seed)
    warm_up = make_method(method, small)
    for batch in small.batches(8):
        warm_up.update(batch)
    warm_up.compute()
    maps = GeneratedMaps(images, image_size, categories, seed)
    measured = make_method(method, maps)
    limit_memory(memory_limit)
    memory, clock = Memory(CPU), Clock()
    try:
        for batch in maps.batches(batch_size, shuffled=method == "shuffled"):
            with clock:
                measured.update(batch)
            del batch
        with clock:
            values = measured.compute()
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        return {"note": f"needs more than {memory_limit:g} GiB"}
    return {
        "seconds": clock.seconds,
        "processor_seconds": clock.processor_seconds,
        "peak_memory_bytes": memory.peak(),
        "values": values,
    }


class Clock:
    """Adds up time: on the wall, and of the processor, which other work on the machine does not change."""

    def __init__(self) -> None:
        self.seconds = self.processor_seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.processor_seconds += time.process_time() - self._start[1]


def compared(method: str, done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Columns that compare a measurement with those of the same images before it; ``note`` says why some are empty."""
    own = done[method]
    columns = {name: own.get(name) for name in ("seconds", "processor_seconds", "peak_memory_bytes")}
    base, seconds = done[METHODS[0]].get("processor_seconds"), own.get("processor_seconds")
    columns |= {"ratio": seconds / base if seconds and base else None}
    columns |= dict.fromkeys(("compared_with", "difference", "difference_AUPRO"))
    reference = REFERENCES.get(method, "")
    values, others = own.get("values"), done.get(reference, {}).get("values")
    if values and others:
        difference, aupro = differences(values, others)
        columns |= {"compared_with": reference, "difference": difference, "difference_AUPRO": aupro}
        if method == "sklearn" and (difference > TOLERANCE or aupro > TOLERANCE_AUPRO):
            logger.warning("Values differ from those of scikit-learn: by %g, AUPRO by %g", difference, aupro)
    return {**columns, "note": own.get("note", "")}


def differences(values: Values, others: Values) -> tuple[float, float]:
    """Largest difference of AUPRO, second, and of the other metrics, first.

    Raises:
        ValueError: If the methods have different values.

    Example:
        >>> differences({"pixel_AUPRO/a": 0.5, "pixel_AP/a": 1.0}, {"pixel_AUPRO/a": 0.75, "pixel_AP/a": 1.0})
        (0.0, 0.25)
    """
    if set(values) != set(others):
        msg = f"Values are there for one of two methods only: {', '.join(sorted(set(values) ^ set(others)))}."
        raise ValueError(msg)
    found = {name: abs(value - others[name]) for name, value in values.items()}
    aupro = max((value for name, value in found.items() if "AUPRO" in name), default=0.0)
    return max((value for name, value in found.items() if "AUPRO" not in name), default=0.0), aupro


# Generated maps.

# Of MVTec AD's 1,725 test images, 467 are normal; of all pixels, about 3 % are defective.
NORMAL_IMAGES = 0.27


@dataclass(frozen=True)
class GeneratedMaps:
    """Maps and masks like those of a test on MVTec AD, each made from its own seed when it is asked for.

    There are equally many images of each category.
    """

    images: int
    image_size: int
    categories: int
    seed: int = 0

    @property
    def category_bytes(self) -> int:
        """Bytes of maps and masks of the largest category."""
        return -(-self.images // self.categories) * self.image_size**2 * (4 + 1)

    def category_of(self, index: int) -> str:
        """The category of an image; images are in the order of their categories."""
        return f"category_{index * self.categories // self.images:02}"

    def is_defective(self, index: int) -> bool:
        """Whether an image is defective; of each category, the same part is."""
        return int((index + 1) * NORMAL_IMAGES) == int(index * NORMAL_IMAGES)

    def batches(self, batch_size: int, shuffled: bool = False) -> Iterator[ImageBatch]:
        """Batches with maps and masks ``(B, H, W)``, scores and labels ``(B,)`` and paths; by category or shuffled."""
        order = np.arange(self.images)
        if shuffled:
            np.random.default_rng(self.seed).shuffle(order)
        for start in range(0, self.images, batch_size):
            indices = order[start : start + batch_size].tolist()
            maps, masks = map(np.stack, zip(*map(self.generate, indices), strict=True))
            anomaly_map, mask = torch.from_numpy(maps), torch.from_numpy(masks)
            yield ImageBatch(
                image=torch.zeros(1, 1, 1, 1).expand(len(indices), 3, *maps.shape[1:]),  # takes no memory
                anomaly_map=anomaly_map,
                gt_mask=mask,
                pred_score=anomaly_map.amax(dim=(1, 2)),
                gt_label=mask.any(dim=2).any(dim=1),
                image_path=[f"{self.category_of(index)}/test/any/{index:05}.png" for index in indices],
            )

    def generate(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Map, float32 from 0 to 1, and mask of an image: smooth noise, higher at defects, but not only there."""
        random, size = np.random.default_rng((self.seed, index)), self.image_size
        mask = np.zeros((size, size), np.uint8)
        if self.is_defective(index):
            for _ in range(random.integers(1, 4)):
                center = random.integers(size // 8, size - size // 8, 2).tolist()
                axes = np.maximum(1, size * random.uniform(0.02, 0.14, 2)).astype(int).tolist()
                cv2.ellipse(mask, center, axes, float(random.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
        # Parts that sum to 1, each from 0 to 1: coarse and fine noise, and the defect with soft edges.
        coarse, fine = (
            cv2.resize(random.random((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
            for cells in (7, 28)
        )
        grain = random.random((size, size), np.float32)
        blob = cv2.blur(mask.astype(np.float32), (max(1, size // 14),) * 2)
        scores = 0.35 * coarse + 0.15 * fine + 0.02 * grain + 0.48 * float(random.uniform(0.3, 1)) * blob
        return scores.astype(np.float32), mask.astype(bool)


# The methods, all with the same names of the values.

POOLED = "all"
FOUND = {"TPR@FPR2": 0.02, "TPR@FPR5": 0.05}


class Method(Protocol):
    """A way to compute the metrics."""

    def update(self, batch: ImageBatch) -> None:
        """Take a batch."""

    def compute(self) -> Values:
        """All values."""


def make_method(name: MethodName, maps: GeneratedMaps) -> Method:
    """Make a method for the images that it will get."""
    expected = Counter(map(maps.category_of, range(maps.images)))
    if name in ("per_category", "shuffled"):
        return Package(list(expected), expected if name == "per_category" else None)
    if name == "pooled":
        return Package([POOLED], None)
    if name == "anomalib":
        return Anomalib()
    return Functions(expected) if name == "functions" else Sklearn(expected)


class Package:
    """This package's metrics, as its evaluator calls them."""

    def __init__(self, categories: list[str], expected: Counter[str] | None) -> None:
        self._metrics = CategoryMetrics(standard_metrics(), SimpleNamespace(categories=categories), expected=expected)
        self.update = self._metrics.update

    def compute(self) -> Values:
        values = self._metrics.compute().values
        return {f"{metric}/{category}": float(value) for (metric, category), value in values.items()}


class ByCategory:
    """Gets images category by category, and computes the values of each with its last image."""

    def __init__(self, expected: Counter[str]) -> None:
        self._left, self._values = Counter(expected), {}

    def update(self, batch: ImageBatch) -> None:
        names = categories_of(batch.image_path or [])
        for name in dict.fromkeys(names):
            rows = slice(names.index(name), names.index(name) + names.count(name))
            for level, fields in LEVELS.items():
                self.add(level, *(getattr(batch, field)[rows] for field in fields))
            self._left[name] -= rows.stop - rows.start
            if not self._left[name]:
                for level in LEVELS:
                    found = self.finish(level)
                    self._values |= {f"{level}_{metric}/{name}": float(value) for metric, value in found.items()}

    def compute(self) -> Values:
        return self._values

    def add(self, level: str, scores: torch.Tensor, targets: torch.Tensor) -> None:
        """Take scores and labels, or maps and masks."""
        raise NotImplementedError

    def finish(self, level: str) -> Values:
        """Values of what was taken, by name of the metric; begins anew."""
        raise NotImplementedError


class Functions(ByCategory):
    """The functions below this package's metrics, without Lightning, torchmetrics and anomalib."""

    def __init__(self, expected: Counter[str]) -> None:
        super().__init__(expected)
        self._pools: dict[str, ScorePool] = {}

    def add(self, level: str, scores: torch.Tensor, targets: torch.Tensor) -> None:
        pool = self._pools.setdefault(level, ScorePool())
        (pool.add if level == "image" else pool.add_maps)(scores, targets)

    def finish(self, level: str) -> Values:
        ranking = self._pools.pop(level).rank()
        functions = {"AUROC": functional.auroc, "AP": functional.average_precision, "F1Max": functional.f1_max}
        if level == "pixel":
            functions["AUPRO"] = functional.aupro
        values = {name: function(ranking) for name, function in functions.items()}
        if level == "image":
            values |= {name: functional.tpr_at_fpr(ranking, limit) for name, limit in FOUND.items()}
        return values


class Sklearn(ByCategory):
    """scikit-learn's functions, on the maps of one category at a time."""

    def __init__(self, expected: Counter[str]) -> None:
        super().__init__(expected)
        import scipy.ndimage
        import sklearn.metrics

        self._sklearn, self._ndimage = sklearn.metrics, scipy.ndimage
        self._parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {level: [] for level in LEVELS}

    def add(self, level: str, scores: torch.Tensor, targets: torch.Tensor) -> None:
        self._parts[level].append((scores.numpy(), targets.numpy()))

    def finish(self, level: str) -> Values:
        scores, targets = (np.concatenate(parts) for parts in zip(*self._parts[level], strict=True))
        self._parts[level].clear()
        score, target = scores.ravel(), targets.ravel()
        precision, recall, _ = self._sklearn.precision_recall_curve(target, score)
        total = precision + recall
        f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
        values = {
            "AUROC": self._sklearn.roc_auc_score(target, score),
            "AP": self._sklearn.average_precision_score(target, score),
            "F1Max": f1.max(),
        }
        if level == "pixel":
            return {**values, "AUPRO": self._aupro(score, targets)}
        false, true, _ = self._sklearn.roc_curve(target, score, drop_intermediate=False)
        return values | {name: true[false <= limit].max() for name, limit in FOUND.items()}

    def _aupro(self, score: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
        """Area under the ROC curve in which each region weighs 1: its true positive rate is the mean overlap."""
        # A structure that connects pixels across corners, but not images.
        structure = np.zeros((3, 3, 3), bool)
        structure[1] = True
        labels, _ = self._ndimage.label(masks, structure)
        labels = labels.ravel()
        sizes = np.bincount(labels).astype(float)
        sizes[0] = 1  # each normal pixel
        weights = (1 / sizes)[labels]
        false, overlap, _ = self._sklearn.roc_curve(labels > 0, score, sample_weight=weights, drop_intermediate=False)
        end = np.searchsorted(false, limit, side="right")
        at_limit = np.interp(limit, false, overlap)
        false, overlap = np.append(false[:end], limit), np.append(overlap[:end], at_limit)
        return float(self._sklearn.auc(false, overlap) / limit)


class Anomalib:
    """anomalib's classes in its evaluator, which pools all categories; TPR@FPR is our class, as it has none."""

    def __init__(self) -> None:
        from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max

        metrics: list[Any] = [cls(fields=LEVELS["image"], prefix="image_") for cls in (AUROC, AUPR, F1Max)]
        metrics += [TPRAtFPR(LEVELS["image"], "image_", fpr_limit=limit) for limit in FOUND.values()]
        metrics += [cls(fields=LEVELS["pixel"], prefix="pixel_") for cls in (AUROC, AUPR, F1Max, AUPRO)]
        self._evaluator: Any = Evaluator(test_metrics=metrics)
        self._evaluator.metrics_to_cpu(self._evaluator.test_metrics)

    def update(self, batch: ImageBatch) -> None:
        self._evaluator.on_test_batch_end(None, None, None, batch, 0)

    def compute(self) -> Values:
        values = {metric.name: metric.compute().item() for metric in self._evaluator.test_metrics}
        names = {
            f"{level}_AUPR": f"{level}_AP" for level in LEVELS
        }  # its AUPR is the sum over steps, which others call AP
        return {f"{names.get(name, name)}/{POOLED}": value for name, value in values.items()}


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw time and peak memory over the number of images, for the device and size with most rows."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    groups = frame.groupby(["device", "image_size", "categories"], sort=False)
    (device, image_size, categories), rows = max(groups, key=lambda group: len(group[1]))
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method, marker in zip(METHODS, "o^sDvP", strict=True):
        points = rows[rows["method"] == method].dropna(subset=["processor_seconds"]).sort_values("images")
        left.plot(points["images"], points["processor_seconds"], marker=marker)
        right.plot(points["images"], points["peak_memory_bytes"] / 2**20, marker=marker, label=method)
    sizes = rows.drop_duplicates("images").sort_values("images")
    data = sizes["category_bytes"] / 2**20
    right.plot(sizes["images"], data, color="grey", linestyle=":", label="data of one category")
    right.plot(sizes["images"], data + 2048, color="black", linestyle="--", label="2 GiB on top of it")
    left.set(xlabel="images", ylabel="processor time, s")
    right.set(xlabel="images", ylabel="peak memory, MiB")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(sizes["images"], [f"{count:,}" for count in sizes["images"]])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4)
    figure.suptitle(
        f"The metrics of a test, {categories} categories, maps of {image_size} px, {device}", fontsize="medium"
    )
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    auto_cli(metrics)

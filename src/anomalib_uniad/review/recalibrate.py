# SPDX-License-Identifier: Apache-2.0
"""New thresholds of an exported model from new labelled images."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from anomalib_uniad.category import UNKNOWN_PRODUCT, find_category
from anomalib_uniad.checks import check_rate
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import check_output, replacing
from anomalib_uniad.inference.compiled import Compiled, compile_file
from anomalib_uniad.inference.images import ImageFile, find_images
from anomalib_uniad.inference.inspector import Judge
from anomalib_uniad.inference.metadata import ModelMetadata
from anomalib_uniad.inference.predictor import Output, Predictor
from anomalib_uniad.inference.thresholds_file import GivenThresholds
from anomalib_uniad.metrics.limits import LEAST_GOOD, KnownScores, limits

from .labels import Labels
from .table import EVERYWHERE


@dataclass(frozen=True)
class Mistakes:
    """What a threshold calls wrong.

    Attributes:
        false_alarms (int): Good images above it.
        missed (int): Defective images not above it.
    """

    false_alarms: int
    missed: int


@dataclass
class Change:
    """What is known of a product, and what becomes of its threshold.

    Attributes:
        good (list[float]): Raw scores of its good images.
        defective (list[float]): Raw scores of its defective images.
        old (float | None): The threshold so far.
        new (float | None): The threshold from now on.
        rule (str): How it was found.
    """

    good: list[float] = field(default_factory=list)
    defective: list[float] = field(default_factory=list)
    old: float | None = None
    new: float | None = None
    rule: str = ""

    def mistakes(self, threshold: float | None) -> Mistakes | None:
        """Count what a threshold calls wrong; ``None`` without one.

        Examples:
            >>> Change([1.0, 3.0], [2.0, 4.0]).mistakes(2.0)
            Mistakes(false_alarms=1, missed=1)
        """
        if threshold is None:
            return None
        above = [sum(score > threshold for score in scores) for scores in (self.good, self.defective)]
        return Mistakes(above[0], len(self.defective) - above[1])


def recalibrate(
    model: Path,
    images: Sequence[Path],
    labels: Path | None = None,
    thresholds: Path | None = None,
    false_alarm_rate: float = 0.01,
    output: Path = Path("thresholds.yaml"),
    overwrite: bool = False,
    device: str = "CPU",
) -> dict[str, Change]:
    """Judge labelled images, find thresholds by them, write these and show what changes.

    Args:
        model (Path): ``model.xml`` or ``model.onnx``.
        images (Sequence[Path]): Folders and images; those without a label are left out.
        labels (Path | None): ``labels.csv``; of images that are not in it, names of folders tell. Defaults to ``None``.
        thresholds (Path | None): ``thresholds.yaml`` by which was decided so far. Defaults to ``None``, as learned.
        false_alarm_rate (float): Share of good images that may be called anomalous, where there are no defective ones.
            Defaults to ``0.01``.
        output (Path): Where to write the thresholds.
        overwrite (bool): Replace a file that is there. Defaults to ``False``.
        device (str): OpenVINO's name of the device. Defaults to ``"CPU"``.

    Returns:
        dict[str, Change]: What becomes of each product, or of :data:`~anomalib_uniad.review.table.EVERYWHERE`.

    Raises:
        OSError: If a file is not there, or one is that must not be replaced.
        ValueError: If an argument is out of its range, no image has a label or none can be judged.
    """
    check_rate("false_alarm_rate", false_alarm_rate)
    check_output(output.parent, [output], overwrite)
    files = find_images(images)
    known = dict(zip(files, Labels(labels).of([str(file.path) for file in files]), strict=True))
    wanted = [file for file, label in known.items() if label is not None]
    if not wanted:
        raise InputError(
            f"None of the {len(files)} images has a label: put them into folders good and defective, or give the "
            "labels.csv of `anomalib-uniad review`."
        )
    compiled = compile_file(model, device)
    given = GivenThresholds() if thresholds is None else GivenThresholds.read(thresholds)
    metadata = compiled.metadata if thresholds is None else given.put_into(compiled.metadata, thresholds)
    left: Counter[str] = Counter({"have no label": len(files) - len(wanted)})
    changes = _judge(compiled, metadata, {file: known[file] for file in wanted}, left)
    if not changes:
        raise InputError("No labelled image can be judged, so there are no thresholds to find.")
    changes = {name: changes[name] for name in sorted(changes)}
    _decide(changes, false_alarm_rate)
    everywhere, products = dict(given.everywhere), {name: dict(levels) for name, levels in given.products.items()}
    for name, change in changes.items():
        if change.new is not None and change.new != change.old:
            (everywhere if name == EVERYWHERE else products.setdefault(name, {}))["image"] = change.new
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output, overwrite=overwrite) as (path,):
        GivenThresholds(everywhere, products).write(path)
    _show(changes, left, len(files))
    return changes


def _judge(
    compiled: Compiled, metadata: ModelMetadata, images: Mapping[ImageFile, bool | None], left: Counter[str]
) -> dict[str, Change]:
    """Scores of labelled images by what decides about them; counts those that are left out."""
    judge = Judge(compiled)
    console = Console(stderr=True, highlight=False)
    changes: dict[str, Change] = {}

    def finish(output: Output) -> None:
        if not output.error:
            output.inspection = judge(output, "", maps=False)

    predictions = Predictor(compiled).predict(list(images), finish)
    for found in track(predictions, "Judging", len(images), console=console, transient=True):
        if found.inspection is None:
            console.print(found.error, soft_wrap=True, markup=False)
            left["cannot be judged"] += 1
        elif found.inspection.decision == UNKNOWN_PRODUCT:
            left["show none of the model's products"] += 1
        elif found.inspection.raw_score is None:
            left["have no raw score"] += 1
        else:
            product = found.inspection.product or _category(compiled, found.file.path)
            change = changes.setdefault(product, Change(old=_threshold(metadata, product)))
            (change.defective if images[found.file] else change.good).append(found.inspection.raw_score)
    return changes


def _category(compiled: Compiled, path: Path) -> str:
    """By which threshold a model that does not recognise products decides, if it is told the category."""
    return find_category(path, {*compiled.metadata.categories, *compiled.metadata.category_thresholds}) or EVERYWHERE


def _threshold(metadata: ModelMetadata, product: str) -> float | None:
    if product == EVERYWHERE:
        return metadata.threshold_of("image")
    of_product = metadata.category_thresholds.get(product, {}).get("image")
    return of_product if of_product is None else metadata.moved(of_product, "image")


def _decide(changes: Mapping[str, Change], rate: float) -> None:
    """Fill in new thresholds; with too few images, the old ones stay."""
    scores = {
        name: KnownScores(good=np.array(of.good), defective=np.array(of.defective)) for name, of in changes.items()
    }
    for name, limit in limits(scores, rate).items():
        of = changes[name]
        if math.isnan(limit.threshold):
            of.new, of.rule = of.old, f"stays: fewer than {LEAST_GOOD} good images"
        else:
            of.new, of.rule = float(f"{limit.threshold:.7g}"), limit.rule.partition(":")[0]


def _show(changes: Mapping[str, Change], left: Mapping[str, int], images: int) -> None:
    console = Console(highlight=False)
    table = Table(title="Thresholds in raw scores; mistakes on these images, before \u2192 after")
    for name in ("product", "good", "defective", "old", "new", "false\nalarms", "missed", "rule"):
        is_text = name in {"product", "rule"}
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for name, of in changes.items():
        before, after = of.mistakes(of.old), of.mistakes(of.new)
        cells = (
            name or "all products",
            str(len(of.good)),
            str(len(of.defective)),
            *("none" if value is None else f"{value:.4g}" for value in (of.old, of.new)),
            *(
                " \u2192 ".join("?" if found is None else str(getattr(found, kind)) for found in (before, after))
                for kind in ("false_alarms", "missed")
            ),
            of.rule,
        )
        table.add_row(*map(Text, cells))  # square brackets are no markup
    console.print(table)
    for why, number in left.items():
        if number:
            console.print(f"{number} of {images} images {why}.", markup=False)

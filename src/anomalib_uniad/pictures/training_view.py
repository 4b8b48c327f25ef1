# SPDX-License-Identifier: Apache-2.0
"""How a training went, to look at: loss, learning rate, metrics, and the maps of a few images over the epochs."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from anomalib.loggers.base import ImageLoggerBase
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from anomalib_uniad.captions import printable
from anomalib_uniad.files import replacing, save_picture
from anomalib_uniad.image_files import read_image
from anomalib_uniad.inference.heatmap import draw_heatmap
from anomalib_uniad.metric_names import in_words

from .visualizer import relative_map

IMAGES = 6
_SIDE, _ROWS = 112, 8  # pixels of a picture, validations that are shown
_RATE = "#D55E00"


class TrainingView(Callback):
    """Keeps what a training shows of itself, and draws it: ``training.png`` in the folder of the run.

    After each validation, the maps of a few validation images, the same each time and half of them defective where
    there are some, go to the loggers: those of anomalib, such as ``AnomalibTensorBoardLogger`` and
    ``AnomalibMLFlowLogger``, and as files beside the table of Lightning's ``CSVLogger``. Each map is relative to its
    own range.

    A training that is resumed keeps its curves, but not the maps from before.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []
        self._paths: list[str] = []
        self._maps: dict[int, dict[str, np.ndarray]] = {}  # epoch -> path -> picture (h, w, 3)

    def state_dict(self) -> dict[str, Any]:
        """The curves."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with curves."""
        self._rows = list(state_dict["rows"])

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose images, the first time."""
        samples = getattr(getattr(trainer.datamodule, "val_data", None), "samples", None)  # type: ignore[attr-defined]
        if not self._paths and samples is not None and _training(trainer):
            defective = samples["label_index"] == 1
            for rows in (samples[defective], samples[~defective]):
                chosen = np.linspace(0, len(rows) - 1, min(IMAGES // 2, len(rows))).round().astype(int)
                self._paths += list(map(str, rows["image_path"].iloc[np.unique(chosen)]))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the maps of the chosen images."""
        if not _training(trainer) or outputs.anomaly_map is None:
            return
        geometry, value_range = (getattr(pl_module, name, None) for name in ("geometry", "value_range"))
        for row, path in enumerate(map(str, outputs.image_path or [])):
            if path not in self._paths:
                continue
            with suppress(OSError, ValueError):  # the image is gone or damaged since its features were computed
                pixels = read_image(path, value_range)
                values = relative_map(outputs.anomaly_map[row], pixels.shape[:2], geometry)
                drawn = np.asarray(draw_heatmap(pixels, values))
                self._maps.setdefault(trainer.current_epoch + 1, {})[path] = _small(drawn)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the maps to the loggers, and keep the metrics."""
        epoch = trainer.current_epoch + 1
        if not _training(trainer) or not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if _is_shown(name)}
        self._row(epoch).update(metrics)
        drawn = self._maps.get(epoch)
        if drawn:
            strip = np.concatenate([drawn[path] for path in self._paths if path in drawn], axis=1)
            for logger in trainer.loggers:
                _log(logger, strip, epoch, trainer.global_step)
        if len(self._maps) > 2 * _ROWS:  # of long trainings, every second one of those that are kept
            for old in sorted(self._maps)[1:-1:2]:
                del self._maps[old]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep loss and learning rate."""
        row = self._row(trainer.current_epoch + 1)
        row["train_loss"] = float(trainer.callback_metrics.get("train_loss", np.nan))
        row["learning_rate"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the picture."""
        if not trainer.is_global_zero or trainer.fast_dev_run or not self._rows:  # type: ignore[attr-defined]
            return
        file = Path(trainer.default_root_dir, "training.png")
        if file.parent.resolve() == Path.cwd():  # a trainer's default, and no folder of a run
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = _draw(pd.DataFrame(self._rows).sort_values("epoch"), self._maps, self._paths)
            with replacing(file) as (part,):
                picture.savefig(part, format="png")
        except (OSError, RuntimeError, TypeError, ValueError) as error:  # the model is worth more than its picture
            rank_zero_warn(f"{file} cannot be written: {error}")

    def _row(self, epoch: int) -> dict[str, float]:
        for row in self._rows:
            if row["epoch"] == epoch:
                return row
        self._rows.append({"epoch": epoch})
        return self._rows[-1]


def _training(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _is_shown(name: str) -> bool:
    """Whether a metric is a mean over categories that is drawn."""
    return "/" not in name and name.startswith(("image_", "pixel_"))


def _small(pixels: np.ndarray) -> np.ndarray:
    """A picture of a height, with the proportions of the image, though none is wider than three times that."""
    height, width = pixels.shape[:2]
    size = max(1, round(_SIDE * min(max(width / height, 1 / 3), 3))), _SIDE
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _log(logger: Any, picture: np.ndarray, epoch: int, step: int) -> None:
    if isinstance(logger, ImageLoggerBase):
        # TensorBoard has a slider over the steps of one name; others would replace a file of the same name.
        name = "maps" if isinstance(logger, TensorBoardLogger) else f"maps/epoch_{epoch:04d}.png"
        logger.add_image(image=picture, name=name, global_step=step)
    elif isinstance(logger, CSVLogger):
        file = Path(logger.log_dir, "maps", f"epoch_{epoch:04d}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        save_picture(Image.fromarray(picture), file)


def _draw(rows: pd.DataFrame, maps: dict[int, dict[str, np.ndarray]], paths: Sequence[str]) -> Figure:
    """Curves on top, below a row of maps for each validation."""
    epochs = sorted(maps)
    wanted = np.linspace(epochs[0], epochs[-1], min(_ROWS, len(epochs))) if epochs else ()
    shown = sorted({min(epochs, key=lambda epoch: abs(epoch - place)) for place in wanted})
    heights = [3.2, *([0.3 + 1.6 * len(shown)] if shown else [])]
    figure = Figure(figsize=(11, sum(heights)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    top, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat
    loss, metrics = top.subplots(1, 2)
    loss.plot(rows["epoch"], rows["train_loss"], ".-", color="black")
    positive = (rows["train_loss"].dropna() > 0).all()
    loss.set(xlabel="epoch", ylabel="training loss", yscale="log" if positive else "linear")
    rate = loss.twinx()
    rate.plot(rows["epoch"], rows["learning_rate"], "--", color=_RATE)
    rate.set_ylabel("learning rate", color=_RATE)
    names = [name for name in map(str, rows) if _is_shown(name) and rows[name].notna().any()]
    for name in names:
        known = rows.dropna(subset=[name])
        metrics.plot(known["epoch"], 100 * known[name], ".-", label=in_words(name) or name.replace("_", " "))
    metrics.set(xlabel="epoch", ylabel="validation, %")
    if names:
        metrics.legend(fontsize="small")
        low, high = metrics.get_ylim()
        metrics.set_ylim(low, min(high, 101))  # a single value has percents around it that there are not
    metrics.set_xlim(loss.get_xlim())
    for axes in (loss, metrics):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for part in below:
        grid = part.subplots(len(shown), len(paths), squeeze=False)
        for line, epoch in zip(grid, shown, strict=True):
            for axes, path in zip(line, paths, strict=True):
                axes.set(xticks=[], yticks=[], frame_on=False)
                if path in maps[epoch]:
                    axes.imshow(maps[epoch][path])
            line[0].set_title(f"epoch {epoch}", fontsize=8, loc="left")
        for axes, path in zip(grid[-1], paths, strict=True):
            words = "/".join(Path(path).parts[-4:])
            words = printable(words if len(words) <= 30 else f"…{words[-29:]}")
            axes.set_xlabel(words, fontsize=7, parse_math=False)
    return figure

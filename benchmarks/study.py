# SPDX-License-Identifier: Apache-2.0
"""Trains and tests a recipe through anomalib's own command line, and adds what came out to ``results/``.

python benchmarks/study.py configs/quickstart.yaml --seeds [0,1,2] --name UniAD
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jsonargparse import auto_cli
from omegaconf import OmegaConf

from harness import RESULTS, add_rows, show


def study(
    recipe: Path,
    seeds: Sequence[int] | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path = RESULTS,
    work_dir: Path = Path("runs"),
) -> None:
    """Train and test a recipe, in processes of their own, and add the results to two csv files.

    ``<output_dir>/<group>.csv`` gets the metrics per category and the seconds from start to end,
    ``<output_dir>/<group>_epochs.csv`` the validation metrics per epoch if the recipe has a ``CSVLogger``;
    ``<group>`` is the recipe's name up to the first hyphen. Rows of the same name and seed are replaced.

    Args:
        recipe: Config for ``anomalib train``.
        seeds: Seeds for UniAD, one run each; one run as the recipe says if left out.
        name: Name of the method in the files; the recipe's name if left out.
        overrides: Further arguments for ``anomalib train``, for example ``["--data.train_batch_size=32"]``.
        output_dir: Folder of the csv files.
        work_dir: Folder of the runs (checkpoints, heatmaps, logs).
    """
    path = output_dir / f"{recipe.stem.split('-')[0]}.csv"
    has_logger = OmegaConf.select(OmegaConf.load(recipe), "trainer.logger") is not None
    for seed in seeds or [None]:
        variant = [override.lstrip("-") for override in overrides] + ([] if seed is None else [f"seed{seed}"])
        root = work_dir / "-".join([recipe.stem, *variant])
        arguments = ["train", "--config", str(recipe), *overrides]
        arguments += [] if seed is None else ["--model.seed", str(seed)]
        folders = ["--default_root_dir", str(root)]
        if has_logger:  # each run has its own folder, also when it logs
            folders += ["--trainer.logger.init_args.save_dir", str(root)]
        command = [str(Path(sys.executable).with_name("anomalib")), *arguments, *folders]
        print("$", shlex.join(["anomalib", *command[1:]]), flush=True)
        start = time.perf_counter()
        subprocess.run(command, check=True)
        collect(root, path, name or recipe.stem, time.perf_counter() - start, shlex.join(["anomalib", *arguments]))
    show(path, ("method", "category", "image_AUROC", "pixel_AUROC", "seed", "seconds"))


def collect(root: Path, path: Path, name: str, seconds: float, command: str) -> None:
    """Add the results of a run to the csv file of the metrics per category, and to that of the epochs beside it."""
    metrics = newest(root, final=True)
    if metrics is None:
        msg = f"No metrics.csv with results per category below {root}: the run has not come to its end."
        raise FileNotFoundError(msg)
    metrics.insert(0, "method", name)
    add_rows(path, metrics.assign(seconds=round(seconds, 1), command=command), ("method", "seed"))
    epochs = newest(root, final=False)
    if epochs is not None:
        if "train_loss" in epochs:  # what comes later was logged by the test at the end
            epochs = epochs[epochs["epoch"] <= epochs.loc[epochs["train_loss"].notna(), "epoch"].max()]
        keep = ["epoch", *(name for name in epochs if str(name).startswith(("image_AUROC", "pixel_AUROC")))]
        epochs = epochs[keep].dropna(subset=["image_AUROC", "epoch"])
        epochs["epoch"] = epochs["epoch"].astype(int) + 1  # Lightning counts from 0
        epochs = epochs.drop_duplicates("epoch")
        epochs.insert(0, "method", name)
        about = {column: metrics[column].iloc[0] for column in ("seed", "device", "versions")}
        add_rows(path.with_stem(f"{path.stem}_epochs"), epochs.assign(**about, command=command), ("method", "seed"))


def newest(root: Path, final: bool) -> pd.DataFrame | None:
    """The newest table of metrics below a folder: the evaluator's (final), which has categories, or the logger's."""
    for path in sorted(root.rglob("metrics*.csv"), key=lambda path: path.stat().st_mtime, reverse=True):
        table = pd.read_csv(path, dtype={"category": str})
        if "image_AUROC" in table and ("category" in table) == final:
            return table
    return None


if __name__ == "__main__":
    auto_cli(study)

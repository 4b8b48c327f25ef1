# SPDX-License-Identifier: Apache-2.0
"""Runs a config through anomalib's own command line and writes what came out into ``results/``.

    python -m anomalib_uniad.benchmark.runner configs/quickstart.yaml --seeds [1,2,3]

Every row of the files says by itself how it came about: command, seed, epochs, versions, device.
"""

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import auto_cli
from omegaconf import OmegaConf

logger = logging.getLogger(__name__)


def benchmark(
    recipe: Path,
    seeds: Sequence[int] | None = None,
    name: str | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path = Path("results"),
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
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    group = recipe.stem.split("-")[0]
    has_logger = OmegaConf.select(OmegaConf.load(recipe), "trainer.logger") is not None
    runs: Sequence[int | None] = seeds or [None]
    for seed in runs:
        variant = [override.lstrip("-") for override in overrides] + ([] if seed is None else [f"seed{seed}"])
        root = work_dir / "-".join([recipe.stem, *variant])
        arguments = ["train", "--config", str(recipe), *overrides]
        arguments += [] if seed is None else ["--model.seed", str(seed)]
        folders = ["--default_root_dir", str(root)]
        if has_logger:  # each run has its own folder, also when it logs
            folders += ["--trainer.logger.init_args.save_dir", str(root)]
        command = [str(Path(sys.executable).with_name("anomalib")), *arguments, *folders]
        logger.info("$ %s", shlex.join(["anomalib", *command[1:]]))
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        collect(root, output_dir / f"{group}.csv", name or recipe.stem, seconds, shlex.join(["anomalib", *arguments]))


def collect(root: Path, output: Path, name: str, seconds: float, command: str) -> None:
    """Add the results of a run to the csv files.

    Args:
        root: Folder of the run.
        output: The csv file of the metrics per category; that of the epochs lies beside it.
        name: Name of the method.
        seconds: Time from start to end.
        command: What was run.
    """
    metrics = _newest(root, "image_AUROC", final=True)
    if metrics is None:
        msg = f"No metrics.csv with results per category below {root}: the run has not come to its end."
        raise FileNotFoundError(msg)
    metrics.insert(0, "method", name)
    metrics["seconds"] = round(seconds, 1)
    metrics["command"] = command  # without the folders of the machine
    add_rows(output, metrics)
    epochs = _newest(root, "image_AUROC", final=False)
    if epochs is not None:
        if "train_loss" in epochs:  # what comes later was logged by the test at the end
            epochs = epochs[epochs["epoch"] <= epochs.loc[epochs["train_loss"].notna(), "epoch"].max()]
        keep = ["epoch", *(c for c in epochs if str(c).startswith(("image_AUROC", "pixel_AUROC")))]
        epochs = epochs[keep].dropna(subset=["image_AUROC", "epoch"])
        epochs["epoch"] = epochs["epoch"].astype(int) + 1  # Lightning counts from 0
        epochs = epochs.drop_duplicates("epoch")
        epochs.insert(0, "method", name)
        for column in ("seed", "device", "versions", "command"):
            epochs[column] = metrics[column].iloc[0]
        add_rows(output.with_stem(f"{output.stem}_epochs"), epochs)


def _newest(root: Path, column: str, final: bool) -> pd.DataFrame | None:
    """The newest table with a column below a folder: the evaluator's (final) or the logger's."""
    for path in sorted(root.rglob("metrics*.csv"), key=lambda path: path.stat().st_mtime, reverse=True):
        table = pd.read_csv(path, dtype={"category": str})
        if column in table and ("category" in table) == final:
            return table
    return None


def add_rows(path: Path, rows: pd.DataFrame, same: Sequence[str] = ("method", "seed")) -> None:
    """Add rows to a csv file, in place of those that agree in some columns, by default of the same method and seed.

    Args:
        path: The file; created if it does not exist.
        rows: The rows.
        same: The columns; empty cells agree with each other.
    """
    rows = rows.assign(seed=rows["seed"].map(_text))
    if path.is_file():
        old = pd.read_csv(path, dtype={"category": str, "seed": str})
        old["seed"] = old["seed"].map(_text)
        replaced = {_key(row, same) for row in rows.to_dict("records")}
        kept = [_key(row, same) not in replaced for row in old.to_dict("records")]
        rows = pd.concat([old[kept], rows], ignore_index=True) if any(kept) else rows
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(path, index=False)
    logger.info("wrote %s", path)


def _key(row: Mapping[Hashable, Any], columns: Sequence[str]) -> tuple[str, ...]:
    """What tells rows apart, as it stands in a csv file; numbers with and without decimals are the same."""
    values = [row.get(column) for column in columns]
    return tuple("" if pd.isna(v) else f"{v:g}" if isinstance(v, (int, float)) else str(v) for v in values)


def _text(seed: Any) -> str:
    """A seed as it stands in a csv file; empty if there is none."""
    return "" if pd.isna(seed) or seed == "" else str(int(float(seed)))


if __name__ == "__main__":
    auto_cli(benchmark)

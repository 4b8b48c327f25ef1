# SPDX-License-Identifier: Apache-2.0
"""Markdown of what was measured, for the terminal and the README."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_uniad.metrics.run_files import to_markdown

from .operations import half_attention_tokens


def read(path: Path) -> pd.DataFrame:
    """Read a csv file of the benchmark."""
    return complete(pd.read_csv(path))


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """Turn cells of text that are empty in a csv file into empty strings."""
    for column in ("compile_mode", "series", "cache"):
        if column in frame:
            frame[column] = frame[column].astype(object).fillna("")
    return frame


def speed(frame: pd.DataFrame) -> str:
    """Training from images: ratios."""

    def one(rows: pd.DataFrame) -> str:
        table = pd.DataFrame(
            {
                "training": rows["variant"],
                "seconds per step": [f"{v:.3g}" for v in rows["seconds_per_step"]],
                "epochs per hour": [f"{v:.2f}" for v in rows["epochs_per_hour"]],
                "times the plain loop": _ratios(rows, "plain"),
                "times without cache": _ratios(rows, "no_cache"),
            }
        )
        first = rows.iloc[0]
        text = (
            f"{to_markdown(table)}\n\nPNG images of {first['image_pixels']:,} px, "
            f"{first['bytes_per_image'] / 1e6:.1f} MB each; batch {first['batch_size']}; processes that read images: "
            f"{first['num_workers']}. An epoch is that of MVTec AD (3,629 images). Rounds: {first['rounds']}, of "
            f"{first['steps']} steps each; medians, and in parentheses the smallest and the largest."
        )
        built = rows.dropna(subset=["build_images_per_second"]) if "build_images_per_second" in rows else rows[:0]
        if len(built):
            text += (
                f" Building the cache, once: {built['build_images_per_second'].median():.1f} images per second, which "
                f"is the time of {built['build_in_epochs_without_cache'].median():.2g} epochs without cache."
            )
        return text

    return _per_device(frame, one)


def floor(frame: pd.DataFrame) -> str:
    """Where the time of a step goes."""

    def one(rows: pd.DataFrame) -> str:
        names = list(rows["part"].unique())
        table: dict[str, list[Any]] = {"part of a step": names}
        for dtype, part in rows.groupby("dtype", sort=False):
            cells = part.set_index("part")
            rates = [cells["gflop_per_second"][name] for name in names]
            table[f"{dtype}, ms"] = _milliseconds(cells["seconds_per_step"][names])
            table[f"{dtype}, share"] = [f"{cells['share_of_step'][name]:.0%}" for name in names]
            table[f"{dtype}, GFLOP/s"] = ["" if pd.isna(rate) else f"{rate:.0f}" for rate in rates]
        return f"{to_markdown(pd.DataFrame(table))}\n\nBatch {rows['batch_size'].iloc[0]}, features from the cache."

    return _per_device(frame, one)


def scaling(frame: pd.DataFrame) -> str:
    """How time and memory grow."""

    def one(rows: pd.DataFrame) -> str:
        texts = []
        images = rows[rows["series"] == "images"]
        if len(images):
            columns = {
                "images": [f"{v:,}" for v in images["images"]],
                "features in": images["cache"],
                "ms per step": _milliseconds(images["seconds_per_step"]),
                "minutes per epoch": [f"{v / 60:.2f}" for v in images["seconds_per_epoch"]],
                "of it reading": [
                    f"{v:.1%}" for v in images["reading_seconds_per_epoch"] / images["seconds_per_epoch"]
                ],
                "disk": _gigabytes(images["disk_bytes"]),
                "memory": _gigabytes(images["peak_memory_bytes"]),
                "of it pages of files": _gigabytes(images["of_it_files_bytes"]),
            }
            texts.append(to_markdown(pd.DataFrame(columns)))
        sizes = rows[rows["series"] == "image size"]
        if len(sizes):
            columns = {
                "image size": sizes["image_size"],
                "tokens": sizes["tokens"],
                "ms per step": _milliseconds(sizes["seconds_per_step"]),
                "attention's share of operations": [f"{v:.0%}" for v in sizes["attention_of_operations"]],
                "attention's share of time": [f"{v:.0%}" for v in sizes["attention_of_time"]],
                "memory": _gigabytes(sizes["peak_memory_bytes"]),
            }
            half = half_attention_tokens()
            texts.append(
                f"{to_markdown(pd.DataFrame(columns))}\n\nAttention has half of the operations from {half:,} tokens "
                f"on, which are images of {16 * half**0.5:.0f} px."
            )
        batches = rows[rows["series"] == "batch"]
        if len(batches):
            columns = {
                "batch": batches["batch_size"],
                "ms per step": _milliseconds(batches["seconds_per_step"]),
                "images per second": [f"{v:.1f}" for v in batches["images_per_second"]],
                "memory": _gigabytes(batches["peak_memory_bytes"]),
            }
            texts.append(to_markdown(pd.DataFrame(columns)))
        return "\n\n".join(texts)

    return _per_device(frame, one)


def gpu(frame: pd.DataFrame) -> str:
    """MVTec AD's size on a GPU."""

    def one(rows: pd.DataFrame) -> str:
        columns = {
            "batch": rows["batch_size"],
            "compile_mode": [mode or "none" for mode in rows["compile_mode"]],
            "steps per second": [f"{v:.1f}" for v in rows["steps_per_second"]],
            "minutes for 1,000 epochs": [f"{v:.1f}" for v in rows["minutes_for_1000_epochs"]],
            "of the matrix rate": [f"{v:.1%}" for v in rows["utilisation"]],
            "memory": _gigabytes(rows["peak_memory_bytes"]),
        }
        rate = rows["matrix_gflop_per_second"].iloc[0] / 1000
        return (
            f"{to_markdown(pd.DataFrame(columns))}\n\nbf16-mixed, {rows['images'].iloc[0]:,} images with generated "
            f"features; measured rate of matrix products: {rate:.0f} TFLOP/s in bfloat16."
        )

    return _per_device(frame, one)


def _per_device(frame: pd.DataFrame, render: Callable[[pd.DataFrame], str]) -> str:
    texts = [f"On {device}:\n\n{render(rows)}" for device, rows in frame.groupby("device", sort=False)]
    return "\n\n".join(texts)


def _ratios(rows: pd.DataFrame, name: str) -> list[str]:
    values = rows[[f"{name}_ratio", f"{name}_ratio_min", f"{name}_ratio_max"]].to_numpy()
    return ["1" if low == high == 1 else f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in values]


def _milliseconds(seconds: pd.Series) -> list[str]:
    return [f"{1000 * v:.0f}" if v >= 0.1 else f"{1000 * v:.1f}" for v in seconds]


def _gigabytes(sizes: pd.Series) -> list[str]:
    return ["" if pd.isna(v) or v == 0 else f"{v / 1e9:.2f} GB" for v in sizes]

# SPDX-License-Identifier: Apache-2.0
"""Markdown of what was measured, for the terminal and the README."""

import pandas as pd

from anomalib_uniad.metrics.run_files import to_markdown

LABELS = {
    "per_category": "this package, per category",
    "functions": "its functions alone, per category",
    "shuffled": "this package, per category, images in random order",
    "pooled": "this package, all images pooled",
    "sklearn": "scikit-learn, per category",
    "anomalib": "anomalib, all images pooled",
}


def speed(frame: pd.DataFrame) -> str:
    """Time and memory of the methods."""
    frame = frame.assign(note=frame["note"].astype(object).fillna(""))
    texts = []
    for (device, image_size, categories), rows in frame.groupby(["device", "image_size", "categories"], sort=False):
        images = sorted(rows["images"].unique())
        times: dict[str, list[str]] = {"processor seconds (times the first)": []}
        memory: dict[str, list[str]] = {"peak memory, MiB": []}
        for method in (name for name in LABELS if name in set(rows["method"])):
            of = {row["images"]: row for row in rows[rows["method"] == method].to_dict("records")}
            for table, cell in ((times, _time), (memory, _memory)):
                next(iter(table.values())).append(LABELS[method])
                for count in images:
                    table.setdefault(f"{count:,} images", []).append(cell(of[count]) if count in of else "")
        next(iter(memory.values())).append("data of one category")
        for count in images:
            memory[f"{count:,} images"].append(_mebibytes(rows[rows["images"] == count]["category_bytes"].iloc[0]))
        heading = f"{categories} categories, maps of {image_size} x {image_size} pixels, on {device}:"
        texts += [heading, to_markdown(pd.DataFrame(times)), to_markdown(pd.DataFrame(memory))]
    return "\n\n".join([*texts, _differences(frame)])


def _time(row: dict) -> str:
    if pd.isna(row["processor_seconds"]):
        return row["note"]
    ratio = "" if pd.isna(row["ratio"]) else f" ({row['ratio']:.3g})"
    return f"{row['processor_seconds']:.3g}{ratio}"


def _memory(row: dict) -> str:
    return row["note"] if pd.isna(row["peak_memory_bytes"]) else _mebibytes(row["peak_memory_bytes"])


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def _differences(frame: pd.DataFrame) -> str:
    sentences = []
    for method, name in (("sklearn", "scikit-learn"), ("anomalib", "anomalib")):
        rows = frame[frame["method"] == method].dropna(subset=["difference"])
        if len(rows):
            sentences.append(
                f"Largest difference to {name}: {rows['difference_AUPRO'].max():.0e} in AUPRO, "
                f"{rows['difference'].max():.0e} in the other metrics."
            )
    return " ".join(sentences)

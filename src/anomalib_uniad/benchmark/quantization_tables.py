# SPDX-License-Identifier: Apache-2.0
"""Tables about INT8 and the other precisions on real images, from their csv files."""

import pandas as pd

from anomalib_uniad.metrics.run_files import to_markdown


def quantization(rows: pd.DataFrame) -> str:
    """What each choice behind INT8 does.

    Args:
        rows (pd.DataFrame): ``quantization.csv``.
    """
    table = pd.DataFrame(
        {
            "INT8": rows["variant"],
            **_differences(rows),
            "quantised tensors": rows["quantised"],
            "MB": [f"{value / 1e6:.1f}" for value in rows["size_bytes"]],
            "s": [f"{value:.0f}" for value in rows["seconds"]],
        }
    )
    (device,) = rows["device"].unique()
    return f"{_what(rows)}, on {device}; s is processor time to quantise:\n\n{to_markdown(table)}"


def industrial_parity(rows: pd.DataFrame) -> str:
    """Each precision against torch.

    Args:
        rows (pd.DataFrame): ``industrial_parity.csv``; the first one is torch.
    """
    first, others = rows.iloc[0], rows.iloc[1:]
    table = pd.DataFrame(
        {
            "precision": others["precision"],
            **_differences(others),
            "flips": [f"{value:.0f}" for value in others["flipped_decisions"]],
            "MB": [f"{value / 1e6:.1f}" for value in others["size_bytes"]],
        }
    )
    return (
        f"{_what(rows)}; torch has image AUROC {first['image_AUROC']:.4f}, pixel AUROC {first['pixel_AUROC']:.4f} and "
        f"AUPRO {first['pixel_AUPRO']:.4f}:\n\n{to_markdown(table)}"
    )


def _differences(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Columns of differences; changes of the mean and, in parentheses, the largest one in a category."""
    columns = {
        "map, largest": [f"{value:.1e}" for value in rows["map_difference_max"]],
        "map, mean": [f"{value:.1e}" for value in rows["map_difference_mean"]],
    }
    for name in ("image_AUROC", "pixel_AUROC"):
        pairs = zip(rows[f"{name}_change"], rows[f"{name}_largest_change"], strict=True)
        columns[name.replace("_", " ")] = [f"{mean:+.4f} ({largest:+.4f})" for mean, largest in pairs]
    columns["AUPRO"] = [f"{value:+.4f}" for value in rows["pixel_AUPRO_change"]]
    return columns


def _what(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return (
        "Differences of maps as parts of their range in torch, changes of metrics (means over categories, in "
        f"parentheses the largest change in one), on {first['images']} test images of {first['categories']} categories"
    )

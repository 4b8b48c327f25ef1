# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a report, without touching what is there."""

from collections.abc import Sequence
from pathlib import Path

from anomalib_uniad.checks import check_at_least
from anomalib_uniad.files import ODD, check_output, replacing

from .comparison import Comparison, compare
from .html import to_html
from .runs import read_runs
from .text import to_csv, to_markdown

NAMES = ("report.md", "report.csv", "report.html")


def write_report(
    paths: Sequence[Path],
    output: Path,
    names: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    heatmaps: int = 2,
    failures: int = 3,
    overwrite: bool = False,
    images: Path | None = None,
) -> tuple[Comparison, list[Path]]:
    """Compare runs, and write report.md, report.csv and report.html.

    Args:
        paths (Sequence[Path]): Folders of runs, or their metrics.json or metrics.csv.
        output (Path): Folder of the report; made if it is not there.
        names (Sequence[str] | None): Names of the runs; ``None`` is their models. Defaults to ``None``.
        metrics (Sequence[str] | None): Which metrics, in this order; ``None`` is all. Defaults to ``None``.
        heatmaps (int): Heatmaps per category. Defaults to ``2``.
        failures (int): False alarms per category, and missed defects per category, those farthest on the wrong side of
            the threshold, each beside the good training image that looks most like it. Defaults to ``3``.
        overwrite (bool): Replace reports that are there. Defaults to ``False``.
        images (Path | None): Folder of the images, to show those without a heatmap. Defaults to ``None``: those in the
            folders of the runs and in the working directory.

    Returns:
        tuple[Comparison, list[Path]]: The runs side by side, and the files.

    Raises:
        OSError: If a run is not there, or files are that would be overwritten.
        ValueError: If a file of a run is damaged, or an argument does not fit the runs.
    """
    check_at_least("heatmaps", heatmaps, 0)
    check_at_least("failures", failures, 0)
    files = [output / name for name in NAMES]
    check_output(output, files, overwrite)
    comparison = compare(read_runs(paths, names), metrics)
    texts = to_markdown(comparison), to_csv(comparison), to_html(comparison, heatmaps, failures, images)
    output.mkdir(parents=True, exist_ok=True)
    with replacing(*files, overwrite=overwrite) as partial:
        for path, text in zip(partial, texts, strict=True):
            # Line ends as they are, since csv brings its own.
            path.write_text(text, encoding="utf-8", errors=ODD, newline="")
    return comparison, files

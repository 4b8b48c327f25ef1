# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad report``. Heavy packages are imported when it runs."""

import sys
from pathlib import Path


def report(
    runs: list[Path],
    output: Path = Path("report"),
    names: list[str] | None = None,
    metrics: list[str] | None = None,
    heatmaps: int = 2,
    overwrite: bool = False,
) -> None:
    """Lay the results of several runs side by side, as report.md, report.csv and one page report.html.

    Args:
        runs: Folders of runs, such as results/UniAD/MVTecAD/latest, or their metrics.json or metrics.csv. In a folder,
            the newest one is taken; if there is none, the newest one of its sub-folders.
        output: Folder of the report; made if it is not there.
        names: What the runs are called, such as '[A,B]', one name for each; default: their models.
        metrics: Which metrics, in this order, such as '[image_AUROC,pixel_AUPRO]'; default: all.
        heatmaps: How many heatmaps per category, of images that all runs have, defective ones first.
        overwrite: Replace reports that are there.
    """
    from rich.console import Console

    from .comparison import compare
    from .decisions import read_decisions
    from .html import to_html
    from .runs import read_runs
    from .tables import show, to_csv, to_markdown
    from .write import check_output, write

    try:
        if heatmaps < 0:
            msg = f"heatmaps must be 0 or more, got {heatmaps}."
            raise ValueError(msg)
        check_output(output, overwrite)
        found = read_runs(runs, names)
        decisions = {run.name: read_decisions(run) for run in found}
        comparison = compare(found, metrics, decided=any(decisions.values()))
        texts = {
            "report.md": to_markdown(comparison, decisions),
            "report.csv": to_csv(comparison),
            "report.html": to_html(comparison, decisions, heatmaps),
        }
        files = write(output, texts)
    except (OSError, ValueError) as error:
        sys.exit(f"report: {error}")
    console = Console(highlight=False)
    show(comparison, console)
    for file in files:
        console.print(f"Wrote {file}.", soft_wrap=True, markup=False)

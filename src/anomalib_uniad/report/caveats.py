# SPDX-License-Identifier: Apache-2.0
"""Why numbers of runs cannot be compared."""

from collections.abc import Sequence

from .runs import Run


def warnings_of(runs: Sequence[Run], metrics: Sequence[str], categories: Sequence[str], decided: bool) -> list[str]:
    """Say what makes numbers of these runs incomparable.

    Args:
        runs (Sequence[Run]): The runs.
        metrics (Sequence[str]): Metrics that are reported.
        categories (Sequence[str]): Categories of any run.
        decided (bool): Whether decisions are reported.

    Returns:
        list[str]: A sentence or two for each cause; empty if there is none.
    """
    found = []
    if differ := _differ(runs, "dataset"):
        found.append(f"The runs are on different data sets ({differ}): their numbers are not comparable.")
    lacking = [f"{run.name} lacks {', '.join(names)}" for run in runs if (names := _missing(run, categories))]
    if lacking:
        found.append(
            f"The runs have different categories: {'; '.join(lacking)}. Their means are not comparable; compare single "
            "categories, or the means of those in common."
        )
    found += _image_counts(runs, categories)
    differ = _differ(runs, "pixel_resolution")
    if differ and any(name.startswith("pixel_") for name in metrics):
        found.append(f"Pixel metrics are at different resolutions ({differ}): they are not comparable.")
    if decided or any(name.endswith("F1Score") for name in metrics):
        found += _thresholds(runs)
    return found


def _missing(run: Run, categories: Sequence[str]) -> list[str]:
    return [name for name in categories if name not in run.categories]


def _differ(runs: Sequence[Run], key: str) -> str:
    """Name what is different, and in which runs; empty if it is the same in all runs in which it is known."""
    known: dict[str, list[str]] = {}
    for run in runs:
        if run.about.get(key):
            known.setdefault(run.about[key], []).append(run.name)
    return "; ".join(f"{', '.join(names)}: {value}" for value, names in known.items()) if len(known) > 1 else ""


def _image_counts(runs: Sequence[Run], categories: Sequence[str]) -> list[str]:
    different = []
    for category in categories:
        counts = {run.name: run.images[category] for run in runs if category in run.images}
        if len(set(counts.values())) > 1:
            different.append(f"{category} ({', '.join(f'{name} {count}' for name, count in counts.items())})")
    if not different:
        return []
    return [f"The runs were tested on different numbers of images: {', '.join(different)}. They are not comparable."]


def _thresholds(runs: Sequence[Run]) -> list[str]:
    found = []
    if differ := _differ(runs, "thresholds"):
        text = f"Thresholds were learned on different images ({differ}): F1Score and decisions are not comparable."
        found.append(text)
    if differ := _differ(runs, "decisions"):
        found.append(f"Decisions are by different kinds of thresholds ({differ}): F1Score is not comparable.")
    seen = [run.name for run in runs if run.about.get("thresholds", "").startswith("test images")]
    if seen:
        names = ", ".join(seen)
        found.append(f"{names}: thresholds were learned on the test images, so F1Score and decisions look too good.")
    return found

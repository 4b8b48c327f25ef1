# SPDX-License-Identifier: Apache-2.0
"""Metrics of each category, and what it has shown for them."""

from dataclasses import dataclass, field
from typing import Any

import torch

from anomalib_uniad.metrics.distributed import gather_objects
from anomalib_uniad.metrics.exact import Level

# What a batch lacks if one of its fields is missing; other fields are predictions.
_MISSING = {"gt_label": "no labels", "gt_mask": "no masks"}
# What is there if all values of a target are 0, and if all are 1.
ONE_KIND = {
    "gt_label": ("only normal images", "only defective images"),
    "gt_mask": ("no defective pixels", "only defective pixels"),
}


@dataclass
class Results:
    """Metrics of each category.

    Attributes:
        metrics (list[str]): Names of the metrics.
        categories (list[str]): Names of the categories.
        values (dict[tuple[str, str], torch.Tensor]): (metric, category) -> value, a scalar; only where the
            metric is defined.
        reasons (dict[tuple[str, str], str]): (metric, category) -> why the metric is undefined there.
        images (dict[str, int]): Number of images of each category.
    """

    metrics: list[str]
    categories: list[str]
    values: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def of(self, metric: str) -> dict[str, torch.Tensor]:
        """Return the values of a metric by category, without the categories in which it is undefined."""
        return {name: self.values[metric, name] for name in self.categories if (metric, name) in self.values}

    def mean(self, metric: str) -> torch.Tensor | None:
        """Return the mean of a metric over the categories in which it is defined; ``None`` if there are none."""
        values = list(self.of(metric).values())
        if len(values) < 2:
            return values[0] if values else None
        return torch.stack([value.double().cpu() for value in values]).mean()

    def logged(self) -> dict[str, torch.Tensor]:
        """Return what is logged: the means, and with several categories ``<metric>/<category>`` as well."""
        named: dict[str, torch.Tensor] = {}
        for metric in self.metrics:
            mean = self.mean(metric)
            if mean is not None:
                named[metric] = mean
            if len(self.categories) > 1:
                named.update({f"{metric}/{name}": value for name, value in self.of(metric).items()})
        return {name: value.float() for name, value in named.items()}  # not all devices have double precision


@dataclass
class Seen:
    """What a category has shown so far; plain data, so that processes can exchange it."""

    images: int = 0
    updated: set[str] = field(default_factory=set)  # names of metrics
    missing: dict[str, str] = field(default_factory=dict)  # metric -> field
    kinds: dict[str, set[bool]] = field(default_factory=dict)  # target -> values that occurred
    levels: set[Level] = field(default_factory=set)  # of which there are scores
    nan: set[Level] = field(default_factory=set)  # in which a score was not a number

    def add(self, other: "Seen") -> None:
        """Add what another process has seen."""
        self.images += other.images
        self.updated |= other.updated
        self.missing |= other.missing
        self.levels |= other.levels
        self.nan |= other.nan
        for target, kinds in other.kinds.items():
            self.kinds.setdefault(target, set()).update(kinds)


def undefined(metric: Any, seen: Seen) -> str:
    """Say why a metric is undefined for what has been seen of a category; empty if it is defined."""
    if not seen.images:
        return "no images"
    if metric.name not in seen.updated:
        lacking = seen.missing.get(metric.name, "")
        return _MISSING.get(lacking, f"no {lacking} from the model")
    target = metric.fields[-1]
    kinds = seen.kinds.get(target, set())
    if target in ONE_KIND and len(kinds) == 1:
        return ONE_KIND[target][next(iter(kinds))]
    return ""


def joined_over_processes(seen: dict[str, Seen]) -> dict[str, Seen]:
    """Join what all processes have seen."""
    everywhere = gather_objects(seen)
    if len(everywhere) == 1:
        return seen
    joined: dict[str, Seen] = {}
    for other in everywhere:
        for category, part_of_it in other.items():
            joined.setdefault(category, Seen()).add(part_of_it)
    return joined

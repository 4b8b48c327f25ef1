# SPDX-License-Identifier: Apache-2.0
"""Names of metrics as people read them, in tables and reports. Files and commands have the metrics' own names."""

import re

_FOUND = re.compile(r"image_TPR@FPR(\d+(?:\.\d+)?)")


def percent_of_false_alarms(metric: str) -> float | None:
    """Rate of false alarms at which a metric says what is found, in percent; ``None`` for other metrics.

    Examples:
        >>> percent_of_false_alarms("image_TPR@FPR0.5"), percent_of_false_alarms("image_AUROC")
        (0.5, None)
    """
    found = _FOUND.fullmatch(metric)
    return float(found[1]) if found else None


def in_words(metric: str) -> str:
    """Say what a metric is where its name does not; empty where it does.

    Examples:
        >>> in_words("image_TPR@FPR2"), in_words("image_AUROC")
        ('found at 2 % false alarms', '')
    """
    percent = percent_of_false_alarms(metric)
    return "" if percent is None else f"found at {percent:g} % false alarms"


def heading(metric: str) -> tuple[str, str]:
    """Two lines for the head of a narrow column.

    Examples:
        >>> heading("image_TPR@FPR2"), heading("pixel_AUPRO"), heading("image_F1Score")
        (('found', 'at 2%'), ('pixel', 'AUPRO'), ('image', 'F1'))
    """
    percent = percent_of_false_alarms(metric)
    if percent is not None:
        return "found", f"at {percent:g}%"
    level, _, name = metric.partition("_")
    return level, name.replace("F1Score", "F1")

# SPDX-License-Identifier: Apache-2.0
"""Durations as people say them."""


def in_words(seconds: float) -> str:
    """Write a duration as people say it.

    Args:
        seconds (float): The duration.

    Returns:
        str: Number and unit.

    Examples:
        >>> [in_words(seconds) for seconds in (1.2, 48, 361, 8000, 300_000)]
        ['1 second', '50 seconds', '6 minutes', '2.2 hours', '3.5 days']
    """
    if seconds < 90:
        rounded = round(seconds, -1 if seconds >= 10 else 0)
        return f"{rounded:.0f} second{'' if rounded == 1 else 's'}"
    for limit, size, unit, digits in ((5400, 60, "minutes", 0), (129_600, 3600, "hours", 1)):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86_400:.1f} days"

# SPDX-License-Identifier: Apache-2.0
"""How long a benchmark will still take, from what its trainings took so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean


@dataclass
class Work:
    """A training as far as time is concerned.

    Attributes:
        kind (tuple[str, ...]): Method, data and mode: those that are alike in the first of these are compared first.
        total (float | None): Seconds that it took, if it is finished, or will take, as far as can be told.
        spent (float): Seconds that it has taken so far.
        finished (bool): Whether it is finished.
    """

    kind: tuple[str, ...]
    total: float | None = None
    spent: float = 0.0
    finished: bool = False


def time_left(works: Sequence[Work], jobs: int) -> float | None:
    """Estimate the seconds until all are finished.

    A training is expected to take as long as others of the same method, data and mode, else of the same method and
    data, else of the same method, else as all others.

    Args:
        works (Sequence[Work]): All trainings.
        jobs (int): How many run at the same time.

    Returns:
        float | None: Seconds; ``None`` if nothing is known yet.

    Examples:
        >>> done = Work(("UniAD", "line", "unified"), total=60.0, finished=True)
        >>> time_left([done, Work(("UniAD", "line", "unified")), Work(("Padim", "line", "unified"))], jobs=1)
        120.0
        >>> time_left([Work(("UniAD", "line", "unified"))], jobs=1) is None
        True
    """
    open_works = [work for work in works if not work.finished]
    if not open_works:
        return 0.0
    known = _means(works)
    if not known:
        return None
    left = [max(_expected(work, known) - work.spent, 0.0) for work in open_works]
    return max(sum(left) / jobs, max(left))


def _means(works: Sequence[Work]) -> Mapping[tuple[str, ...], float]:
    seconds: dict[tuple[str, ...], list[float]] = {}
    for work in works:
        if work.total is not None:
            for length in range(len(work.kind) + 1):
                seconds.setdefault(work.kind[:length], []).append(work.total)
    return {kind: mean(values) for kind, values in seconds.items()}


def _expected(work: Work, known: Mapping[tuple[str, ...], float]) -> float:
    if work.total is not None:
        return work.total
    return next(known[work.kind[:length]] for length in range(len(work.kind), -1, -1) if work.kind[:length] in known)

# SPDX-License-Identifier: Apache-2.0
"""What is wrong with meta files, collected so that all of it is reported together."""

from dataclasses import dataclass
from pathlib import Path

SHOWN = 20
"""Number of problems that a message lists; of the others it says how many there are."""


@dataclass(frozen=True)
class Place:
    """Where something stands.

    Attributes:
        file (Path): The meta file.
        where (str): "line 3", or "train/bottle/3" in ADer's format, counted from 0 there.
        order (tuple[int, int]): What places are sorted by: number of the file, and number in it.
    """

    file: Path
    where: str
    order: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.file}, {self.where}"


class Problems:
    """Everything that is wrong with meta files, so that all of it is reported together."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, place: Place, text: str) -> None:
        """Note a problem."""
        self._found.append((place, text))

    def raise_all(self) -> None:
        """Report all problems, in the order of the files and lines.

        Raises:
            ValueError: If there are any.
        """
        if not self._found:
            return
        found = sorted(self._found, key=lambda item: item[0].order)
        files = ", ".join(dict.fromkeys(str(place.file) for place, _ in found))
        lines = "".join(f"\n- {place}: {text}" for place, text in found[:SHOWN])
        more = f"\n- ... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        msg = f"{len(found)} problem{'' if len(found) == 1 else 's'} in {files}:{lines}{more}"
        raise ValueError(msg)

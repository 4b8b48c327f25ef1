# SPDX-License-Identifier: Apache-2.0
"""Images of a data set as records: path, split, label, masks, category, and what is wrong with each."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from anomalib.data.utils import Split

from anomalib_uniad.errors import InputError

SHOWN = 20  # problems that a message lists; of the others it says how many there are


@dataclass
class Record:
    """An image of a folder or one entry of a meta file, and what is wrong with it.

    Attributes:
        file (Path): The meta file, or the folder of the product.
        where (str): "line 3", or "train/bottle/3" in ADer's format, counted from 0 there; or the path in the folder.
        split (Split): Training or test.
        image (str): Path of the image as written; empty if there is none.
        label (int | None): 0 (normal) or 1 (defective); ``None`` if what is written is a problem.
        label_name (str): Name of the label; "good" or "defective" if that is not written.
        masks (tuple[str, ...]): Paths of the masks as written.
        category (str): Its category.
        paths (tuple[str, ...]): Absolute paths of the image and its masks, once they are found.
        problems (list[str]): What is wrong with it.
    """

    file: Path
    where: str
    split: Split
    image: str = ""
    label: int | None = None
    label_name: str = ""
    masks: tuple[str, ...] = ()
    category: str = ""
    paths: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.file}, {self.where}"


def raise_problems(records: Iterable[Record]) -> None:
    """Raise a ``ValueError`` with all problems of records, in their order; nothing if there are none."""
    found = [(record, text) for record in records for text in record.problems]
    if not found:
        return
    files = ", ".join(dict.fromkeys(str(record.file) for record, _ in found))
    lines = "".join(f"\n- {record.place}: {text}" for record, text in found[:SHOWN])
    more = f"\n- ... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise InputError(f"{len(found)} problem{'' if len(found) == 1 else 's'} in {files}:{lines}{more}")

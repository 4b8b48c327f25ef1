# SPDX-License-Identifier: Apache-2.0
"""Names of folders that say whether images are good. Imports neither torch nor anomalib."""

import re
from collections.abc import Sequence
from pathlib import PurePath

# As `folder_key` writes them.
NORMAL = frozenset({"good", "normal", "ok", "okay", "pass", "passed", "defectfree", "gut", "io"})
ABNORMAL = frozenset(
    {"bad", "abnormal", "ng", "nok", "notok", "notgood", "defect", "defects", "defective", "faulty", "schlecht", "nio"}
    | {"anomaly", "anomalies", "anomalous", "fail", "failed", "reject", "rejects", "rejected"}
)
TEST = frozenset({"test", "testing"})


def folder_key(name: str) -> str:
    """Write a name as in the sets above."""
    return re.sub(r"[\s._-]", "", name).casefold()


def labels_of(paths: Sequence[PurePath]) -> list[bool | None]:
    """Tell by their folders whether images are defective.

    The last folder with a usual name counts. In the layout of MVTec AD, where defects have folders of their own, also
    those beside a folder of good images below ``test`` are of defective ones.

    Args:
        paths (Sequence[PurePath]): Paths of all images.

    Returns:
        list[bool | None]: For each, ``True`` for defective, ``False`` for good, ``None`` if no folder tells.

    Examples:
        >>> paths = ["nut/Not OK/1.png", "nut/test/good/2.png", "nut/test/scratch/3.png", "nut/test/4.png", "good.png"]
        >>> labels_of([PurePath(path) for path in paths])
        [True, False, True, None, None]
    """
    good = {path.parent for path in paths if folder_key(path.parent.name) in NORMAL}
    tests = {folder.parent for folder in good if folder_key(folder.parent.name) in TEST}
    labels: list[bool | None] = []
    for path in paths:
        keys = [key for key in map(folder_key, reversed(path.parent.parts)) if key in NORMAL | ABNORMAL]
        of_defect = path.parent not in good and path.parent.parent in tests
        labels.append(True if of_defect else keys[0] in ABNORMAL if keys else None)
    return labels

# SPDX-License-Identifier: Apache-2.0
"""Names of files for categories, the same wherever one is written or looked for."""

import re
from collections.abc import Sequence

_LONGEST = 100  # characters; file systems take 255 bytes
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # by Windows


def file_names(categories: Sequence[str]) -> dict[str, str]:
    """Choose a name for each category, whose own name may have slashes and the like.

    Args:
        categories (Sequence[str]): Names of all categories, in the order of the run.

    Returns:
        dict[str, str]: Category -> name without suffix: its own name if it has letters, digits, dots, hyphens, spaces
        and underscores only. No two are equal, also where upper and lower case are not told apart.

    Example:
        >>> file_names(["metal_nut", "a/b", "a|b", "..", "Con", "con"])
        {'metal_nut': 'metal_nut', 'a/b': 'a_b', 'a|b': 'a_b_', '..': '_.', 'Con': 'Con_', 'con': 'con__'}
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for category in categories:
        name = re.sub(r"^\.", "_", re.sub(r"[^\w.\- ]", "_", category))[:_LONGEST] or "_"
        name += "_" if _RESERVED.fullmatch(name) else ""
        while name.casefold() in taken:
            name += "_"
        taken.add(name.casefold())
        names[category] = name
    return names

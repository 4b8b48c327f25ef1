# SPDX-License-Identifier: Apache-2.0
"""What was found in a checkpoint of the authors' code, for the terminal."""

import re
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .checkpoint import OfficialCheckpoint

_SOURCES = {
    "tensors": "tensors",
    "arch": "config in the file",
    "default": "paper's default",
    "given": "given",
}


def show(official: OfficialCheckpoint, console: Console | None = None) -> None:
    """Print arguments with their origin, and the tensors that are not used.

    Args:
        official (OfficialCheckpoint): The checkpoint.
        console (Console | None): Where; ``None`` is the terminal. Defaults to ``None``.
    """
    console = console or Console(highlight=False)
    table = Table(title="Arguments of UniAD", box=box.HEAVY_HEAD)
    for name in ("argument", "value", "from"):
        table.add_column(name)
    for name, value in official.arguments.items():
        table.add_row(Text(name), Text(str(value)), Text(_SOURCES[official.sources[name]]))
    console.print(table)
    trained = "" if official.epoch is None else f", trained for {official.epoch} epochs"
    console.print(f"{official.used} tensors are used{trained}.", soft_wrap=True)
    if official.unused:
        console.print(f"{len(official.unused)} tensors are not used:", soft_wrap=True)
    for line in grouped(official.unused):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def grouped(names: Sequence[str]) -> list[str]:
    """Names of tensors by the module that they belong to, with their number.

    Args:
        names (Sequence[str]): Names of tensors.

    Example:
        >>> grouped(["a._fc.weight", "a._fc.bias", "a._blocks.22.bn.weight", "a._blocks.23.bn.weight", "b"])
        ['a._blocks.22 to 23: 2 tensors', 'a._fc: bias, weight', 'b']
    """
    blocks: dict[str, list[int]] = {}
    modules: dict[str, list[str]] = {}
    for name in names:
        if match := re.match(r"(.*?(?:blocks\.|layer))(\d+)\.", name):
            blocks.setdefault(match[1], []).append(int(match[2]))
        else:
            module, _, tensor = name.rpartition(".")
            modules.setdefault(module, []).append(tensor)
    lines = [f"{name}{min(found)} to {max(found)}: {len(found)} tensors" for name, found in blocks.items()]
    for module, tensors in modules.items():
        lines.append(f"{module}: {', '.join(sorted(tensors))}" if module else ", ".join(tensors))
    return lines

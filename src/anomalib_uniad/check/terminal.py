# SPDX-License-Identifier: Apache-2.0
"""What was found, in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .command import Checked, summary

_MOST = 40  # kinds of findings


def show(checked: Checked, files: Sequence[Path]) -> None:
    """Print the products, what is wrong with them, and what trains on them.

    Args:
        checked (Checked): What was found.
        files (Sequence[Path]): What was written.
    """
    console = Console(highlight=False)
    table = Table(title=f"Products in {checked.source.name}")
    for name in ("product", "good", "good test", "defective", "masks", "sizes", "types"):
        table.add_column(name, justify="left" if name in {"product", "sizes", "types"} else "right", overflow="fold")
    rows = checked.rows()
    for row in rows:
        # As Text: square brackets are no markup.
        table.add_row(*(Text(str(value)) for name, value in row.items() if name != "layout"))
    console.print(table)
    for row in rows:
        console.print(f"{row['product']}: {row['layout']}", markup=False, soft_wrap=True)
    groups = list(checked.groups())
    for group in groups[:_MOST]:
        mark, style = ("Problem", "bold red") if group["stops"] else ("Hint", "yellow")
        count = f" ({group['count']})" if group["count"] > 1 else ""
        console.print(Text(f"{mark}: {group['product']}, {group['kind']}{count}", style))
        for text in group["texts"]:
            console.print(f"  {text}", markup=False, soft_wrap=True)
        if group["more"]:
            console.print(f"  ... and {group['more']} more", markup=False)
    if len(groups) > _MOST:
        console.print(f"... and {len(groups) - _MOST} more kinds")
    console.print(f"{summary(checked)}.", markup=False, soft_wrap=True)
    for file in files:
        console.print(f"Wrote {file}.", markup=False, soft_wrap=True)
    first = "Mend the problems, then train" if checked.stops else "Train"
    console.print(f"{first} with: {checked.source.command}", markup=False, soft_wrap=True)

# SPDX-License-Identifier: Apache-2.0
"""Console command ``anomalib-uniad``: what anomalib's own command has no place for.

Heavy packages are imported by the subcommands that need them.
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_uniad.benchmark.training import train as bench_train  # light: the rest is imported when it runs

if TYPE_CHECKING:
    from anomalib_uniad.training.feature_store import CacheEntry


def cache_ls(directory: Path | None = None) -> None:
    """List the feature caches on this machine.

    Args:
        directory: Where they are; default: anomalib-uniad/features in $XDG_CACHE_HOME or ~/.cache.
    """
    from rich.table import Table
    from rich.text import Text

    from anomalib_uniad.training.feature_store import FeatureStore

    store = FeatureStore(directory)
    entries, unfinished = store.entries(), store.unfinished()
    if entries:
        names = ("key", "dataset", "backbone", "images", "size", "last used")
        table = Table(title=f"Feature caches in {store.directory}")
        for name in names:
            table.add_column(name, justify="right" if name in {"images", "size"} else "left", overflow="fold")
        for entry in entries:
            table.add_row(*map(Text, _row(entry)))  # not plain strings: names in square brackets would be markup
        table.add_section()
        table.add_row("", f"{len(entries)} in total", "", "", _megabytes(sum(entry.size for entry in entries)))
        _show(table)
    else:
        _show(f"There are no feature caches in {store.directory}.")
    if unfinished:
        _show(f"{len(unfinished)} unfinished, being built or left by a build that was killed.")


def cache_clear(directory: Path | None = None, key: str = "") -> None:
    """Delete feature caches, and what builds that were killed have left. Other files stay.

    Args:
        directory: Where they are; default: anomalib-uniad/features in $XDG_CACHE_HOME or ~/.cache.
        key: Only the caches whose key begins so; default: all.
    """
    from anomalib_uniad.training.feature_store import FeatureStore

    store = FeatureStore(directory)
    deleted, freed, busy = store.clear(key)
    for entry in deleted:
        _show(f"Deleted {entry.key} ({entry.meta.get('dataset', 'damaged')}, {_megabytes(entry.size)}).")
    for name in busy:
        _show(f"Left {name}: a training is building it now.")
    if not deleted and not busy and not freed:
        wanted = f" whose key begins with {key!r}" if key else ""
        _show(f"There are no feature caches{wanted} in {store.directory}.")
    else:
        _show(f"Freed {_megabytes(freed)} in {store.directory}.")


# Subcommands: names -> function, nested as deep as needed.
COMMANDS: dict[str, Any] = {
    "cache": {
        "_help": "Features that trainings with feature_cache=disk have kept.",
        "ls": cache_ls,
        "clear": cache_clear,
    },
    "bench": {
        "_help": "Measurements on this machine.",
        "train": bench_train,
    },
}


def main(args: list[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        args (list[str] | None): Arguments; ``None`` is those of the process. Defaults to ``None``.

    Example:
        >>> main(["cache", "ls", "--directory", "/not/there"])
        There are no feature caches in /not/there.
    """
    from jsonargparse import auto_cli

    auto_cli(COMMANDS, args=args, prog="anomalib-uniad", description="Tools of UniAD for anomalib.")


def _row(entry: "CacheEntry") -> list[str]:
    features = entry.meta.get("arrays", {}).get("features", {})
    return [
        entry.key[:8],  # enough for `clear --key`, and the table fits into 80 columns
        str(entry.meta.get("dataset", "damaged")),
        str(entry.meta.get("backbone", "")),
        f"{entry.meta.get('images', '')} {features.get('dtype', '')}".strip(),
        _megabytes(entry.size),
        _date(entry.last_used),
    ]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _show(what: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    # Lines as they are, so that paths can be copied; a table may be wider than a file or pipe seems to be.
    console.print(what, soft_wrap=isinstance(what, str), markup=False)

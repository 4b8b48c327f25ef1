# SPDX-License-Identifier: Apache-2.0
"""The order of the house: imports point one way, files stay short."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "anomalib_uniad"
FILES = sorted(SOURCE.rglob("*.py"))

# What each part may import of this package besides itself; a part is the longest prefix that matches.
ALLOWED = {
    "": {"data", "metrics", "model"},  # __init__: the public names, lazily
    "plugin": set(),
    "file_names": set(),
    "inference": set(),
    "training": {"training", "data.validation"},
    "backbones": set(),
    "data.category": set(),
    "data.validation": set(),
    "data.readable": set(),
    "data": {"data", "metrics.evaluator"},  # the evaluator at run time only, see below
    "metrics": {"metrics", "data.category", "data.readable", "data.validation", "file_names", ""},
    "model.components": {"model.components", "backbones"},
    "model.anomaly_map": set(),
    "model.loss": set(),
    "model.torch_model": {"model.components", "model.anomaly_map"},
    "model.arguments": set(),
    "model.recipe": {"model.arguments", "model.torch_model", "training"},
    "model.lightning_model": {
        "model.components.padding",
        "model.torch_model",
        "model.anomaly_map",
        "model.arguments",
        "model.export",
        "model.loss",
        "model.official",
        "model.recipe",
        "metrics",
    },
    "model.export": {
        "data.category",
        "inference.metadata",
        "model.accuracy",
        "model.pre_processor",
        "model.quantization",
    },
    "model.quantization": {"model.accuracy", "model.calibration"},
    "model.accuracy": {"model.calibration"},
    "model.calibration": set(),
    "model.pre_processor": set(),
    "model.official": {"deploy.official", "model.torch_model"},
    "model": {"model"},
    "deploy.official": {"deploy.official"},
    "deploy": {"deploy", "model", "data", "metrics", "inference"},
    "report": {"file_names"},
    "cli": {"cli", "inference", "training", "benchmark", "deploy", "data", "report"},
    "benchmark": {"benchmark", "deploy", "model", "metrics", "data", "training", ""},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[str]:
    """Modules of this package that a file imports, without the package's name."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            found.append(".".join(["anomalib_uniad", *filter(None, base), *filter(None, [node.module])]))
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
    own = [module for module in found if module.split(".")[0] == "anomalib_uniad"]
    return [module.removeprefix("anomalib_uniad").removeprefix(".") for module in own]


def part_of(module: str) -> str:
    prefixes = [p for p in ALLOWED if p and (module == p or module.startswith(p + "."))]
    return max(prefixes, key=len, default="")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(module_name(path))
    for module in imports(path):
        allowed = ALLOWED[part] | {part}
        assert any(module == a or (a and module.startswith(a + ".")) for a in allowed), f"{part or 'root'} -> {module}"


def test_data_needs_metrics_at_run_time_only() -> None:
    for path in (SOURCE / "data").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            assert not (isinstance(node, ast.ImportFrom) and "metrics" in (node.module or "")), path


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 275


@pytest.mark.parametrize("path", sorted((SOURCE / "model").rglob("*.py")), ids=module_name)
def test_no_foreign_objects_in_the_model(path: Path) -> None:
    text = path.read_text()
    for word in (".cuda(", "import random", "import numpy", ".squeeze()", "assert "):
        assert word not in text, word

# SPDX-License-Identifier: Apache-2.0
"""How the house is built: imports point one way, no circles, no class put together from several."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "anomalib_uniad"

# From the ground up: a room imports rooms of the lines above its own, never one of the same line or below.
LAYERS = (
    {"errors"},
    {"messages"},
    {
        "captions",
        "category",
        "checks",
        "durations",
        "files",
        "geometry",
        "image_files",
        "label_names",
        "metric_names",
        "pages",
        "plugin",
        "splits",
    },
    {"transforms"},
    {"inference", "synthetic", "training", "metrics"},
    {"data", "deploy", "pictures"},
    {"model"},
    {"check", "drift", "import_checkpoint", "parity", "serve"},
    {"trained_run"},
    {"report"},
    {"benchmark", "review", "visualization"},
    {"cli"},
)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports_of(name: str) -> set[str]:
    """Modules of this package that a module imports, wherever the statement stands (functions, TYPE_CHECKING)."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            found.update(f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names)
    return (found & set(FILES)) - {name}


GRAPH = {name: imports_of(name) for name in FILES}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def rooms() -> dict[str, set[str]]:
    """Room -> rooms that it imports; a room is a folder or file directly under the package."""
    graph: dict[str, set[str]] = defaultdict(set)
    for name, targets in GRAPH.items():
        graph[room(name)] |= {room(target) for target in targets} - {room(name), ""}
    return graph


@pytest.mark.parametrize("graph", [GRAPH, rooms()], ids=["files", "rooms"])
def test_no_circles(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_point_one_way() -> None:
    height = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    graph = rooms()
    graph.pop("")  # the package itself: its public names
    assert set(graph) == set(height), "every room has its place in LAYERS"
    wrong = {f"{a} -> {b}" for a, targets in graph.items() for b in targets if height[a] <= height[b]}
    assert not wrong


def test_inside_the_model() -> None:
    order = ["components", "anomaly_map", "torch_model", "lightning_model"]
    for name, targets in GRAPH.items():
        if room(name) == "model" and name.count(".") >= 2:
            below = order[: order.index(part) + 1] if (part := name.split(".")[2]) in order[:-1] else order
            inside = {target.split(".")[2] for target in targets if room(target) == "model" and target.count(".") >= 2}
            assert inside & set(order) <= set(below), name
    lightning = {room(target) for target in GRAPH["anomalib_uniad.model.lightning_model"]}
    assert lightning <= {"model", "training", "deploy", "metrics", "inference", "pictures"}.union(*LAYERS[:4])


def test_no_class_is_put_together_from_several() -> None:
    classes = {node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                own = [ast.unparse(base) for base in node.bases if ast.unparse(base).split(".")[-1] in classes]
                assert len(own) <= 1, f"{name}.{node.name}({', '.join(own)})"


def test_no_foreign_objects_in_the_model() -> None:
    for name, path in FILES.items():
        if room(name) == "model":
            text = path.read_text(encoding="utf-8")
            for word in (".cuda(", "import random", "import numpy", ".squeeze()", "assert "):
                assert word not in text, f"{name}: {word}"

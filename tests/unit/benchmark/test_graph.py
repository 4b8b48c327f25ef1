# SPDX-License-Identifier: Apache-2.0
"""What the export does about the graph is counted."""

from pathlib import Path

import pandas as pd
import pytest
import timm

from anomalib_uniad import UniAD
from anomalib_uniad.benchmark.export_tables import graph as graph_table
from anomalib_uniad.benchmark.export_tables import ports
from anomalib_uniad.benchmark.graph import AFTER, BEFORE, EXECUTED, count, parameters
from small import SMALL

RESULTS = Path(__file__).parents[3] / "results"


@pytest.fixture(scope="module")
def counts() -> pd.DataFrame:
    model = UniAD(**{**SMALL, "layers": (0, 1)}, seed=0, evaluator=False).eval()
    for level in ("image", "pixel"):
        getattr(model.post_processor, f"{level}_min").fill_(0.0)
        getattr(model.post_processor, f"{level}_max").fill_(100.0)
    rows = list(count(model))
    rows[-1] |= parameters(model, "resnet18")
    return pd.DataFrame(rows).assign(backbone="resnet18", height=64, width=64)


@pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves
def test_attention_is_one_operation(counts: pd.DataFrame) -> None:
    table = counts.pivot(index="operation", columns="graph", values="count").fillna(0)
    assert table.loc["ScaledDotProductAttention", AFTER] == 3
    assert table.loc["ScaledDotProductAttention", BEFORE] == 0
    assert table.loc["IsNaN", BEFORE] == 3  # torch's guard against queries that see nothing
    assert table.loc["IsNaN", AFTER] == 0
    assert table.loc["all", AFTER] < table.loc["all", BEFORE]
    for name in ("Select", "ShapeOf", "StridedSlice"):
        assert table[EXECUTED].get(name, 0) == 0
    assert 0 < counts["difference"].max() < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_only_what_is_used_is_in_the_file(counts: pd.DataFrame) -> None:
    """Two of five maps of the backbone; constants of the two parts add up to those of the file, and little else."""
    model = UniAD(**{**SMALL, "layers": (0, 1)}, seed=0)
    kept = sum(parameter.numel() for parameter in model.model.parameters())
    size = counts[(counts["graph"] == AFTER) & (counts["operation"] == "all")]["bytes"].item()
    whole = timm.create_model("resnet18", features_only=True)
    used = sum(parameter.numel() for parameter in model.model.backbone.parameters())
    assert counts["backbone_parameters_used"].max() == used
    assert counts["backbone_parameters"].max() == sum(parameter.numel() for parameter in whole.parameters())
    assert "Of the 11.2 million parameters of the backbone, the 0.2 million that lead" in graph_table(counts)
    assert kept < 0.05 * sum(parameter.numel() for parameter in whole.parameters())
    assert 0.9 * 4 * kept < size < 1.2 * 4 * kept


def test_tables(counts: pd.DataFrame) -> None:
    text = graph_table(counts)
    assert "ScaledDotProductAttention" in text
    assert "Select, ShapeOf and Slice are not among them" in text
    rows = pd.read_csv(RESULTS / "ports.csv")
    assert all(f"`{name}`" in ports(rows) for name in rows["name"])

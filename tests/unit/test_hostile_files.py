# SPDX-License-Identifier: Apache-2.0
"""Files that somebody else has made: none runs code or reaches another file, and each refusal is one sentence."""

import ast
import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper

import anomalib_uniad
from anomalib_uniad import UniAD, trained_run
from anomalib_uniad.benchmark.config import read_config as read_benchmark_config
from anomalib_uniad.benchmark.results import write as write_results
from anomalib_uniad.check.source import read_config
from anomalib_uniad.errors import UserError
from anomalib_uniad.files import lies_in, read_yaml
from anomalib_uniad.inference import ModelMetadata
from anomalib_uniad.inference.compiled import compile_file, read_metadata
from anomalib_uniad.inference.regions_of_interest import RegionsOfInterest
from anomalib_uniad.inference.thresholds_file import GivenThresholds
from anomalib_uniad.model.components.backbone_weights import read_weights
from anomalib_uniad.report.benchmark import read_benchmark
from anomalib_uniad.report.runs import read_runs
from anomalib_uniad.review.table import read_table
from anomalib_uniad.training.checkpoint_reading import read_checkpoint
from anomalib_uniad.training.feature_store import KIND, META, _map_arrays
from anomalib_uniad.visualization.feature_decoder import FeatureDecoder
from benchmark_folders import write_training
from runs import write_picture
from small import SMALL
from tiny_openvino import NORMALISED, save_tiny

SOURCE = Path(anomalib_uniad.__file__).parent


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """What is there if code of a file has run."""
    return tmp_path / "code has run"


def refusal(read: Callable[[], Any], *words: str) -> str:
    """The one sentence of a refusal, which has some words."""
    with pytest.raises(UserError) as caught:
        read()
    sentence = str(caught.value)
    assert len(sentence) < 700
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    return sentence


def dotted(node: ast.AST) -> str:
    """Name of what is called, such as ``torch.load``; empty for what has none."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


# Code


def test_nothing_in_the_package_loads_code() -> None:
    """Each reader of pickles says that it takes weights alone; the one exception asks for TRUST_REMOTE_CODE before."""
    words = r"\b(load|loads|\w+_load|eval|exec|system|popen|read_pickle|package|Environment|TorchInferencer)\s*\(|shell"
    texts = {file.relative_to(SOURCE).as_posix(): file.read_text() for file in SOURCE.rglob("*.py")}
    calls = [
        (file, dotted(node.func), node)
        for file, text in texts.items()
        if re.search(words, text)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
    ]
    arguments = [
        (name, {one.arg: getattr(one.value, "value", None) for one in node.keywords}) for _, name, node in calls
    ]
    of_torch = [given for name, given in arguments if name in {"torch.load", "torch.jit.load", "torch.package"}]
    assert len(of_torch) >= 4
    assert all(given.get("weights_only") is True for given in of_torch)
    assert not [given for name, given in arguments if name == "np.load" and "allow_pickle" in given]
    assert not [name for name, given in arguments if "shell" in given]
    forbidden = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    forbidden |= {"pickle.load", "pickle.loads", "marshal.loads", "joblib.load", "pd.read_pickle"}
    # What the workers of the same prediction send: Ray's machines trust each other, as SECURITY.md says.
    assert [file for file, name, _ in calls if name in forbidden] == ["inference/workers.py"]
    assert [file for file, name, _ in calls if name == "TorchInferencer"] == ["parity/inputs.py"]
    environments = [given for name, given in arguments if name == "Environment"]
    assert [given.get("autoescape") for given in environments] == [True]


@pytest.mark.parametrize("legacy", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pickles(tmp_path: Path, evidence: Path, legacy: bool) -> None:
    content = {"state_dict": {"a": torch.zeros(1)}, "pytorch-lightning_version": "2.6", "x": Runs(evidence)}
    model = UniAD(**SMALL)
    for name, read in (
        ("model.ckpt", lambda file: read_checkpoint(file)),
        ("model.ckpt", lambda file: UniAD.load_from_checkpoint(file)),
        ("model.ckpt", lambda file: UniAD(**SMALL, initial_checkpoint=file)),
        ("backbone.pth", read_weights),
        ("backbone.safetensors", read_weights),
        ("decoder.pt", lambda file: FeatureDecoder.load(file, model)),
    ):
        file = tmp_path / name
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        refusal(lambda read=read, file=file: read(file), str(file))
        file.write_bytes(pickle.dumps(content))
        refusal(lambda read=read, file=file: read(file), str(file))
    assert not evidence.exists()


def test_how_a_checkpoint_wants_to_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning imports what a checkpoint calls its instantiator, some versions whatever it is."""
    (tmp_path / "hostile_module.py").write_text("def make(cls, arguments): raise SystemExit('code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    model = UniAD(**SMALL)
    arguments = {"_instantiator": "hostile_module.make", "_class_path": "hostile_module.Model", **dict(model.hparams)}
    content = {"state_dict": model.state_dict(), "hyper_parameters": arguments, "pytorch-lightning_version": "2.6.0"}
    torch.save(content, tmp_path / "model.ckpt")
    loaded = UniAD.load_from_checkpoint(tmp_path / "model.ckpt")
    assert type(loaded) is UniAD
    assert "hostile_module" not in sys.modules


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"class_path": "os.system", "init_args": {"command": "x"}}, "os.system is no datamodule"),
        ({"class_path": "anomalib.data.Path", "init_args": {}}, "anomalib.data.Path is no datamodule"),
        ({"class_path": "anomalib.data.get_datamodule", "init_args": {"config": {}}}, "is no datamodule"),
        (
            {"class_path": "MultiCategory", "init_args": {"source": "hostile_module.Data"}},
            "hostile_module.Data is of a",
        ),
        ({"class_path": "MultiCategory", "init_args": {"root": "${oc.env:HOME}"}}, "${oc.env:HOME}"),
        ({"class_path": ["a"], "init_args": 5}, "model.yaml"),
        ([], "does not say what the images"),
        ("a", "model.yaml"),
    ],
)
def test_the_config_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: Any, words: str) -> None:
    """``model.yaml`` in the folder of a run that is reported, shown or reviewed."""
    (tmp_path / "hostile_module.py").write_text("raise SystemExit('code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(trained_run, "load", lambda _: None)
    (tmp_path / "model.yaml").write_text(json.dumps({"data": section}))
    refusal(lambda: trained_run.open_run(tmp_path / "model.ckpt", None), words)
    assert "hostile_module" not in sys.modules


# YAML

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}, *a{n}, *a{n}]" for n in range(40))])
HOSTILE_YAML = {
    "code": "!!python/object/apply:os.mkdir ['code has run']",
    "a module": "products: !!python/module:antigravity",
    "an object": "products: {a: !!python/object/new:os.system [x]}",
    "laughs": LAUGHS,
    "laughs of keys": "\n".join(
        ["a0: &a0 {x: 1}", *(f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n} '] * 9)}]}}" for n in range(12))]
    ),
    "itself": "products: &a {b: *a}",
    "depth": "[" * 600,
    "a date": "products: 2001-99-99",
    "no date": "products: !!timestamp x",
    "no bool": "products: !!bool x",
    "no number": "products: !!int x",
    "digits": "products: {a: {image: " + "9" * 10_000 + "}}",
    "large": "products: {a: {image: 0x" + "f" * 10_000 + "}}",
    "bytes": "products: {\0: 1}",
    "nothing": "",
    "a list": "[1, 2]",
    "odd names": "products: {[1]: 2}",
    "long": "products: [" + "x, " * 2000 + "]",
}


@pytest.mark.parametrize("content", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evidence: Path, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trained_run, "load", lambda _: None)
    file = tmp_path / "model.yaml"
    file.write_text(content)
    for read in (
        lambda: GivenThresholds.read(file),
        lambda: RegionsOfInterest.read(file),
        lambda: read_config(file),
        lambda: read_benchmark_config(file),
        lambda: trained_run.open_run(tmp_path / "model.ckpt", None),
    ):
        refusal(read, str(file))
    assert not evidence.exists()


def test_yaml_of_others_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: *a\nc: [*a, *a]")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}, {"x": 1}]}


# Exported files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("image_size", "[" * 100_000),
        ("image_size", "[1" + "0" * 400 + ", 8]"),
        ("image_size", "[8, -8]"),
        ("crop", "[1e999, 0, 1, 1]"),
        ("thresholds", '{"image": 1' + "0" * 400 + "}"),
        ("thresholds", '{"image": 1' + "0" * 9000 + "}"),
        ("thresholds", '{"image": NaN}'),
        ("thresholds", '{"../../x": 1}'),
        ("value_range", "[0, 1" + "0" * 400 + "]"),
        ("products", json.dumps([["x"] * 100_000])),
        ("good_scores", '{"a": {"middle": 0}}'),
        ("image_score", '{"reduction": "max", "pool_size": 1e300, "top_fraction": 1}'),
        ("image_score", '{"reduction": "__import__", "pool_size": 1, "top_fraction": 1}'),
        ("training", "not json"),
        ("training", "\ud800"),
    ],
)
def test_metadata(name: str, text: str) -> None:
    refusal(lambda: ModelMetadata.from_properties({name: text}, "model.xml"), "model.xml", name)


def external(file: Path, location: str, offset: int = 0, length: int = 16) -> Path:
    """An ONNX file whose weights are elsewhere."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        weights.external_data.add(key=key, value=value)
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 2])
    score = helper.make_tensor_value_info("pred_score", TensorProto.FLOAT, [1])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("ReduceSum", ["w"], ["t"], keepdims=0),
        helper.make_node("Add", ["s", "t"], ["u"]),
        helper.make_node("Unsqueeze", ["u", "axes"], ["pred_score"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    graph = helper.make_graph(nodes, "g", [images], [score], [weights, axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


def test_weights_outside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (folder / "w.bin", tmp_path / "secret"):
        file.write_bytes(np.ones(4, np.float32).tobytes())
    assert compile_file(external(folder / "model.onnx", "w.bin")).outputs == {"pred_score": 0}
    for location, *where in (
        ("../secret",),
        (str(tmp_path / "secret"),),
        ("./../secret",),
        ("x/../../secret",),
        ("w.bin", 0, 1 << 40),
        ("w.bin", 1 << 62, 16),
        ("gone.bin",),
        ("",),
    ):
        file = external(folder / "model.onnx", location, *where)
        refusal(lambda file=file: compile_file(file), str(file))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('offset="0"', 'offset="99999999999999"'),
        ('size="', 'size="9'),
        ('shape="', 'shape="99999999999,99999999999,'),
        ("<net", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><net'),
        ('type="Clamp"', 'type="../../x"'),
        ('version="opset', 'version="../opset'),
        ("</net>", ""),
        ('to-layer="', 'to-layer="999'),
    ],
)
def test_xml(tmp_path: Path, old: str, new: str) -> None:
    file = save_tiny(tmp_path / "model.xml", NORMALISED)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    if "DOCTYPE" in new:
        assert "root:" not in str(read_metadata(file))  # entities are not looked up
    else:
        refusal(lambda: compile_file(file), str(file))


def test_models_that_are_none(tmp_path: Path) -> None:
    for content in (b"", b"<net", b"\x08\x08" * 1000, onnx.ModelProto().SerializeToString(), b"\xff" * 100):
        for name in ("model.onnx", "model.xml"):
            (tmp_path / name).write_bytes(content)
            (tmp_path / "model.bin").write_bytes(b"")
            refusal(lambda name=name: compile_file(tmp_path / name), name)


# Paths


def test_what_lies_in_a_folder(tmp_path: Path) -> None:
    for name in ("in/a", "in/.b", "in/.c/d", "out/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out" / "e")
    (tmp_path / "latest").symlink_to(tmp_path / "in")
    folder = tmp_path / "latest"
    names = ("a", "x/../a", "gone", "", ".b", ".c/d", "link", "../out/e", str(tmp_path / "out" / "e"), "a\0", "..")
    found = [name for name in names if lies_in(folder / name, [folder])]
    assert found == ["a", "x/../a", "gone", ""]
    assert lies_in(tmp_path / "out" / "e", [folder, tmp_path / "out"])


def test_masks_of_regions(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_picture(tmp_path / "in" / "mask.png")
    write_picture(tmp_path / "mask.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "mask.png")
    file = tmp_path / "in" / "regions.yaml"
    file.write_text("products: {a: {mask: mask.png}}")
    assert RegionsOfInterest.read(file).products["a"].mask is not None
    for name in ("../mask.png", str(tmp_path / "mask.png"), "link.png", "/etc/passwd", '"\\0"', "~/x.png"):
        file.write_text(f"products: {{a: {{mask: {name}}}}}")
        refusal(lambda: RegionsOfInterest.read(file), str(file), "of a")
    file.write_text("products: {a: {mask: regions.yaml}}")
    refusal(lambda: RegionsOfInterest.read(file), "is no image that can be read")


def test_pictures_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in the folder of the table, the working directory and the folder that is named; none that is hidden."""
    for name in ("out/a.png", "out/.a.png", "here/a.png", "here/.ssh/a.png", "there/a.png", "secret/a.png"):
        write_picture(tmp_path / name)
    (tmp_path / "out" / "link.png").symlink_to(tmp_path / "secret" / "a.png")
    monkeypatch.chdir(tmp_path / "here")
    places = [
        *("a.png", "../secret/a.png", ".ssh/a.png", "../out/link.png", "../out/a.png", "../out/.a.png"),
        *(str(tmp_path / place / "a.png") for place in ("out", "there", "secret")),
    ]
    columns = ["path", "category", "raw_score", "threshold", "decision", "heatmap", "error"]
    rows = [(place, "x", 1, 2, "normal", heatmap, "") for place in places for heatmap in ("", f"../{place}", place)]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "out" / "predictions.csv", index=False)

    def shown(images: Path | None) -> set[str]:
        (group,) = read_table(tmp_path / "out" / "predictions.csv", images=images).groups
        found = {image.picture.resolve() for image in group.images if image.picture is not None}
        return {path.relative_to(tmp_path.resolve()).as_posix() for path in found}

    assert shown(None) == {"here/a.png", "out/a.png"}
    assert shown(tmp_path / "there") == {"here/a.png", "out/a.png", "there/a.png"}


def test_folders_of_benchmarks(tmp_path: Path) -> None:
    training = write_training(
        tmp_path, ("d", "m", "unified", 0), {"nut": (0.5, 0.5)}, metrics="../../../../metrics.csv"
    )
    refusal(lambda: write_results([training], tmp_path, "x"), "result.json names metrics that are not in its folder")
    training = write_training(tmp_path, ("d", "m", "unified", 1), {"nut": (0.5, 0.5)})
    write_results([training], tmp_path, "x")
    table = pd.read_csv(tmp_path / "results.csv")
    for name, value in (("seed", "0/../../../.."), ("mode", "../..")):
        table.assign(**{name: value}).to_csv(tmp_path / "results.csv", index=False)
        refusal(lambda: read_benchmark(tmp_path), "results.csv is damaged")


# Results and caches


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"metrics": ["AP"], "categories": {"a": {"values": {"AP": 1' + "0" * 400 + "}}}}",
        '{"metrics": ["AP"], "categories": {"a": {"values": {"AP": 1' + "0" * 9000 + "}}}}",
        '{"metrics": ["AP"], "categories": {"a": {"values": {"AP": Infinity}}}}',
        '{"metrics": ["AP"], "categories": {"a": {"values": {"AP": {"__class__": "x"}}}}}',
        '{"metrics": {"AP": 1}}',
        "\ud800",
    ],
)
def test_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text, errors="surrogatepass")
    refusal(lambda: read_runs([tmp_path]), "metrics.json")


def test_feature_caches(tmp_path: Path, evidence: Path) -> None:
    secret = tmp_path / "secret.npy"
    np.save(secret, np.zeros(3))
    folder = tmp_path / "cache"
    folder.mkdir()
    about = {"kind": KIND, "key": "k"}
    shape = {"shape": [3], "dtype": "float64"}
    for names in (["../secret"], [str(tmp_path / "secret")]):
        (folder / META).write_text(json.dumps({**about, "arrays": dict.fromkeys(names, shape)}))
        refusal(lambda: _map_arrays(folder, "k"), META)
    np.save(folder / "features.npy", np.array([Runs(evidence)], dtype=object), allow_pickle=True)
    np.save(folder / "labels.npy", np.zeros(3))
    (folder / META).write_text(json.dumps({**about, "arrays": {"features": shape, "labels": shape}}))
    with pytest.raises(ValueError, match=r"pickle|Array can't be memory-mapped"):
        _map_arrays(folder, "k")
    assert not evidence.exists()

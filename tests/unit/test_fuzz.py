# SPDX-License-Identifier: Apache-2.0
"""Every format that is parsed here, damaged at random: it is read, or refused with one sentence.

Meta files have a test of their own, in ``data/test_meta_file_damaged.py``.
"""

import asyncio
import json
import math
import shutil
from collections.abc import Callable, Mapping
from datetime import timedelta
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fastapi import FastAPI, HTTPException, Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from anomalib_uniad.benchmark.config import read_config
from anomalib_uniad.check.source import read_config as read_checked_config
from anomalib_uniad.checks import check_value_range
from anomalib_uniad.data.image_checks import read_mask_file
from anomalib_uniad.data.meta_records import read_meta_files
from anomalib_uniad.deploy.official import checkpoint as official_checkpoint
from anomalib_uniad.deploy.official.safe_file import OfficialFile, _parts, _plain
from anomalib_uniad.drift.predictions import read_predictions as read_drift
from anomalib_uniad.errors import UserError
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.image_files import look, read_image
from anomalib_uniad.inference import Inspection, ModelMetadata
from anomalib_uniad.inference.images import ImageFile
from anomalib_uniad.inference.regions_of_interest import RegionsOfInterest
from anomalib_uniad.inference.thresholds_file import GivenThresholds
from anomalib_uniad.inference.writer import COLUMNS, Writer
from anomalib_uniad.report.benchmark import over_seeds, read_benchmark, read_published
from anomalib_uniad.report.columns import COST, KEYS
from anomalib_uniad.report.runs import read_runs
from anomalib_uniad.review.labels import Labels
from anomalib_uniad.review.table import read_table
from anomalib_uniad.serve.upload import Limits, read_upload
from official import ARCH, small_keys
from tiny_openvino import NORMALISED

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=20),  # of an example; other programs run beside it
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
FEW, MANY = 15, 500  # of each format: some hundred in all, and 10,000
PRODUCTS = ("bottle", "cable")
CALIBRATED = ModelMetadata(
    products=PRODUCTS,
    category_thresholds={name: {"image": 2.0, "pixel": 3.0} for name in PRODUCTS},
    typical_scores=dict.fromkeys(PRODUCTS, 1.0),
    good_scores={"bottle": {"middle": 1.0, "images": 20, "spread": 0.1, "freedom": 19}},
    image_score={"reduction": "max", "pool_size": 16, "top_fraction": 0.01},
    image_size=(64, 64),
    resize_mode="pad",
    crop=(0, 1, 30, 40),
    value_range=(0, 4095),
)

BYTES = [b"nan", b"inf", b"-inf", b"1e400", b"-1", b"0", b"", b" ", b"\xef\xbb\xbf", b"\r\n", b"\n", b";", b",", b"\0"]
BYTES += [b'"', b"'", b"[", b"]", b"{", b"}", b":", b"- ", b"&a ", b"*a", b"!!python/name:os.system ", b"<<: *a", b"#"]
BYTES += [b"\xff", b"\xed\xb0\x80", b"\xc3", b"null", b"true", b"~", b"?", b"|", b">", b"%", b"@", b"`", b"\t", b"0x1p"]
BYTES += [
    b"9" * 5000,
    b"[" * 700,
    b"a" * 5000,
    b"2024-01-01",
    b"1_000",
    b"${a}",
    b"${oc.env:HOME}",
    b"1:30",
    b"\\ud800",
]
VALUES: list[Any] = [None, True, 0, -1, 1, 2, 3.5, 0.5, -0.0, 1e308, math.inf, -math.inf, math.nan, 10**30, 10**400]
VALUES += ["", " ", "x", "nan", "1", "0.5", "a\nb", "\0", "\udcff", "ü", "x" * 3000, [], {}, [[]], [1], ["a"], {"a": 1}]
VALUES += [[1, 2], [0, 0, 1, 1], [0.5, "a"], {"image": -1}, {1: 2}, [None], "bottle", b"bytes", 2**31, 2**63]


def damage(draw: Callable, content: bytes) -> bytes:
    """Change bytes at one place, or all of them."""
    lines = content.splitlines(keepends=True) or [b""]
    start = draw(st.integers(0, len(content)))
    end = min(len(content), start + draw(st.sampled_from([0, 1, 3, 20])))
    line = draw(st.integers(0, len(lines) - 1))
    ways: dict[str, Callable[[], bytes]] = {
        "replace": lambda: content[:start] + draw(st.sampled_from(BYTES)) + content[end:],
        "any": lambda: content[:start] + draw(st.binary(max_size=9)) + content[end:],
        "cut off": lambda: content[:start],
        "repeat": lambda: content[:end] + content[start:],
        "line again": lambda: b"".join([*lines, lines[line]]),
        "line away": lambda: b"".join(lines[:line] + lines[line + 1 :]),
        "semicolons": lambda: content.replace(b",", b";"),
        "Windows": lambda: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
        "UTF-16": lambda: content.decode("latin-1").encode("utf-16"),
    }
    return ways[draw(st.sampled_from(sorted(ways)))]()


def vary(draw: Callable, value: Any) -> Any:
    """Change a value of lists and mappings somewhere in it."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 4)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
        if draw(st.integers(0, 7)):
            items[key] = vary(draw, items[key])
        else:
            del items[key]
        return items if isinstance(value, dict) else list(items.values())
    return draw(st.sampled_from(VALUES))


@st.composite
def damaged(draw: Callable, example: Any) -> Any:
    """A text with one to three damages; a value, changed, and as YAML or JSON where text is wanted."""
    if not isinstance(example, bytes):
        for _ in range(draw(st.integers(1, 3))):
            example = vary(draw, example)
        return example
    for _ in range(draw(st.integers(1, 3))):
        example = damage(draw, example)
    return example


def as_text(value: Any) -> bytes:
    """A value as YAML, or JSON where it is one that YAML cannot write."""
    return yaml.dump(value, allow_unicode=True).encode(errors="surrogateescape")


def refuses(read: Callable[[], object], lines: bool = False) -> None:
    """Have something read, or refused in the way in which a user is told."""
    try:
        read()
    except UserError as error:
        text = str(error)
        assert text.endswith((".", "?"))
        assert len(text) < 1500
        assert "\n" not in text or lines
        assert "object at 0x" not in text


def csv_of(*rows: tuple[object, ...]) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()


PREDICTIONS = csv_of(
    COLUMNS,
    ("in/good/a.png", "bottle", 1.5, 0.4, 2, "normal", 0, 0, "heatmaps/a.jpg", "masks/a.png", "m", "t", ""),
    ("in/bad/b.png", "bottle", 2.5, 0.7, 2, "anomalous", 1, 0.5, "", "", "m", "t", ""),
    ("in/bad/c.png", "", "", "", "", "", "", "", "", "", "m", "t", "in/bad/c.png cannot be read: it is empty."),
    ('"in/""d"".png"', "cable", 1, 0.1, 2, "unknown", 0, 0, "", "", "m", "t", ""),
)
TESTED = csv_of(
    ("category", "path", "label", "product", "raw_score", "normalised_score", "threshold", "decision", "error"),
    ("a", "a/good/0.png", "normal", "", 1.5, 0.4, 2, "normal", ""),
    ("a", "a/bad/0.png", "anomalous", "", 2.5, 0.6, 2, "anomalous", ""),
)
METRICS = csv_of(
    (
        "category",
        "image_AUROC",
        "pixel_AUROC",
        "note",
        "kind",
        "test_images",
        "defective",
        "missed",
        "model",
        "command",
    ),
    ("a", 0.9, "", "pixel_AUROC: no masks", "category", 10, 5, 1, "UniAD", "anomalib test"),
    ("mean", 0.9, "", "pixel_AUROC: over 0 of 1 categories", "mean", 10, 5, 1, "UniAD", "anomalib test"),
)
OF_BENCHMARK = csv_of(
    (*KEYS, "image_AUROC", "note", *COST),
    ("d", "UniAD", "unified", 0, "a", "category", 0.9, "", *[1] * len(COST)),
    ("d", "UniAD", "unified", 0, "mean", "mean", 0.9, "", *[1] * len(COST)),
)
PUBLISHED = csv_of(
    ("data", "method", "mode", "category", "image_AUROC", "source"),
    ("d", "UniAD", "unified", "a", 0.9, "a paper"),
    ("d", "UniAD", "unified", "mean", 0.9, "a paper"),
)
META = b"".join(
    json.dumps(
        {"filename": f"bottle/train/good/{n}.png", "label": 0, "label_name": "good", "clsname": "bottle"}
    ).encode()
    + b"\n"
    for n in range(3)
)
BENCHMARK = {
    "models": {"UniAD": [{"model": {"class_path": "UniAD", "init_args": {"seed": 1}}}, {"trainer": {"max_epochs": 1}}]},
    "data": {"mine": {"class_path": "MultiCategory", "init_args": {"root": "mydata", "categories": ["a"]}}},
    "modes": ["unified", "separate"],
    "seeds": [0, 1],
    "timed_images": 3,
    "output": "out",
}
RUN = {
    "run": {"model": "UniAD", "epochs": 3, "seed": None},
    "metrics": ["image_AUROC"],
    "categories": {
        "a": {
            "images": 3,
            "counts": {"defective": 1, "missed": None},
            "values": {"image_AUROC": 0.9},
            "reasons": {"image_AUROC": ""},
            "threshold_rule": "",
            "thresholds": {"image": 1.0, "pixel": None},
        }
    },
    "mean": {"image_AUROC": 0.9},
}
CHECKED = {"data": {"class_path": "MultiCategory", "init_args": {"root": "products", "categories": ["a"], "seed": 1}}}
THRESHOLDS = {"global": {"image": 0.5}, "products": {"bottle": {"image": 5.2, "pixel": 3.1}, "cable": {"image": 4}}}
REGIONS = {
    "everywhere": {"boxes": [[0.1, 0.0, 0.9, 1.0]]},
    "products": {"bottle": {"mask": "mask.png"}, "cable": {"boxes": [[0.1, 0.2, 0.4, 0.8], [0.6, 0.2, 0.9, 0.8]]}},
}


def read_thresholds(file: Path) -> None:
    found = GivenThresholds.read(file)
    for metadata in (NORMALISED, CALIBRATED):
        found.put_into(metadata, file)


def read_regions(file: Path) -> None:
    found = RegionsOfInterest.read(file)
    found.check(CALIBRATED, True, file)
    for region in found.products.values():
        region.of((30, 40))


def go_on(file: Path) -> None:
    file.with_suffix(".jsonl").write_text("{}\n" * 9)
    with Writer(file.parent, [], origin=("m", "t"), go_on=True):
        pass


def read_numbers(file: Path) -> None:
    benchmark = read_benchmark(file.parent)
    over_seeds(benchmark.table, benchmark.metrics, ["data", "method", "mode"])


def published(file: Path) -> None:
    (file.parent / "results.csv").write_bytes(OF_BENCHMARK)
    read_published(file, read_benchmark(file.parent))


def meta(file: Path) -> None:
    records = read_meta_files(file.parent, file, file.parent / "other.json", None)
    assert all(record.image or record.problems for record in records)


# What is parsed: name of the file, a valid example, and what reads it.
FILES: dict[str, tuple[str, Any, Callable[[Path], object]]] = {
    "thresholds.yaml": ("thresholds.yaml", THRESHOLDS, read_thresholds),
    "regions.yaml": ("regions.yaml", REGIONS, read_regions),
    "benchmark config": ("benchmark.yaml", BENCHMARK, read_config),
    "checked config": ("checked.yaml", CHECKED, read_checked_config),
    "labels.csv": (
        "labels.csv",
        csv_of(("path", "product", "label"), ("in/a.png", "bottle", "good"), ("in/b.png", "", "defective")),
        lambda file: Labels(file).of(["in/a.png", "in/b.png"]),
    ),
    "predictions.csv, review": ("predictions.csv", PREDICTIONS, read_table),
    "predictions.csv, drift": ("predictions.csv", PREDICTIONS, lambda file: read_drift([file])),
    "predictions.csv, watching": ("predictions.csv", PREDICTIONS, go_on),
    "predictions.csv of a test": ("predictions.csv", TESTED, read_table),
    "predictions.csv of a run": ("predictions.csv", TESTED, lambda file: read_runs([file.with_name("metrics.csv")])),
    "metrics.csv": ("metrics-1.csv", METRICS, lambda file: read_runs([file])),
    "metrics.json": ("metrics-2.json", RUN, lambda file: read_runs([file])),
    "results.csv": ("results.csv", OF_BENCHMARK, read_numbers),
    "published.csv": ("published.csv", PUBLISHED, published),
    "meta file": ("meta.json", META, meta),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files beside those that are damaged."""
    root = tmp_path_factory.mktemp("fuzz")
    folder = root / "beside"
    folder.mkdir()
    Image.new("L", (40, 30), 255).save(folder / "mask.png")
    (folder / "metrics.csv").write_bytes(METRICS)
    (folder / "other.json").write_bytes(META)
    (folder / "products" / "a" / "good").mkdir(parents=True)
    Image.new("L", (40, 30), 255).save(folder / "products" / "a" / "good" / "0.png")
    return root


def run(examples: int, strategy: st.SearchStrategy, check: Callable[[Any], None]) -> None:
    """Check examples of a strategy."""

    @settings(SETTINGS, max_examples=examples)
    @given(strategy)
    def test(value: Any) -> None:
        check(value)

    test()


def fuzz_file(name: str, folder: Path, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file_name, example, read = FILES[name]
    place = folder / f"of {name}"
    shutil.copytree(folder / "beside", place, dirs_exist_ok=True)
    monkeypatch.chdir(place)
    file = place / file_name

    def check(content: Any) -> None:
        file.write_bytes(content)
        refuses(lambda: read(file))

    if isinstance(example, bytes):
        whole, strategy = example, damaged(example)
    else:
        dump = (lambda value: json.dumps(value, default=str).encode()) if file.suffix == ".json" else as_text
        whole = dump(example)
        strategy = st.one_of(damaged(example).map(dump), damaged(whole))
    saved = [whole] if read is go_on else [b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n"), whole]  # as by Windows
    for content in saved:
        file.write_bytes(content)
        try:
            read(file)
        except UserError as error:
            assert "global threshold" in str(error)  # which is right for one model, and not for the other
    run(examples, strategy, check)


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, folder: Path, monkeypatch) -> None:
    fuzz_file(name, folder, FEW, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_files_in_many_ways(name: str, folder: Path, monkeypatch) -> None:
    fuzz_file(name, folder, MANY, monkeypatch)


def metadata(examples: int) -> None:
    properties = CALIBRATED.to_properties() | NORMALISED.to_properties() | {"training": '{"epochs": 3}'}
    texts = {name: text.encode() for name, text in properties.items()}

    @st.composite
    def changed(draw: Callable) -> dict[str, str]:
        name = draw(st.sampled_from(sorted(texts)))
        if name not in {"model", "version"} and draw(st.booleans()):
            content = json.dumps(draw(damaged(json.loads(texts[name]))), default=str).encode()
        else:
            content = draw(damaged(texts[name]))
        return properties | {name: content.decode(errors="surrogateescape")}

    def check(values: Mapping[str, str]) -> None:
        refuses(lambda: ModelMetadata.from_properties(values, "model.xml").to_properties())

    run(examples, changed(), check)


def arch(examples: int) -> None:
    """The config of the authors in their checkpoints."""
    shapes = official_checkpoint.identify.__globals__["shapes_of"]("resnet18")
    keys = small_keys("", shapes, channels=192, height=4, width=6)
    state = {key: torch.empty(shape, device="meta") for key, shape, _ in keys}
    example = [dict(part) for part in ARCH]
    example[0] = {"name": "backbone", "type": "models.backbones.resnet18", "kwargs": {"outlayers": [1, 2]}}
    example[2] = {**ARCH[2], "kwargs": {**ARCH[2]["kwargs"], "hidden_dim": 16, "feature_size": [4, 6]}}
    for name in ("num_encoder_layers", "num_decoder_layers", "dim_feedforward"):
        del example[2]["kwargs"][name]
    path = Path("ckpt.pth.tar")

    def load(value: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            content = OfficialFile(state, _parts(_plain(value), path), 1)
            patch.setattr(official_checkpoint, "read_official", lambda _: content)
            official_checkpoint.load_official(path, {})

    load(example)
    run(examples, damaged(example), lambda value: refuses(lambda: load(value)))


def ranges(examples: int) -> None:
    """Arguments with numbers."""

    def check(value: Any) -> None:
        refuses(lambda: check_value_range(value))
        refuses(lambda: Geometry((64, 64), crop=value))
        refuses(lambda: Geometry((64, 64), resize_mode=value))

    run(examples, damaged([0, 4095, 10, 20]), check)


def uploads(examples: int) -> None:
    """Requests to the server."""
    body = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n'
    body += b"content-type: image/png\r\n\r\nPNG\r\n"
    body += b'--x\r\ncontent-disposition: form-data; name="product"\r\n\r\nbottle\r\n--x--\r\n'
    app = FastAPI()
    app.state.limits = Limits(4000, PRODUCTS)

    def check(parts: tuple[bytes, bytes, bytes, bytes]) -> None:
        content, kind, length, query = parts

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        headers = [(b"content-type", kind), (b"content-length", length)]
        scope = {"type": "http", "method": "POST", "headers": headers, "query_string": query, "app": app}
        try:
            asyncio.run(read_upload(Request(scope, receive)))
        except HTTPException as error:
            assert error.status_code in {400, 413, 415, 422}
            assert error.detail.endswith(".")

    whole = (body, b"multipart/form-data; boundary=x", str(len(body)).encode(), b"map=png")
    check(whole)
    run(examples, st.tuples(*(st.one_of(st.just(part), damaged(part)) for part in whole)), check)


def images(examples: int, folder: Path) -> None:
    """Pixels, as images and as masks."""
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    examples_of = {}
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF"):
        data = BytesIO()
        Image.fromarray(pixels).save(data, kind)
        examples_of[kind] = data.getvalue()
    file = folder / "image.png"

    def check(content: bytes) -> None:
        file.write_bytes(content)
        refuses(lambda: read_image(file, (0, 9)))
        assert "\n" not in look(file).reason
        assert "\n" not in read_mask_file(str(file)).seen.reason

    run(examples, st.sampled_from(sorted(examples_of)).flatmap(lambda kind: damaged(examples_of[kind])), check)


OTHERS = {"metadata": metadata, "arch": arch, "ranges": ranges, "uploads": uploads}


@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str) -> None:
    OTHERS[name](FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_others_in_many_ways(name: str) -> None:
    OTHERS[name](MANY)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_images(count: int, folder: Path) -> None:
    images(count, folder)


ODD_NAMES = ["1", "null", "on", "~", "2024-01-01", "a: b", "\udcff", "é", "a\x85b", "\r", "a\nb"]
NAMES = st.text(min_size=1, max_size=9) | st.sampled_from(ODD_NAMES)
NUMBERS = st.floats(min_value=1e-6, max_value=1e6)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_what_is_written_is_read_again(count: int, tmp_path: Path) -> None:
    levels = st.dictionaries(st.sampled_from(["image", "pixel"]), NUMBERS, min_size=1)

    def thresholds(given_: GivenThresholds) -> None:
        given_.write(tmp_path / "thresholds.yaml")
        assert GivenThresholds.read(tmp_path / "thresholds.yaml") == given_

    run(count, st.builds(GivenThresholds, levels, st.dictionaries(NAMES, levels, min_size=1)), thresholds)

    def properties(names: list[str]) -> None:
        known = ModelMetadata(categories=tuple(names), typical_scores=dict.fromkeys(names, 1.5))
        assert ModelMetadata.from_properties(known.to_properties(), "") == known

    run(count, st.lists(NAMES), properties)
    paths = st.lists(NAMES.filter(lambda name: not {"/", "\0"} & set(name)), unique=True, min_size=1)

    def predictions(names: list[str]) -> None:
        files = [ImageFile(Path("in") / name, PurePath(name)) for name in names if name not in {".", ".."}]
        with Writer(tmp_path, files, pictures=False, overwrite=True, origin=("m", "t")) as writer:
            for file in files:
                writer.row(file, Inspection("normal", file.path.name, 0.5, 1.5, 2.0))
        if files:
            (group,) = read_table(tmp_path / "predictions.csv").groups[:1]
            assert group.threshold == 2.0
            found = read_table(tmp_path / "predictions.csv").groups
            assert {image.path for group in found for image in group.images} == {str(file.path) for file in files}
        with Writer(tmp_path, [], pictures=False, origin=("m", "t"), go_on=True) as writer:
            assert writer.judged == {str(file.path.absolute()) for file in files}

    run(count, paths, predictions)

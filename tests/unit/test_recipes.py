# SPDX-License-Identifier: Apache-2.0
"""Every config goes through the parser of anomalib's command line; the recipes are the paper's."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomalib_parser import anomalib_parser
from anomalib_uniad import CIFAR10, MetaFile, MultiCategory, UniAD
from anomalib_uniad.benchmark.config import read_config
from anomalib_uniad.benchmark.expand import check

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted((CONFIGS / "uniad").glob("*.yaml"))
FAST = [CONFIGS / "fast" / name for name in ("uniad.yaml", "mvtecad.yaml")]
QUICKSTART = CONFIGS / "quickstart.yaml"
MODELS = sorted((CONFIGS / "model").glob("*.yaml"))
DATA = sorted((CONFIGS / "data").glob("*.yaml"))
BENCHMARKS = [path for name in ("ablation", "benchmark") for path in sorted((CONFIGS / name).glob("*.yaml"))]
BENCHMARKS = [path for path in BENCHMARKS if "-" not in path.stem]  # the others are parts of them
LARGE = ("images", "jitter", "mask", "methods", "search", "unified")  # of many models
TRAINERS = sorted((CONFIGS / "trainer").glob("*.yaml"))

CIFAR = [f"cifar10_{classes}" for classes in ("01234", "02468", "13579", "56789")]
DATAMODULES = {"metafile": MetaFile, **dict.fromkeys(CIFAR, CIFAR10)}  # the others have MultiCategory
CIFAR_SETTINGS = {"seed": 131, "image_score": "mean", "layers": (0, 1, 2, 3, 4), "visualizer": False}


def parse(*arguments: object) -> Any:
    """Arguments of `anomalib train` as its parser understands them."""
    return anomalib_parser().parse_args(["train", *map(str, arguments)]).train


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    return {name: value for name, value in inspect.signature(cls.__init__).parameters.items() if name != "self"}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def test_the_recipes_are_there() -> None:
    assert [path.stem for path in RECIPES] == ["btech", *CIFAR, "metafile", "mpdd", "mvtecad", "realiad", "visa"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_the_papers(path: Path) -> None:
    parsed = parse("--config", path)
    assert parsed.model.class_path == "anomalib_uniad.UniAD"
    assert parsed.data.class_path.endswith(DATAMODULES.get(path.stem, MultiCategory).__name__)
    epochs, decay = (100, 80) if path.stem == "realiad" else (1000, 800)  # ten times the images: the same steps
    spelled_out = {"image_size": [224] * 2, "neighbor_size": [7] * 2, "neighbor_mask": [True] * 3}
    for name, parameter in parameters(UniAD).items():
        expected = {
            "seed": 133,
            "lr_decay_epoch": decay,
            # The same results, faster; the features of some data sets are too large for it.
            "feature_cache": "off" if path.stem in {"realiad", *CIFAR} else "disk",
            **(CIFAR_SETTINGS if path.stem in CIFAR else {}),
        }.get(name, parameter.default)
        value = plain(parsed.model.init_args[name])
        assert value in (plain(expected), spelled_out.get(name, plain(expected))), name
    assert parsed.data.init_args.train_batch_size == (16 if path.stem in CIFAR else 8)
    assert parsed.data.init_args.val_split_mode == "same_as_test"
    if path.stem in CIFAR:
        assert "".join(map(str, parsed.data.init_args.normal_classes)) == path.stem.removeprefix("cifar10_")
    assert parsed.trainer.max_epochs == epochs
    assert parsed.trainer.max_epochs % parsed.trainer.check_val_every_n_epoch == 0


@pytest.mark.parametrize("path", FAST, ids=lambda path: path.stem)
def test_the_fast_recipe_ends_with_its_decay(path: Path) -> None:
    parsed = parse("--config", path)
    model = parsed.model.init_args
    assert (model.optimizer, model.lr_schedule, model.feature_norm) == ("muon", "wsd", "standard")
    assert parsed.trainer.max_epochs % parsed.trainer.check_val_every_n_epoch == 0
    assert parsed.data.init_args.train_batch_size == 8, "the learning rates belong to it"


def test_own_data_without_a_gpu() -> None:
    parsed = parse("--config", CONFIGS / "fast" / "cpu.yaml", "--data.root", "/mnt/parts")
    assert (str(parsed.data.init_args.root), parsed.data.init_args.source) == ("/mnt/parts", None)
    model, trainer = parsed.model.init_args, parsed.trainer
    assert (model.lr_schedule, model.early_stopping, trainer.accelerator) == ("wsd", True, "cpu")
    assert trainer.val_check_interval == trainer.max_steps  # thresholds are learnt once, at the end


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("data", DATA, ids=lambda path: path.stem)
def test_files_combine(data: Path, trainer: Path) -> None:
    for model in MODELS:
        parsed = parse("--model", model, "--data", data, "--trainer", trainer, "--model.hidden_dim", 64)
        assert parsed.model.init_args.hidden_dim == 64
        assert parsed.data.class_path == f"anomalib_uniad.{yaml.safe_load(data.read_text())['class_path']}"
        assert parsed.trainer.max_epochs == yaml.safe_load(trainer.read_text())["max_epochs"]


def test_a_recipe_can_be_changed_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {init_args: {hidden_dim: 64}}\ntrainer: {max_epochs: 3}")
    arguments = ["--config", CONFIGS / "uniad" / "visa.yaml", "--config", tmp_path / "mine.yaml"]
    parsed = parse(*arguments, "--data.init_args.root", "/mnt/data", "--model.init_args.num_heads", 4)
    assert (parsed.model.init_args.hidden_dim, parsed.model.init_args.num_heads) == (64, 4)
    assert (str(parsed.data.init_args.root), parsed.data.init_args.source) == ("/mnt/data", "Visa")
    assert (parsed.trainer.max_epochs, parsed.trainer.check_val_every_n_epoch) == (3, 10)


@pytest.mark.parametrize(
    ("path", "section", "cls"),
    [
        (CONFIGS / "model" / "uniad.yaml", None, UniAD),
        (CONFIGS / "data" / "mydata.yaml", None, MultiCategory),
        (CONFIGS / "data" / "metafile.yaml", None, MetaFile),
        (QUICKSTART, "model", UniAD),
        (QUICKSTART, "data", MultiCategory),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else None,
)
def test_every_argument_is_spelled_out(path: Path, section: str | None, cls: type) -> None:
    config = yaml.safe_load(path.read_text())
    assert (config[section] if section else config)["init_args"].keys() == parameters(cls).keys()


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in LARGE else []) for path in BENCHMARKS],
    ids=lambda path: f"{path.parent.stem}/{path.stem}",
)
def test_benchmark_config_is_accepted(path: Path) -> None:
    config = read_config(path)
    for given in [*config.models.values()][1:]:
        given["model"]["init_args"].pop("evaluator", None)  # that of the first one; the parser takes half a second
    for (method, data), sections in check(config).items():
        assert sections["data"]["class_path"] in {"MultiCategory", "CIFAR10"}, (method, data)
        assert "root" in sections["data"]["init_args"]


def test_every_yaml_can_be_read() -> None:
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert len(files) > 20
    for path in files:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path

# SPDX-License-Identifier: Apache-2.0
"""Every config goes through the parser of anomalib's command line and names every argument."""

import inspect
from pathlib import Path

import pytest
import yaml
from anomalib.cli.cli import AnomalibCLI

from anomalib_uniad import CIFAR10, MetaFile, MultiCategory, UniAD

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted((CONFIGS / "uniad").glob("*.yaml"))
TRAINING = [*RECIPES, CONFIGS / "uniad_small" / "mvtecad.yaml", CONFIGS / "quickstart.yaml"]


@pytest.fixture(scope="module")
def cli() -> AnomalibCLI:
    """anomalib's command line, its parser only."""
    command_line = AnomalibCLI.__new__(AnomalibCLI)
    command_line.parser = command_line.init_parser()
    command_line.subcommand_parsers = {}
    command_line.subcommand_method_arguments = {}
    command_line.add_subcommands()
    return command_line


def names(cls: type) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters) - {"self"}


CIFAR = [f"cifar10_{classes}" for classes in ("01234", "02468", "13579", "56789")]
DATA = {"metafile": MetaFile, **dict.fromkeys(CIFAR, CIFAR10)}  # the others have MultiCategory


def test_the_recipes_are_there() -> None:
    assert [path.stem for path in RECIPES] == ["btech", *CIFAR, "metafile", "mpdd", "mvtecad", "realiad", "visa"]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_is_accepted_and_complete(path: Path, cli: AnomalibCLI) -> None:
    parsed = cli.parser.parse_args(["train", "--config", str(path)]).train
    assert parsed.model.class_path.endswith("UniAD")
    datamodule = DATA.get(path.stem, MultiCategory)
    assert parsed.data.class_path.endswith(datamodule.__name__)
    config = yaml.safe_load(path.read_text())
    assert config["model"]["init_args"].keys() == names(UniAD)
    assert config["data"]["init_args"].keys() == names(datamodule)


@pytest.mark.parametrize("path", sorted((CONFIGS / "benchmark").glob("*-*.yaml")), ids=lambda path: path.stem)
def test_benchmark_is_accepted(path: Path, cli: AnomalibCLI) -> None:
    name = "CIFAR10" if path.stem.startswith("cifar10") else "MultiCategory"
    assert cli.parser.parse_args(["train", "--config", str(path)]).train.data.class_path.endswith(name)


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_argument_has_a_reason(path: Path) -> None:
    section = path.read_text().split("\nmodel:")[1].split("\ntrainer:")[0]
    assert section.count("#") >= 25


CIFAR_SETTINGS = {"seed": 131, "image_score": "mean", "layers": (0, 1, 2, 3, 4), "visualizer": False}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_the_papers(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    epochs, decay = (100, 80) if path.stem == "realiad" else (1000, 800)  # ten times the images: the same steps
    for name, parameter in inspect.signature(UniAD.__init__).parameters.items():
        if name != "self":
            default = {
                "image_size": [224] * 2,
                "neighbor_size": [7] * 2,
                "neighbor_mask": [True] * 3,
                "seed": 133,
                "lr_decay_epoch": decay,
                # The same results, faster; the features of some data sets are too large for it.
                "feature_cache": "off" if path.stem in {"realiad", *CIFAR} else "disk",
                **(CIFAR_SETTINGS if path.stem in CIFAR else {}),
            }.get(name, parameter.default)
            value = config["model"]["init_args"][name]
            assert value == (list(default) if isinstance(default, tuple) else default), name
    assert config["data"]["init_args"]["train_batch_size"] == (16 if path.stem in CIFAR else 8)
    if path.stem in CIFAR:
        assert "".join(map(str, config["data"]["init_args"]["normal_classes"])) == path.stem.removeprefix("cifar10_")
    assert config["trainer"]["max_epochs"] == epochs
    assert config["trainer"]["max_epochs"] % config["trainer"]["check_val_every_n_epoch"] == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)

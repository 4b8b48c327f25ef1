# SPDX-License-Identifier: Apache-2.0
"""Every config goes through the parser of anomalib's command line and names every argument."""

import inspect
from pathlib import Path

import pytest
import yaml
from anomalib.cli.cli import AnomalibCLI

from anomalib_uniad import MultiCategory, UniAD

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


def test_the_five_recipes_are_there() -> None:
    assert [path.stem for path in RECIPES] == ["btech", "mpdd", "mvtecad", "realiad", "visa"]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_is_accepted_and_complete(path: Path, cli: AnomalibCLI) -> None:
    parsed = cli.parser.parse_args(["train", "--config", str(path)]).train
    assert parsed.model.class_path.endswith("UniAD")
    assert parsed.data.class_path.endswith("MultiCategory")
    config = yaml.safe_load(path.read_text())
    assert config["model"]["init_args"].keys() == names(UniAD)
    assert config["data"]["init_args"].keys() == names(MultiCategory)


@pytest.mark.parametrize("path", sorted((CONFIGS / "benchmark").glob("*-*.yaml")), ids=lambda path: path.stem)
def test_benchmark_is_accepted(path: Path, cli: AnomalibCLI) -> None:
    assert cli.parser.parse_args(["train", "--config", str(path)]).train.data.class_path.endswith("MultiCategory")


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_argument_has_a_reason(path: Path) -> None:
    section = path.read_text().split("\nmodel:")[1].split("\ntrainer:")[0]
    assert section.count("#") >= 25


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
                "feature_cache": "off" if path.stem == "realiad" else "disk",  # the same results, faster
            }.get(name, parameter.default)
            value = config["model"]["init_args"][name]
            assert value == (list(default) if isinstance(default, tuple) else default), name
    assert config["data"]["init_args"]["train_batch_size"] == 8
    assert config["trainer"]["max_epochs"] == epochs
    assert config["trainer"]["max_epochs"] % config["trainer"]["check_val_every_n_epoch"] == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)

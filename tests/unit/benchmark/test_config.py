# SPDX-License-Identifier: Apache-2.0
"""What a config of a benchmark may say, and the trainings that it makes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomalib_uniad.benchmark.config import read_config
from anomalib_uniad.benchmark.expand import check, expand
from anomalib_uniad.benchmark.trainings import RESULT, prepare, write_json
from anomalib_uniad.errors import ExistingFileError, InputError, MissingFileError
from helpers import make_mvtec_like

SMALL = {"class_path": "UniAD", "init_args": {"hidden_dim": 16, "learning_rate": 1e-3}}


def write(folder: Path, **content: Any) -> Path:
    file = folder / "benchmark.yaml"
    defaults = {"models": {"A": {"model": SMALL}}, "data": {"d": {"class_path": "MultiCategory"}}}
    file.write_text(yaml.safe_dump({**defaults, **content}))
    return file


def test_files_and_sections_are_merged(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "trainer.yaml").write_text("max_epochs: 5\nprecision: bf16-mixed")
    (tmp_path / "recipes").mkdir()  # files name others from where they are themselves
    whole = {
        "model": SMALL,
        "data": {"class_path": "MVTecAD", "init_args": {"root": "x", "train_batch_size": 4}},
        "trainer": "../trainer.yaml",
        "seed_everything": 3,
    }
    (tmp_path / "recipes" / "whole.yaml").write_text(yaml.safe_dump(whole))
    models = {
        "listed": [
            "model.yaml",
            "trainer.yaml",
            {"trainer": {"max_epochs": 7}, "model": {"init_args": {"dropout": 0}}},
        ],
        "whole": ["recipes/whole.yaml", {"data": {"init_args": {"eval_batch_size": 2}}}],
        "lists in lists": [["model.yaml", "trainer.yaml"], {"trainer": {"max_epochs": 7}}],
        "other": ["recipes/whole.yaml", {"model": {"class_path": "Padim"}}],
        "name": "Padim",
    }
    data = {"d": "recipes/whole.yaml", "less": ["recipes/whole.yaml", {"init_args": {"root": "y"}}]}
    config = read_config(write(tmp_path, models=models, data=data, modes="separate", seeds=2))
    assert config.models["listed"] == {
        "model": {"class_path": "UniAD", "init_args": {"hidden_dim": 16, "learning_rate": 0.001, "dropout": 0}},
        "trainer": {"max_epochs": 7, "precision": "bf16-mixed"},
    }
    # The images come from the data of the benchmark, the size of batches from the recipe.
    assert config.models["whole"]["data"] == {"init_args": {"train_batch_size": 4, "eval_batch_size": 2}}
    assert config.models["whole"]["trainer"]["max_epochs"] == 5
    assert config.models["other"]["model"] == {"class_path": "Padim"}
    assert config.models["name"] == {"model": {"class_path": "Padim"}}
    assert config.models["lists in lists"]["trainer"] == {"max_epochs": 7, "precision": "bf16-mixed"}
    less = {"class_path": "MVTecAD", "init_args": {"root": "y", "train_batch_size": 4}}
    assert config.data == {"d": whole["data"], "less": less}
    assert (config.modes, config.seeds) == (["separate"], [2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seed": 1}, "has seed, but a benchmark has models, data, modes, seeds"),
        ({"models": {}}, "needs models: a mapping from names to configs"),
        ({"data": None}, "needs data"),
        ({"modes": ["joint"]}, r"modes of .* can be unified and separate, got 'joint'"),
        ({"seeds": [0, -1]}, "whole numbers from 0 on, got -1"),
        ({"seeds": [1, 1]}, r"seeds of .* has a value twice: \[1, 1\]"),
        ({"modes": []}, "modes of .* is empty"),
        ({"timed_images": 0}, "timed_images must be at least 1"),
        ({"models": {"A": {"trainer": {"max_epochs": 1}}}}, "models of .*, A has no model"),
        ({"models": {"A": {"modell": SMALL}}}, "A has modell: its sections are model, data, trainer"),
        ({"models": {"A": 3}}, "A is a file or a mapping, got 3"),
        (
            {"models": {"A": {"model": SMALL, "data": {"init_args": {"root": "x"}}}}},
            "root in its data, which belongs to",
        ),
        (
            {"models": {"A": [{"model": {**SMALL, "init_args": {"a": value}}} for value in ({"screw": 1}, ["turn"])]}},
            "models of .*, A has in its model a mapping and a list",
        ),
        ({"data": {"d": {"root": "x"}}}, "data of .*, d has no class_path"),
        ({"data": {"d": {"class_path": "MultiCategory", "root": "x"}}}, "d has root: arguments .* stand in init_args"),
    ],
)
def test_mistakes(content: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        read_config(write(tmp_path, **content))


def test_output_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    assert read_config(write(tmp_path, output="~/bench")).output == tmp_path / "bench"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        MissingFileError, match=r"models of .*, A: there is no file x\.yaml, neither beside benchmark\.yaml"
    ):
        read_config(write(tmp_path, models={"A": "x.yaml"}))
    with pytest.raises(MissingFileError, match="There is no config"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("models: [")
    with pytest.raises(InputError, match=r"broken\.yaml is no YAML"):
        read_config(tmp_path / "broken.yaml")


def test_trainings(tmp_path: Path) -> None:
    root = tmp_path / "data"
    make_mvtec_like(root, ("bolt", "nut"))
    models = {"A/B": {"model": SMALL, "trainer": {"max_epochs": 2}}, "Padim": "Padim"}
    data = {
        "own": {"class_path": "MultiCategory", "init_args": {"root": str(root)}},
        "mvtec": {"class_path": "MVTecAD", "init_args": {"root": str(root), "category": "nut", "seed": 5}},
    }
    config = read_config(write(tmp_path, models=models, data=data, modes=["unified", "separate"], seeds=[0, 3]))
    trainings = expand(config, tmp_path / "out")
    assert len(trainings) == (2 + 4 + 2 + 2) * 2
    assert len({training.folder for training in trainings}) == len(trainings)
    by_folder = {str(training.folder.relative_to(tmp_path / "out")): training for training in trainings}
    one = by_folder["own/A_B/separate/seed3/nut"]
    assert one.label == "own, A/B, separate, nut, seed 3"
    assert one.config["seed_everything"] == 3
    assert one.config["model"]["init_args"] == {
        "hidden_dim": 16,
        "learning_rate": 0.001,
        "seed": 3,
        "visualizer": False,
    }
    assert one.config["data"]["init_args"]["categories"] == ["nut"]
    assert one.config["trainer"]["max_epochs"] == 2
    assert "seed" not in by_folder["own/Padim/unified/seed3"].config["model"]["init_args"]
    wrapped = by_folder["mvtec/Padim/unified/seed0"].config["data"]
    assert wrapped["class_path"] == "MultiCategory"
    assert wrapped["init_args"] == {"source": "MVTecAD", "root": str(root), "seed": 5, "categories": ["nut"]}


def test_other_images_are_other_trainings(tmp_path: Path) -> None:
    root = make_mvtec_like(tmp_path / "data", ("bolt", "nut"))
    data = {"d": {"class_path": "MultiCategory", "init_args": {"root": str(root), "val_split_mode": "synthetic"}}}
    config = read_config(write(tmp_path, data=data, modes=["unified", "separate"]))

    def changed(overwrite: bool = True) -> list[str]:
        return [t.category or t.mode for t in prepare(expand(config, tmp_path / "out"), overwrite)]

    for training in (trainings := expand(config, tmp_path / "out")):
        training.folder.mkdir(parents=True)
        write_json(training.folder / RESULT, {})
        (training.folder / "config.yaml").write_text(yaml.safe_dump(training.config))
    assert changed() == []  # finished before there were digests
    image = root / "nut" / "test" / "good" / "000.png"
    image.touch()
    assert changed() == []
    shutil.copy(image, image.with_name("new.png"))
    make_mvtec_like(root, ["screw"])
    with pytest.raises(ExistingFileError, match=r"2 of 4 trainings .* made with another config or other images"):
        changed(overwrite=False)
    assert changed() == ["unified", "nut"]
    assert [training.finished for training in trainings] == [False, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"models": {"A": {"model": {"class_path": "UniADD"}}}},
            "models A of .*: there is no AnomalibModule called UniADD",
        ),
        ({"models": {"A": {"model": {"class_path": "UniAD", "init_args": {"hidden": 3}}}}}, "hidden; did you mean"),
        ({"models": {"A": {"model": SMALL, "trainer": {"epochs": 3}}}}, "A on d of .* cannot be used: .*epochs"),
        ({"data": {"d": {"class_path": "MultiCategory", "init_args": {"roots": "x"}}}}, "roots; did you mean root"),
    ],
)
def test_what_anomalib_would_refuse(content: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        check(read_config(write(tmp_path, **content)))


def test_data_that_cannot_be_trained_separately_or_are_not_there(tmp_path: Path) -> None:
    make_mvtec_like(tmp_path, ["bolt"])
    for name, kind in (("train", "train/good"), ("test", "test/good")):
        record = {"filename": f"bolt/{kind}/000.png", "label": 0}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    meta = {"class_path": "MetaFile", "init_args": {"root": str(tmp_path)}}
    with pytest.raises(InputError, match=r"data d of .* cannot be trained separately, as MetaFile has no categories"):
        expand(read_config(write(tmp_path, data={"d": meta}, modes=["separate"])), tmp_path / "out")
    assert len(expand(read_config(write(tmp_path, data={"d": meta})), tmp_path / "out")) == 1
    own = {"class_path": "MultiCategory", "init_args": {"root": str(tmp_path / "nowhere")}}
    with pytest.raises(InputError, match=r"data d of .* cannot be used: The root .*nowhere is not there"):
        expand(read_config(write(tmp_path, data={"d": own})), tmp_path / "new")
    assert not (tmp_path / "new").exists()

# SPDX-License-Identifier: Apache-2.0
"""The folder of a training, and the config that it writes; tests/integration/test_cli.py gives it to the commands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from anomalib.utils.path import create_versioned_dir, paths_to_strings
from anomalib.visualization import ImageVisualizer

from anomalib_uniad import UniAD
from anomalib_uniad.training.run_folder import RunFolder
from small import SMALL


def trainer_of(folder: Path, first: Path | None = None, rank: int = 0, **arguments: Any) -> Any:
    """Stand-in of a trainer that is one process of two if there is a first one's folder."""
    values: dict[str, Any] = {
        "default_root_dir": str(folder),
        "log_dir": str(first or folder),
        "world_size": 1 if first is None else 2,
        "is_global_zero": rank == 0,
        "strategy": SimpleNamespace(broadcast=lambda _: str(first)),
        "callbacks": [],
        "fast_dev_run": False,
        "barebones": False,
    }
    return SimpleNamespace(**{**values, **arguments})


def test_config_of_a_model_that_was_made_in_python(tmp_path: Path) -> None:
    model = UniAD(**{**SMALL, "image_size": (64, 96), "pre_trained": False}, feature_cache_dir=tmp_path / "Größe")
    RunFolder({"pre_trained": None, "backbone_weights": "here", "other": 1}).setup(trainer_of(tmp_path), model, "fit")
    text = (tmp_path / "model.yaml").read_text(encoding="utf-8")
    (config,) = yaml.safe_load(text).values()
    assert config["class_path"] == "anomalib_uniad.UniAD"
    arguments = config["init_args"]
    assert arguments["image_size"] == [64, 96]
    assert arguments["feature_cache_dir"] == str(tmp_path / "Größe")
    assert (arguments["pre_trained"], arguments["backbone_weights"]) == (None, "here")
    assert "other" not in arguments
    again = UniAD(**{**arguments, "pre_trained": False, "backbone_weights": None})
    assert again.hparams == paths_to_strings(dict(model.hparams))
    assert f"--ckpt_path {tmp_path}/weights/lightning/model.ckpt\n" in text


@pytest.mark.parametrize(
    ("stage", "arguments"), [("test", {}), ("fit", {"barebones": True}), ("fit", {"fast_dev_run": 1})]
)
def test_nothing_is_written(tmp_path: Path, stage: str, arguments: dict) -> None:
    RunFolder({}).setup(trainer_of(tmp_path, **arguments), UniAD(**SMALL), stage)
    assert not list(tmp_path.iterdir())


def test_training_that_does_not_start_leaves_no_folder(tmp_path: Path) -> None:
    """The run before it is the latest one again; with what was trained, or other files in it, a folder stays."""
    state = SimpleNamespace(fn="fit")
    callback, model = RunFolder({}), UniAD(**SMALL)

    def fail(folder: Path, **arguments: Any) -> None:
        (folder / "config.yaml").touch()
        trainer = trainer_of(folder, **{"state": state, "global_step": 0, **arguments})
        callback.setup(trainer, model, "fit")
        callback.on_exception(trainer, model, ValueError("no"))

    fail(create_versioned_dir(tmp_path / "UniAD" / "data" / "nut"))
    assert not list(tmp_path.iterdir())
    folders = [create_versioned_dir(tmp_path) for _ in range(11)]
    fail(folders[-1], global_step=1)
    assert folders[-1].is_dir()
    folder = create_versioned_dir(tmp_path)
    fail(folder)
    assert not folder.exists()
    assert (tmp_path / "latest").resolve() == folders[-1]
    folder = create_versioned_dir(tmp_path)
    (folder / "weights").mkdir()
    fail(folder)
    assert (folder / "config.yaml").is_file()


def test_one_folder_for_all_processes(tmp_path: Path) -> None:
    """Whoever comes first; pictures in another one's folder stay."""
    first, second, third = (create_versioned_dir(tmp_path) for _ in range(3))
    (third / "images").mkdir()
    model: Any = SimpleNamespace(visualizer=ImageVisualizer(), hparams={})
    others = [SimpleNamespace(visualizer=ImageVisualizer()), SimpleNamespace(visualizer=None)]
    assert (tmp_path / "latest").resolve() == third
    for folder, other in zip((second, third), others, strict=True):
        RunFolder({}).setup(trainer_of(folder, first, rank=1), other, "fit")
    RunFolder({}).setup(trainer_of(first, first), model, "fit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "v0", "v2"]
    assert (tmp_path / "latest").resolve() == first
    assert (tmp_path / "latest").is_symlink()
    assert others[0].visualizer.output_dir == first / "images"
    assert model.visualizer.output_dir is None


def test_files_of_the_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.yaml").write_text("model: mine\n")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "run"):
        RunFolder({}).setup(trainer_of(folder), UniAD(**SMALL), "fit")
    assert (tmp_path / "run" / "model.yaml").read_text() == "model: mine\n"
    assert not (tmp_path / "model.yaml").exists()

# SPDX-License-Identifier: Apache-2.0
"""anomalib's command line: one training in a fresh process with nothing imported by hand, the rest in this one."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from anomalib.cli.cli import main

from anomalib_uniad.messages import install_excepthook
from helpers import make_mvtec_like, write_image

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL_ARGS = {
    "backbone": "mobilenetv3_small_050",
    "pre_trained": False,
    "image_size": [64, 64],
    "hidden_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "feedforward_dim": 16,
    "neighbor_size": 3,
}
MODEL = [f"--model.{name}={value}" for name, value in MODEL_ARGS.items()]
TRAINER = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def anomalib(folder: Path, *arguments: str, ok: bool = True, **environment: str) -> str:
    """Run the console command; return what it prints."""
    command = [str(Path(sys.executable).with_name("anomalib")), *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1", **environment}
    result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, check=False)
    output = result.stdout + result.stderr
    assert (result.returncode == 0) == ok, output
    return output


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run anomalib's main function in this process, in the folder."""

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["anomalib", *arguments])
        main()

    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli")
    make_mvtec_like(path / "products")
    return path


DATA = ["--data", "MultiCategory", "--data.root", "products", "--data.train_batch_size", "2", "--data.num_workers", "0"]


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    """One run of `anomalib train` with bare names, and its checkpoint."""
    output = anomalib(folder, "train", "--model", "UniAD", *MODEL, *DATA, *TRAINER)
    assert "image_AUROC" in output
    assert "bottle" in output
    assert "cable" in output
    run = folder / "results" / "UniAD" / "products" / "latest"
    assert (run / "metrics.csv").is_file()
    return (run / "weights" / "lightning" / "model.ckpt").resolve()


@pytest.mark.parametrize("name", ["validate", "test"])
def test_evaluation(command: Callable[..., None], checkpoint: Path, capsys, name: str) -> None:
    arguments = (
        ["--config", str(checkpoint.parents[2] / "model.yaml")]
        if name == "test"
        else ["--model", "UniAD", *MODEL, *DATA, *TRAINER]
    )
    command(name, *arguments, "--ckpt_path", str(checkpoint))
    assert "image_AUROC" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves
def test_predict_and_export_with_the_file_that_a_training_writes(
    command: Callable[..., None], folder: Path, checkpoint: Path
) -> None:
    config = str(checkpoint.parents[2] / "model.yaml")
    images = folder / "products" / "cable" / "test" / "broken"
    command("predict", "--config", config, "--data", str(images), "--ckpt_path", str(checkpoint))
    assert (folder / "results" / "UniAD" / "latest" / "images" / "broken" / "000.png").is_file()
    command(
        *("export", "--config", config, "--export_type", "openvino"),
        *("--ckpt_path", str(checkpoint), "--export_root", "exported"),
    )
    assert (folder / "exported" / "weights" / "openvino" / "model.xml").is_file()


def test_checkpoint_of_another_model(command: Callable[..., None], checkpoint: Path) -> None:
    arguments = [*MODEL, "--model.neighbor_size", "1", *DATA, *TRAINER, "--ckpt_path", str(checkpoint)]
    with pytest.raises(ValueError, match=r"neighbor_size: \(3, 3\) in the checkpoint, \(1, 1\) in the model"):
        command("test", "--model", "UniAD", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("class_path", ["UniAD", "anomalib_uniad.UniAD"])
def test_fit_from_a_config_file(folder: Path, class_path: str) -> None:
    config = {
        "model": {"class_path": class_path, "init_args": MODEL_ARGS},
        "data": {
            "class_path": "MultiCategory" if class_path == "UniAD" else "anomalib_uniad.MultiCategory",
            "init_args": {"root": "products", "train_batch_size": 2, "num_workers": 0, "categories": ["cable"]},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    name = f"{class_path}.yaml"
    (folder / name).write_text(yaml.safe_dump(config))
    autoload = "1" if class_path == "UniAD" else "0"  # the dotted path needs no plugin hook
    anomalib(folder, "fit", "--config", name, TORCH_DEVICE_BACKEND_AUTOLOAD=autoload)
    assert list((folder / "results" / "UniAD" / "products" / "cable").rglob("model.ckpt"))


def test_help_shows_the_arguments_with_their_docs(command: Callable[..., None], capsys) -> None:
    for arguments, words in (
        (["--model.help", "UniAD"], ("--model.neighbor_size", "tokens")),
        (["--data.help", "MultiCategory"], ("--data.categories", "Names of the categories")),
    ):
        with pytest.raises(SystemExit, match="0"):
            command("train", *arguments)
        shown = capsys.readouterr().out
        assert all(word in shown for word in words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.image_size", "100"], r"image_size .* must be a positive multiple of feature_stride"),
        (["--model.neighbor_size", "11"], "neighbor_size .* hides the whole 4 x 4 grid"),
        (["--model.learning_rate", "-1"], "learning_rate must be at least 0, got -1.0."),
        (["--model.backbone", "resnett18"], "timm knows no backbone 'resnett18'; did you mean resnet18"),
        (["--model.backbone_weights", "gone.safetensors"], "backbone_weights: there is no file 'gone.safetensors'"),
        (["--model.lerning_rate", "1"], r"UniAD has no argument lerning_rate; did you mean learning_rate\?"),
        (["--model.image_score", "maxx"], "image_score of UniAD must be one of max, top, mean, std, got maxx."),
        (["--model.neighbor_mask", "[1,2]"], r"neighbor_mask of UniAD must be bool or Sequence\[bool\], got \[1, 2\]."),
        (["--data.categories", "[botle]"], "There is no category 'botle' in .*: bottle, cable"),
        (["--data.train_batch_size", "-4"], "train_batch_size must be at least 1, got -4."),
    ],
)
def test_mistakes_end_in_one_sentence_before_work_starts(
    command: Callable[..., None], folder: Path, capsys, monkeypatch, arguments: list[str], message: str
) -> None:
    before = sorted((folder / "results").rglob("*"))
    monkeypatch.setattr(sys, "excepthook", lambda *error: pytest.fail("a traceback is shown"))
    install_excepthook()
    with pytest.raises((ValueError, FileNotFoundError, SystemExit)) as caught:
        command("train", "--model", "UniAD", *MODEL, *DATA, *TRAINER, *arguments)
    if caught.type is not SystemExit:  # which the parser has raised, after it has said why
        sys.excepthook(caught.type, caught.value, caught.tb)
    shown = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {message}", shown[-1])
    assert not any("Subtypes" in line or "Traceback" in line for line in shown)
    assert sorted((folder / "results").rglob("*")) == before


@pytest.mark.slow
def test_the_command_ends_in_one_sentence(folder: Path) -> None:
    """In a process of its own: anomalib's command line installs its tracebacks after the plugin has loaded."""
    arguments = ["test", "--model", "UniAD", *MODEL, *DATA, "--ckpt_path", "gone.ckpt"]
    output = anomalib(folder, *arguments, ok=False)
    assert output.splitlines()[-1].startswith("error: There is no checkpoint ")
    assert "Traceback" not in output


@pytest.mark.slow
def test_own_data_without_a_gpu(folder: Path) -> None:
    for product in ("bolt", "nut"):
        for number in range(50):
            write_image(folder / "mydata" / product / "good" / f"{number}.png", seed=number)
        for number in range(4):
            write_image(folder / "mydata" / product / "bad" / f"{number}.png", seed=200 + number, defect=True)
    config = Path(__file__).parents[2] / "configs" / "fast" / "cpu.yaml"
    small = [
        "--trainer.max_steps",
        "40",
        "--model.image_size",
        "128",
        "--model.feature_cache_dir",
        str(folder / "cache"),
    ]
    output = anomalib(
        folder, "train", "--config", str(config), "--data.root", "mydata", *small, "--model.hidden_dim=32"
    )
    assert "early_stopping: the training may end early, judged on 20 good validation images" in output
    run = folder / "results" / "UniAD" / "mydata" / "latest"
    checkpoint = torch.load(run / "weights" / "lightning" / "model.ckpt", weights_only=False)
    results = checkpoint["callbacks"]["EarlyStop"]["results"]
    assert checkpoint["global_step"] <= 40
    assert len(results) >= 6  # before it can be decided
    assert yaml.safe_load((run / "metrics.json").read_text())["mean"]["image_AUROC"] > 0.5

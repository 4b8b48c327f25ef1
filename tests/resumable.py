# SPDX-License-Identifier: Apache-2.0
"""Small trainings that are stopped and resumed.

Usage: ``python resumable.py <data> <results> <name of a function>``; the functions are at the end.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anomalib.models  # noqa: F401 - first, in the program
import torch
from anomalib.engine import Engine
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.multiprocessing import ProcessRaisedException
from torchvision.transforms import v2

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.messages import install_excepthook
from small import quiet_engine

EPOCHS, INTERVAL, BATCHES = 3, 2, 3  # training, validation, batches of an epoch
ALWAYS, NEVER = 1e-9, 1e9  # minutes


def small_model(seed: int | None = None, minutes: float = NEVER, **arguments: Any) -> UniAD:
    return UniAD(
        **{
            "backbone": "mobilenetv3_small_050",
            "pre_trained": False,
            "image_size": 64,
            "neighbor_size": 1,
            "hidden_dim": 16,
            "num_heads": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "feedforward_dim": 32,
            "learning_rate": 1e-3,
            "lr_schedule": "cosine",  # changes at each step, and needs to know how many there will be
            "lr_warmup_epochs": 1,
            "visualizer": False,
            "seed": seed,
            "resume_interval": minutes,
            **arguments,
        }
    )


def data(root: Path, workers: int = 0, augmented: bool = False) -> MultiCategory:
    augmentations = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.3)]) if augmented else None
    return MultiCategory(
        "MVTecAD", root, train_batch_size=4, eval_batch_size=4, num_workers=workers, train_augmentations=augmentations
    )


class Course(Callback):
    """Writes down what is trained and validated; draws random numbers between epochs, as a user's callback might."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.events.append((trainer.current_epoch, batch_idx, trainer.global_step, *batch.image_path))

    def on_validation_end(self, trainer, pl_module) -> None:
        self.events.append((trainer.current_epoch, "validated"))
        torch.rand(len(self.events))  # not as many in a resumed training


class Stop(Callback):
    """Raises an exception, or sends a signal, at the n-th call of a hook."""

    def __init__(self, hook: str, calls: int, exception: type[BaseException] | int) -> None:
        self.calls, self.exception = calls, exception
        setattr(self, hook, self.stop)

    def stop(self, *args: Any) -> None:
        self.calls -= 1
        if self.calls == 0 and isinstance(self.exception, int):
            os.kill(os.getpid(), self.exception)
        elif self.calls == 0:
            raise self.exception("stopped")


def fit(
    model: UniAD, data: MultiCategory, folder: Path, ckpt_path: Path | None = None, *callbacks, **arguments
) -> dict:
    """Train; return all state at the end and the events on the way."""
    course = Course()
    defaults = {"max_epochs": EPOCHS, "check_val_every_n_epoch": INTERVAL, "enable_checkpointing": False, "devices": 1}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        num_sanity_val_steps=0,
        gradient_clip_val=0.1,  # as the engine does
        default_root_dir=folder,
        callbacks=[course, *callbacks],
        **{**quiet, **defaults, **arguments},
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    if trainer.world_size > 1:
        return {}  # all of it was in other processes
    optimizer = trainer.optimizers[0].state_dict()
    state = {f"weights {name}": value.clone() for name, value in model.state_dict().items()}
    for number, values in optimizer["state"].items():
        state |= {f"optimizer {number} {name}": value.clone() for name, value in values.items()}
    state["rate"] = torch.tensor([group["lr"] for group in optimizer["param_groups"]], dtype=torch.float64)
    state["counters"] = torch.tensor([trainer.current_epoch, trainer.global_step])
    return {"state": state, "events": course.events}


def difference(resumed: dict, whole: dict) -> list[str]:
    """Names of what is not the same at the end, bit for bit."""
    first, second = resumed["state"], whole["state"]
    names = [name for name in first.keys() | second.keys() if name not in first or name not in second]
    names += [n for n in first.keys() & second.keys() if not first[n].nan_to_num().equal(second[n].nan_to_num())]
    start = len(whole["events"]) - len(resumed["events"])
    return sorted(names) + ["events"] * (resumed["events"] != whole["events"][start:])


def engine(folder: Path, *callbacks: Callback) -> Engine:
    return quiet_engine(folder, *callbacks, max_epochs=EPOCHS, check_val_every_n_epoch=INTERVAL)


def run_program(root: Path, folder: Path, function: str) -> subprocess.CompletedProcess:
    """Run one of the functions below in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, str(root), str(folder), function]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def killed(root: Path, folder: Path) -> None:
    """Train with the engine until the last step, in which the process is killed."""
    stop = Stop("on_train_batch_end", EPOCHS * BATCHES, int(signal.SIGKILL))
    engine(folder, stop).train(model=small_model(5, ALWAYS), datamodule=data(root))


def distributed(root: Path, folder: Path) -> None:
    """Train in two processes: without a stop, with one, and on from there."""
    file = folder / "stopped" / "weights" / "lightning" / "resume.ckpt"
    for seed, (name, stop, path) in enumerate((("whole", 0, None), ("stopped", 5, None), ("resumed", 0, file))):
        torch.manual_seed(seed // 2)  # the same one for the first two
        callbacks = [ModelCheckpoint(folder / name, "model"), Stop("on_train_batch_end", stop, RuntimeError)]
        arguments = {"devices": 2, "strategy": "ddp_fork", "enable_checkpointing": True}
        with contextlib.suppress(ProcessRaisedException):
            model = small_model(None, ALWAYS, feature_norm="standard", optimizer="muon")
            fit(model, data(root), folder / name, path, *callbacks, **arguments)


def processes(root: Path, folder: Path) -> None:
    """Train with the engine in two processes, each of which runs this program."""
    model = small_model(5, visualizer=True)
    settings = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_progress_bar": False, "max_epochs": 1}
    Engine(default_root_dir=folder, **settings).train(model, datamodule=data(root))


def killed_process(root: Path, folder: Path) -> None:
    """Train with the engine in two processes, one of which is killed in the second epoch: that of ``KILLED``."""
    install_excepthook()  # as in anomalib's command
    steps = 3 if os.environ.get("LOCAL_RANK", "0") == os.environ["KILLED"] else 0
    stop = Stop("on_train_batch_end", steps, int(signal.SIGKILL))
    settings = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_progress_bar": False}
    runner = Engine(default_root_dir=folder, callbacks=[stop], max_epochs=EPOCHS, **settings)
    runner.train(small_model(5, ALWAYS), datamodule=data(root))


def global_batch(root: Path, folder: Path) -> None:
    """Train in one process and in two that have as many images together; each writes its losses.

    All images are in each batch: with more, the two would share out other images than the one has in its turn.
    """
    for noise, seeds in ((0.0, [5]), (1.0, [5, 6, 7])):
        for devices, seed in [(1, seed) for seed in seeds] + [(2, seed) for seed in seeds[:1]]:
            model = small_model(seed, NEVER, jitter_probability=noise, dropout=0.1 * noise)
            images = MultiCategory("MVTecAD", root, train_batch_size=10 // devices, eval_batch_size=4, num_workers=0)
            losses = Losses(folder / f"{noise:g}-{devices}-{seed}")
            strategy = "ddp_fork" if devices > 1 else "auto"
            arguments = {"devices": devices, "strategy": strategy, "max_epochs": 6, "limit_val_batches": 0}
            torch.manual_seed(1)  # the same backbone
            fit(model, images, folder, None, losses, **arguments)


class Losses(Callback):
    """Writes the losses of a process to a file of its own."""

    def __init__(self, file: Path) -> None:
        self.file, self.losses = file, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer, pl_module) -> None:
        self.file.with_name(f"{self.file.name}-{trainer.global_rank}.json").write_text(json.dumps(self.losses))


if __name__ == "__main__":
    torch.set_num_threads(1)  # as the tests do
    globals()[sys.argv[3]](Path(sys.argv[1]), Path(sys.argv[2]))

# SPDX-License-Identifier: Apache-2.0
"""The folder of a training: one for all processes, with a config for the commands that follow."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from anomalib.utils.path import paths_to_strings
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_uniad.files import replacing

_HEADER = (
    "# The model of this training and its data, as `anomalib test`, `predict` and `export` take them:\n"
    "#   --config {file} --ckpt_path {checkpoint}\n"
    "# With --data IMAGES, `predict` takes other images. To export where the images of the training are not there,\n"
    "# take the section `data` out.\n"
)


class RunFolder(Callback):
    """Writes ``model.yaml`` beside ``config.yaml``, and has ``latest`` point to the run that has the results.

    anomalib's ``config.yaml`` has what only a training takes, and its ``predict`` and ``export`` refuse it. A training
    that ends with an error before its first step leaves no folder, and ``latest`` points to the run before it again.

    With several processes, each makes a folder of its own in anomalib, and the last one becomes ``latest``, but results
    are in the first one's. The others are removed if they are empty, and their pictures of a test go to the first.

    Args:
        loaded (Mapping[str, Any]): Arguments of the model that have to be others once weights come from a checkpoint.

    Examples:
        >>> trainer = Trainer(callbacks=[RunFolder({"pre_trained": False})], accelerator="cpu", logger=False)
    """

    def __init__(self, loaded: Mapping[str, Any]) -> None:
        self._loaded = loaded

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on one folder, and write the file."""
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if trainer.world_size > 1:
            _agree(trainer, pl_module)
        folder = trainer.log_dir  # where config.yaml is; all processes ask for it
        if trainer.is_global_zero and folder is not None and not trainer.barebones and "://" not in folder:
            file = Path(folder, "model.yaml")
            if not _is_working_directory(file.parent) and _may_replace(file):  # a trainer's default is no run's own
                self._write(trainer, pl_module, file)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the folder if nothing was trained."""
        if trainer.state.fn == "fit" and trainer.is_global_zero and not trainer.global_step:
            with contextlib.suppress(OSError):  # the error that ends the training matters more
                _remove(Path(trainer.default_root_dir), type(pl_module).__name__)

    def _write(self, trainer: Any, pl_module: Any, file: Path) -> None:
        from lightning.pytorch.cli import SaveConfigCallback  # takes a while, and is there where it is needed

        content: dict[str, Any]
        saved = next((item for item in trainer.callbacks if isinstance(item, SaveConfigCallback)), None)
        if saved is None:  # not on a command line
            content = {"model": {"class_path": _import_path(type(pl_module)), "init_args": dict(pl_module.hparams)}}
        else:
            config = yaml.safe_load(saved.parser.dump(saved.config, skip_none=False))
            content = {name: config[name] for name in ("model", "data") if config.get(name)}
        arguments = content["model"]["init_args"]
        arguments.update({name: value for name, value in self._loaded.items() if name in arguments})
        data = content.get("data", {}).get("init_args", {})
        if isinstance(data.get("root"), str) and Path(data["root"]).exists():
            data["root"] = str(Path(data["root"]).absolute())  # the commands may be run elsewhere
        checkpoint = Path(trainer.default_root_dir, "weights", "lightning", "model.ckpt").absolute()
        text = _HEADER.format(file=file.absolute(), checkpoint=checkpoint)
        plain: Any = paths_to_strings(content)
        text += yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, flush=False) as (part,):  # each training writes it anew
            part.write_text(text, encoding="utf-8")


def _is_working_directory(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # deleted meanwhile
        return folder.resolve() == Path.cwd().resolve()
    return False


def _may_replace(file: Path) -> bool:
    """Whether a file is not there, or was written here; never one that the user has written."""
    return not file.exists() or file.read_text(encoding="utf-8", errors="replace").startswith(
        _HEADER.partition("\n")[0]
    )


def _agree(trainer: Trainer, pl_module: Any) -> None:
    """Leave no other folder than that of the first process; anomalib makes them before it knows of processes."""
    own = Path(trainer.default_root_dir)
    first = Path(trainer.strategy.broadcast(str(own)))
    if own != first:
        with contextlib.suppress(OSError):  # not empty, or on another machine
            own.rmdir()
        visualizer: Any = getattr(pl_module, "visualizer", None)
        if getattr(visualizer, "output_dir", "") is None:
            visualizer.output_dir = first / "images"
    latest = first.parent / "latest"
    if trainer.is_global_zero and latest.is_symlink() and latest.resolve() != first.resolve():
        with contextlib.suppress(OSError), replacing(latest) as (link,):  # a system that has no links
            link.symlink_to(first.resolve(), target_is_directory=True)


def _remove(folder: Path, model: str) -> None:
    """Remove a folder that ``latest`` points to and that has configs at most, and what is empty without it.

    Args:
        folder (Path): Folder of a run.
        model (str): Name of the outermost folder that anomalib has made for runs of this model.
    """
    latest = folder.parent / "latest"
    configs = {"config.yaml", "model.yaml"}
    if not latest.is_symlink() or latest.resolve() != folder.resolve() or {f.name for f in folder.iterdir()} - configs:
        return
    for name in configs:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
    before = [other for other in folder.parent.glob("v*") if other.name[1:].isdecimal()]
    if before:
        with replacing(latest) as (link,):
            link.symlink_to(max(before, key=lambda other: int(other.name[1:])).resolve(), target_is_directory=True)
        return
    latest.unlink()
    for parent in folder.parents:
        if model not in parent.parts:
            break
        parent.rmdir()


def _import_path(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    public = getattr(sys.modules[package], kind.__name__, None) is kind
    return f"{package if public else kind.__module__}.{kind.__qualname__}"

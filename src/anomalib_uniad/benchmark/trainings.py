# SPDX-License-Identifier: Apache-2.0
"""The trainings of a benchmark: what each of them is, where it is, and how far."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from anomalib_uniad.errors import ExistingFileError, InputError
from anomalib_uniad.files import replacing

Config = dict[str, Any]  # of `anomalib train`

# Files in the folder of a training.
CONFIG, RESULT, TRAINED, PROGRESS, FAILED = "config.yaml", "result.json", "trained.json", "progress.json", "failed.json"
SPEED, LOG, LOCK, RUN, WEIGHTS, IMAGES = "speed.json", "log.txt", ".lock", "run", "trained.ckpt", "images.json"


@dataclass
class Training:
    """One training: a cell of the benchmark or, in the mode ``separate``, one category of it.

    Attributes:
        method (str): Name of the model in the benchmark.
        data (str): Name of the data.
        mode (str): ``unified`` or ``separate``.
        seed (int): Its seed.
        category (str): The only category; empty if it is all of them.
        folder (Path): Where everything of it is.
        config (Config): Config of ``anomalib train``.
        images (str): Digest of its images. Defaults to ``""``.
    """

    method: str
    data: str
    mode: str
    seed: int
    category: str
    folder: Path
    config: Config = field(repr=False)
    images: str = ""

    @property
    def cell(self) -> tuple[str, str, str, int]:
        """What its cell is: data, method, mode and seed."""
        return self.data, self.method, self.mode, self.seed

    @property
    def label(self) -> str:
        """What it is called in the terminal."""
        parts = [self.data, self.method, self.mode, *([self.category] if self.category else []), f"seed {self.seed}"]
        return ", ".join(parts)

    def lock(self) -> FileLock:
        """Lock that whoever trains holds; the system releases it with the process."""
        return FileLock(self.folder / LOCK)

    def read(self, name: str) -> dict[str, Any] | None:
        """Content of one of its JSON files; ``None`` if it is not there, or not whole."""
        return read_json(self.folder / name)

    @property
    def finished(self) -> bool:
        """Whether there is a result."""
        return (self.folder / RESULT).is_file()

    def is_taken(self) -> bool:
        """Whether a process is at work on it now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self.lock().acquire(timeout=0):
                return False
        except Timeout:
            return True


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON file; ``None`` if it is not there, or not whole."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file as a whole."""
    with replacing(file) as (partial,):
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def prepare(trainings: Sequence[Training], overwrite: bool) -> list[Training]:
    """Put the config of each training into its folder.

    Args:
        trainings (Sequence[Training]): All of a benchmark.
        overwrite (bool): Remove results of another config or other images.

    Returns:
        list[Training]: Those whose results, of another config or other images, were removed.

    Raises:
        FileExistsError: If there are such results, and ``overwrite`` is false; nothing is changed then.
    """
    changed = [training for training in trainings if _has_changed(training)]
    lost = [training for training in changed if _has_results(training)]
    if lost and not overwrite:
        what = "; ".join(training.label for training in lost[:3]) + ("; ..." if len(lost) > 3 else "")
        raise ExistingFileError(
            f"{len(lost)} of {len(trainings)} trainings below {_common(lost)} were made with another config or other "
            f"images ({what}): choose another output folder, or set overwrite to true to train them again and lose "
            "what they have."
        )
    for training in changed:
        _empty(training)
    for training in trainings:
        file = training.folder / CONFIG
        if not file.is_file():
            training.folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(training.config, sort_keys=False, allow_unicode=True)
            with replacing(file) as (partial,):
                partial.write_text(text, encoding="utf-8")
        if training.read(IMAGES) is None:  # also of a training that was finished when this file was not written yet
            write_json(training.folder / IMAGES, {"digest": training.images})
    return lost


def _has_changed(training: Training) -> bool:
    file = training.folder / CONFIG
    if (training.read(IMAGES) or {}).get("digest", training.images) != training.images:
        return True
    try:
        return file.is_file() and yaml.safe_load(file.read_text(encoding="utf-8")) != training.config
    except yaml.YAMLError:
        return True


def _has_results(training: Training) -> bool:
    names = (RESULT, TRAINED)
    return any((training.folder / name).is_file() for name in names) or find_resume(training.folder) is not None


def _empty(training: Training) -> None:
    """Remove everything of a training, unless it is being trained."""
    try:
        with training.lock().acquire(timeout=0):
            for path in training.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
    except Timeout:
        msg = f"{training.label} is being trained now, with another config: wait, or choose another output folder."
        raise InputError(msg) from None


def find_resume(folder: Path) -> Path | None:
    """The newest ``resume.ckpt`` of a training; ``None`` if there is none."""
    found = (folder / RUN).rglob("weights/lightning/resume.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _common(trainings: Sequence[Training]) -> Path:
    parents = [set(training.folder.parents) for training in trainings]
    return max(set.intersection(*parents), key=lambda path: len(path.parts))

# SPDX-License-Identifier: Apache-2.0
"""The config of a benchmark: which models, data, modes and seeds. Imports neither torch nor anomalib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anomalib_uniad.checks import check_at_least, show
from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import read_yaml, shortened
from anomalib_uniad.report.columns import MODES

from .trainings import Config

SECTIONS = ("model", "data", "trainer")
# What a model's own config may say about data: how images are loaded, not which.
LOADING = (
    "train_batch_size",
    "eval_batch_size",
    "num_workers",
    "train_augmentations",
    "val_augmentations",
    "test_augmentations",
    "augmentations",
)


@dataclass
class BenchmarkConfig:
    """What a benchmark consists of.

    Attributes:
        file (Path): Where it was read.
        models (dict[str, Config]): Name of a method -> sections ``model``, ``data`` and ``trainer`` of
            ``anomalib train``; of the data, only how images are loaded.
        data (dict[str, Config]): Name -> ``class_path`` and ``init_args`` of a datamodule.
        modes (list[str]): ``unified``, one model for all categories, and ``separate``, one for each.
        seeds (list[int]): One training for each.
        timed_images (int): Images with which the speed of exported files is measured.
        output (Path | None): Folder of the results.
    """

    file: Path
    models: dict[str, Config]
    data: dict[str, Config]
    modes: list[str] = field(default_factory=lambda: ["unified"])
    seeds: list[int] = field(default_factory=lambda: [0])
    timed_images: int = 20
    output: Path | None = None


def read_config(file: Path) -> BenchmarkConfig:
    """Read the config of a benchmark.

    Files that it names are looked for beside it, then in the working directory.

    Args:
        file (Path): YAML file.

    Returns:
        BenchmarkConfig: What it says, with the content of all files that it names.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If something in it cannot be right.
    """
    content = _load(file)
    known = ("models", "data", "modes", "seeds", "timed_images", "output")
    if unknown := [name for name in content if name not in known]:
        names = shortened(", ".join(map(str, unknown)))
        raise InputError(f"{file} has {names}, but a benchmark has {', '.join(known)}.")
    for name in ("models", "data"):
        if not isinstance(content.get(name), dict) or not content[name]:
            raise InputError(f"{file} needs {name}: a mapping from names to configs, got {show(content.get(name))}.")
    modes = _list(content.get("modes", ["unified"]))
    if wrong := [mode for mode in modes if mode not in MODES]:
        raise InputError(f"modes of {file} can be {' and '.join(MODES)}, got {show(wrong[0])}.")
    seeds = _list(content.get("seeds", [0]))
    if wrong := [seed for seed in seeds if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0]:
        raise InputError(f"seeds of {file} are whole numbers from 0 on, got {show(wrong[0])}.")
    for name, values in (("modes", modes), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise InputError(f"{name} of {file} {'has a value twice' if values else 'is empty'}: {values}.")
    timed_images = content.get("timed_images", 20)
    if not isinstance(timed_images, int):
        raise InputError(f"timed_images of {file} is a whole number, got {show(timed_images)}.")
    check_at_least("timed_images", timed_images, 1)
    output = content.get("output")
    return BenchmarkConfig(
        file,
        models={
            str(name): _model(value, f"models of {file}, {name}", file) for name, value in content["models"].items()
        },
        data={str(name): _data(value, f"data of {file}, {name}", file) for name, value in content["data"].items()},
        modes=modes,
        seeds=seeds,
        timed_images=timed_images,
        output=None if output is None else Path(str(output)).expanduser(),
    )


def merge(parts: Sequence[Mapping[str, Any]], where: str = "") -> Config:
    """Merge configs section by section, later ones over earlier ones.

    Arguments of another class are dropped.

    Args:
        parts (Sequence[Mapping[str, Any]]): Sections by their names.
        where (str): What the sections are of, for an error. Defaults to ``""``.

    Returns:
        Config: The sections of all.

    Raises:
        ValueError: If an argument is a mapping in one of them and a list in another one.

    Examples:
        >>> first = {"model": {"class_path": "Padim", "init_args": {"n_features": 50}}}
        >>> merge([first, {"model": {"init_args": {"layers": ["layer1"]}}}])
        {'model': {'class_path': 'Padim', 'init_args': {'n_features': 50, 'layers': ['layer1']}}}
        >>> merge([first, {"model": {"class_path": "Patchcore"}}])
        {'model': {'class_path': 'Patchcore'}}
    """
    merged: Config = {}
    for part in parts:
        for name, section in part.items():
            before = merged.get(name, {})
            names = [str(value.get("class_path", "")).rpartition(".")[2] for value in (before, section)]
            if all(names) and names[0] != names[1]:
                before = {}
            try:
                merged[name] = OmegaConf.to_container(OmegaConf.merge(before, section))
            except TypeError as error:
                msg = f"{where} has in its {name} a mapping and a list for the same argument: take one of the two out."
                raise InputError(msg) from error
    return merged


def _model(value: Any, where: str, file: Path) -> Config:
    parts = [_train_config(part, where, file) for part in _list(value)]
    config = merge(parts, where)
    if "class_path" not in config.get("model", {}):
        raise InputError(f"{where} has no model: give a section model with a class_path, or a file that has one.")
    return config


def _train_config(value: Any, where: str, file: Path) -> Config:
    """Sections of one part of a model's config: a file or a mapping, of a whole training or of a section alone."""
    given, file = _content(value, where, file)
    if "class_path" in given:
        given = {"model": given}
    elif not set(given) & set(SECTIONS) and isinstance(value, str):
        given = {"trainer": given}  # a file of configs/trainer, for example
    if unknown := set(given) - {*SECTIONS, "default_root_dir", "seed_everything", "ckpt_path", "logging"}:
        raise InputError(f"{where} has {', '.join(sorted(map(str, unknown)))}: its sections are {', '.join(SECTIONS)}.")
    sections = {name: _section(given[name], where, file) for name in SECTIONS if given.get(name) is not None}
    if "data" in sections:
        data = sections["data"]
        arguments = data.get("init_args", {} if "class_path" in data else data)
        wrong = set(arguments) - set(LOADING)
        if wrong and "class_path" not in data:
            raise InputError(
                f"{where} has {', '.join(sorted(wrong))} in its data, which belongs to the data of the benchmark: a "
                f"model may set {', '.join(LOADING)}."
            )
        kept = {name: argument for name, argument in arguments.items() if name in LOADING}
        sections["data"] = {"init_args": kept}
    return sections


def _data(value: Any, where: str, file: Path) -> Config:
    config: Config = {}
    for part in _list(value):
        given, named = _content(part, where, file)
        if "class_path" not in given and given.get("data") is not None:
            given = _section(given["data"], where, named)
        config = merge([{"data": config}, {"data": given}], where)["data"]
    if "class_path" not in config:
        raise InputError(f"{where} has no class_path: give the config of a datamodule, or a file that has one.")
    if unknown := set(config) - {"class_path", "init_args"}:
        msg = f"{where} has {', '.join(sorted(map(str, unknown)))}: arguments of a datamodule stand in init_args."
        raise InputError(msg)
    return config


def _content(value: Any, where: str, file: Path) -> tuple[Config, Path]:
    """Content of a file or mapping, and the file in which it stands."""
    if isinstance(value, str):
        if not value.endswith((".yaml", ".yml")):
            return {"class_path": value}, file
        found = _find(value, where, file)
        return _load(found), found
    if not isinstance(value, dict):
        raise InputError(f"{where} is a file or a mapping, got {show(value)}.")
    return value, file


def _section(value: Any, where: str, file: Path) -> Config:
    return dict(_content(value, where, file)[0])


def _find(name: str, where: str, file: Path) -> Path:
    for path in (file.parent / name, Path(name)):
        if path.is_file():
            return path
    raise MissingFileError(f"{where}: there is no file {name}, neither beside {file.name} nor in {Path.cwd()}.")


def _load(file: Path) -> Config:
    if not file.is_file():
        raise MissingFileError(f"There is no config {file}: give a file such as configs/benchmark/mydata.yaml.")
    if not isinstance(read_yaml(file), dict):  # which refuses what OmegaConf falls over
        raise InputError(f"{file} has to be a mapping.")
    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
    except (yaml.YAMLError, ValueError, ArithmeticError, AssertionError, OmegaConfBaseException) as error:
        raise InputError(f"{file} is no YAML: {shortened(error)}.") from error
    return {str(name): value for name, value in cast("dict[str, Any]", content).items()}


def _list(value: Any) -> list[Any]:
    """A value, or those of lists in lists, as aliases of YAML make them."""
    return [single for part in value for single in _list(part)] if isinstance(value, list) else [value]

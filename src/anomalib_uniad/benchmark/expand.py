# SPDX-License-Identifier: Apache-2.0
"""From the config of a benchmark to its trainings: categories, modes and seeds, checked by anomalib's own classes."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from filelock import FileLock
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from anomalib_uniad.data import MultiCategory
from anomalib_uniad.data.category_datamodules import arguments_of
from anomalib_uniad.errors import InputError, UserError
from anomalib_uniad.files import file_names
from anomalib_uniad.messages import parser_sentence, sentence_of
from anomalib_uniad.report.benchmark import folders

from .config import BenchmarkConfig, merge
from .trainings import Config, Training

# Of every training, unless its model says something else.
DEFAULTS: Config = {
    "model": {"init_args": {"visualizer": False}},  # heatmaps of all test images take longer than small trainings
    "trainer": {"enable_progress_bar": False, "enable_model_summary": False},
}


def expand(config: BenchmarkConfig, output: Path) -> list[Training]:
    """List the trainings of a benchmark, in the order in which they are done: by data, seed, mode and method.

    Args:
        config (BenchmarkConfig): The config.
        output (Path): Folder of the benchmark; made if it is not there.

    Returns:
        list[Training]: The trainings; none has been started.

    Raises:
        ValueError: If a model, data or trainer cannot be made of its config.
        OSError: If data are not there.
    """
    settings = check(config)
    output.mkdir(parents=True, exist_ok=True)
    lock = output / ".data.lock"
    try:
        with FileLock(lock):  # trainings that begin together would download together
            images = {name: _prepare(settings[next(iter(config.models)), name], name, config) for name in config.data}
    except BaseException:
        lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: something has been trained there
            output.rmdir()
        raise
    places = folders(output, config.models, config.data)
    trainings = []
    for data, seed, mode in [(d, s, m) for d in config.data for s in config.seeds for m in config.modes]:
        names = file_names([name for name in images[data] if name]) if mode == "separate" else {"": ""}
        for method in config.models:
            for category, name in names.items():
                folder = places[data, method] / mode / f"seed{seed}" / name
                own = _settings(settings[method, data], seed, category)
                trainings.append(Training(method, data, mode, seed, category, folder, own, images[data][category]))
    return trainings


def check(config: BenchmarkConfig) -> dict[tuple[str, str], Config]:
    """Make the config of ``anomalib train`` for each method and data, and refuse what its command line would refuse.

    Args:
        config (BenchmarkConfig): The config of a benchmark.

    Returns:
        dict[tuple[str, str], Config]: Method and data -> sections ``model``, ``data`` and ``trainer``.

    Raises:
        ValueError: If a model, data or trainer cannot be made of its config.
    """
    found = {}
    for method, given in config.models.items():
        accepted = arguments_of(
            _class_of(given["model"]["class_path"], AnomalibModule, f"models {method} of {config.file}")
        )
        default = DEFAULTS if "visualizer" in accepted else {"trainer": DEFAULTS["trainer"]}
        seeded: Config = {"model": {"init_args": {"seed": config.seeds[0]}}} if "seed" in accepted else {}
        for name, data in config.data.items():
            joined = _joined(data, f"data {name} of {config.file}")
            where = f"{method} on {name} of {config.file}"
            merged = merge([default, {"data": joined}, given, seeded], where)
            sections = {section: dict(sorted(merged[section].items())) for section in ("model", "data", "trainer")}
            _parse(sections, where)
            found[method, name] = sections
    return found


def _settings(sections: Config, seed: int, category: str) -> Config:
    """Config of a training: with its seed, where the model takes one, and its category."""
    own: Config = {}
    if "seed" in sections["model"].get("init_args", {}):
        own["model"] = {"init_args": {"seed": seed}}
    if category:
        own["data"] = {"init_args": {"categories": [category]}}
    return {"seed_everything": seed, **merge([sections, own])}


def _joined(data: Config, where: str) -> Config:
    """Data whose categories are joined: as they are, or an anomalib datamodule of one category in MultiCategory."""
    arguments = arguments_of(_class_of(data["class_path"], AnomalibDataModule, where))
    if "categories" in arguments or "category" not in arguments:
        return data
    given = dict(data.get("init_args") or {})
    wrapper = arguments_of(MultiCategory)
    category = given.pop("category", None)
    own = {name: value for name, value in given.items() if name in wrapper}
    others = {name: value for name, value in given.items() if name not in wrapper}
    source: Config = {"source": data["class_path"], **own}
    if category is not None:
        source["categories"] = [category]
    if others:
        source["source_args"] = others
    return {"class_path": "MultiCategory", "init_args": source}


def _prepare(settings: Config, name: str, config: BenchmarkConfig) -> dict[str, str]:
    """Have data prepared; return a digest of its images and, if each is trained by itself, of those of each category.

    The digest of all is under the name "".
    """
    where = f"data {name} of {config.file}"
    arguments = dict(settings["data"].get("init_args") or {})
    for argument, other in (("val_split_mode", "none"), ("test_split_mode", "from_dir")):
        if str(arguments.get(argument)).lower() == "synthetic":  # painting defects takes long and adds no image
            arguments[argument] = other
    datamodule: Any = _parse({"data": {**settings["data"], "init_args": arguments}}, where, instantiate=True)
    with _in_one_sentence(where):
        datamodule.prepare_data()
        datamodule.images_checked = True  # each training reads them to their ends
        datamodule.setup()
    if "separate" not in config.modes:
        return _digests(datamodule, [])
    if "categories" not in arguments_of(type(datamodule)):
        raise InputError(
            f"{where} cannot be trained separately, as {type(datamodule).__name__} has no categories to choose from: "
            "take separate out of modes, or read the images with MultiCategory."
        )
    return _digests(datamodule, datamodule.categories)


def _digests(datamodule: Any, categories: Sequence[str]) -> dict[str, str]:
    """Digest of path below the root, size and label of all images and masks, and of those of each category.

    The time of modification is left out: it differs on a machine with a copy of the images.
    """
    root = getattr(datamodule, "root", None) or "."
    rows: dict[str, set[str]] = {name: set() for name in ("", *categories)}
    for data in filter(None, (getattr(datamodule, f"{name}_data", None) for name in ("train", "val", "test"))):
        content = getattr(data, "content_key", "")  # of images that are no files
        nothing = [""] * len(data.samples)
        names = ("image_path", "mask_path", "label_index", "split", "category")
        for image, masks, *about in zip(*(data.samples.get(name, nothing) for name in names), strict=True):
            files = [
                (os.path.relpath(path, root), not content and Path(path).is_file() and Path(path).stat().st_size)
                for path in (image, *(masks if isinstance(masks, list) else [masks]))
                if isinstance(path, str | Path) and path
            ]
            row = str((content, files, list(map(str, about))))
            for name in {"", str(about[-1])} & set(rows):
                rows[name].add(row)
    return {name: hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest() for name, found in rows.items()}


def _parse(config: Config, where: str, instantiate: bool = False) -> Any:
    silent = logging.getLogger(f"{__name__}.parser")  # anomalib's command line ends at what other parsers log
    silent.propagate = False
    silent.addHandler(logging.NullHandler())
    parser = ArgumentParser(exit_on_error=False, logger=silent)
    kinds: dict[str, Any] = {"model": AnomalibModule, "data": AnomalibDataModule}
    for name in config:
        if name in kinds:
            parser.add_subclass_arguments(kinds[name], name, required=True, fail_untyped=False)
        else:
            parser.add_class_arguments(Trainer, name, fail_untyped=False, instantiate=False, sub_configs=True)
    with _in_one_sentence(where):
        parsed = parser.parse_object(deepcopy(config))  # which it changes
        return parser.instantiate_classes(parsed).data if instantiate else parsed


@contextlib.contextmanager
def _in_one_sentence(where: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # jsonargparse raises its own and what values raise, anomalib various kinds
        sentence = parser_sentence(str(error)) or sentence_of(error) or " ".join(str(error).split())
        raise InputError(f"{where} cannot be used: {sentence}") from error


def _class_of(name: str, base: type, where: str) -> type:
    """Class of a name, as anomalib's command line finds it; its parser would take its time for that."""
    module, _, last = name.rpartition(".")
    with contextlib.suppress(ImportError):
        found = getattr(import_module(module), last, None) if module else _subclass(base, last)
        if isinstance(found, type) and issubclass(found, base):
            return found
    raise InputError(f"{where}: there is no {base.__name__} called {name}.")


def _subclass(base: type, name: str) -> type | None:
    below = [base]
    while below:
        found = below.pop()
        if found.__name__ == name:
            return found
        below += found.__subclasses__()
    return None

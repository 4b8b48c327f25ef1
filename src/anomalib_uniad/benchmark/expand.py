# SPDX-License-Identifier: Apache-2.0
"""From the config of a benchmark to its trainings: categories, modes and seeds, checked by anomalib's own classes."""

import logging
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.models import AnomalibModule
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from anomalib_uniad.data import MultiCategory
from anomalib_uniad.data.category_datamodules import arguments_of
from anomalib_uniad.errors import InputError, UserError
from anomalib_uniad.files import file_names
from anomalib_uniad.messages import parser_sentence, sentence_of

from .config import BenchmarkConfig, Config, merge
from .trainings import Training, folders

# Of every training, unless its model says something else.
DEFAULTS: Config = {
    "model": {"init_args": {"visualizer": False}},  # heatmaps of all test images take longer than small trainings
    "trainer": {"enable_progress_bar": False, "enable_model_summary": False},
}


def expand(config: BenchmarkConfig, output: Path) -> list[Training]:
    """List the trainings of a benchmark, in the order in which they are done: by data, seed, mode and method.

    Args:
        config (BenchmarkConfig): The config.
        output (Path): Folder of the benchmark.

    Returns:
        list[Training]: The trainings; none has been started.

    Raises:
        ValueError: If a model, data or trainer cannot be made of its config.
        OSError: If data are not there.
    """
    places = folders(output, config.models, config.data)
    wrapped = {name: _joined(value, f"data {name} of {config.file}") for name, value in config.data.items()}
    categories = {name: _categories(value, name, config) for name, value in wrapped.items()}
    arguments = {
        name: arguments_of(_class_of(value["model"], "model", f"models {name} of {config.file}"))
        for name, value in config.models.items()
    }
    trainings = []
    for data, seed, mode in [(d, s, m) for d in config.data for s in config.seeds for m in config.modes]:
        names = file_names(categories[data]) if mode == "separate" else {"": ""}
        for method, given in config.models.items():
            for category, name in names.items():
                folder = places[data, method] / mode / f"seed{seed}" / name
                settings = _settings(given, arguments[method], wrapped[data], seed, category)
                trainings.append(Training(method, data, mode, seed, category, folder, settings))
    for training in {(training.method, training.data): training for training in trainings}.values():
        _check(training, config.file)
    return trainings


def _settings(method: Config, arguments: Collection[str], data: Config, seed: int, category: str) -> Config:
    """Config of ``anomalib train``; the arguments are those that the model has."""
    default: Config = {"trainer": DEFAULTS["trainer"], "model": {"init_args": {}}}
    if "visualizer" in arguments:
        default = {**default, "model": DEFAULTS["model"]}
    own: Config = {"model": {"init_args": {"seed": seed}}} if "seed" in arguments else {}
    if category:
        own["data"] = {"init_args": {"categories": [category]}}
    settings = merge([default, {"data": data}, method, own])
    return {"seed_everything": seed, **{name: settings[name] for name in ("model", "data", "trainer")}}


def _joined(data: Config, where: str) -> Config:
    """Data whose categories are joined: as they are, or an anomalib datamodule of one category in MultiCategory."""
    arguments = arguments_of(_class_of(data, "data", where))
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


def _categories(data: Config, name: str, config: BenchmarkConfig) -> list[str]:
    """Categories of data, if they are needed."""
    if "separate" not in config.modes:
        return []
    datamodule: Any = _parse({"data": data}, f"data {name} of {config.file}", instantiate=True)
    found = getattr(datamodule, "categories", None)
    if found is None or "categories" not in arguments_of(type(datamodule)):
        msg = (
            f"data {name} of {config.file} cannot be trained separately, as {type(datamodule).__name__} has no "
            "categories to choose from: take separate out of modes, or read the images with MultiCategory."
        )
        raise InputError(msg)
    return list(found)


def _check(training: Training, file: Path) -> None:
    """Refuse a config that anomalib's command line would refuse, and data that are not there."""
    where = f"{training.method} on {training.data} of {file}"
    _parse({name: training.config[name] for name in ("model", "data", "trainer")}, where)
    _parse({"data": training.config["data"]}, where, instantiate=True)


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
    try:
        parsed = parser.parse_object(config)
        return parser.instantiate_classes(parsed).data if instantiate else parsed
    except UserError:
        raise
    except Exception as error:  # jsonargparse raises its own and what values raise
        sentence = parser_sentence(str(error)) or sentence_of(error) or " ".join(str(error).split())
        msg = f"{where} cannot be used: {sentence}"
        raise InputError(msg) from error


def _class_of(config: Config, section: str, where: str) -> type:
    """Class of a model or datamodule, as anomalib's command line finds it."""
    module, _, name = _parse({section: config}, where)[section].class_path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found

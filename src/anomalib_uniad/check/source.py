# SPDX-License-Identifier: Apache-2.0
"""What is checked: the products of a folder, or those of the data in a config of ``anomalib train``."""

import logging
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import Split
from jsonargparse import ArgumentParser

from anomalib_uniad.category import categories_of
from anomalib_uniad.checks import check_value_range
from anomalib_uniad.data.image_checks import check_use, find_files
from anomalib_uniad.data.layouts import Product, find_root, read_products
from anomalib_uniad.data.meta_records import read_meta_files
from anomalib_uniad.data.records import Record
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import is_there, read_yaml, shortened
from anomalib_uniad.messages import parser_sentence

_LAYOUT = ("normal_dir", "abnormal_dir", "normal_test_dir", "mask_dir", "extensions")


@dataclass
class Source:
    """What is checked.

    Attributes:
        name (str): Folder or config.
        products (list[Product]): The products, with their images.
        command (str): What trains on it.
        value_range (tuple[float, float] | None): Range of images with more than 8 bits.
        strict (bool): Whether copies across training and test, and masks that contradict labels, stop a training.
        own_folders (bool): Whether it is a folder whose layout was recognised.
    """

    name: str
    products: list[Product]
    command: str
    value_range: tuple[float, float] | None = None
    strict: bool = False
    own_folders: bool = field(default=False)


def read_folder(
    folder: Path,
    categories: Sequence[str] | None = None,
    value_range: Sequence[float] | None = None,
    **layout: Any,
) -> Source:
    """Read a folder of products.

    Args:
        folder (Path): Folder with a folder per product.
        categories (Sequence[str] | None): Names of the products; ``None`` takes all. Defaults to ``None``.
        value_range (Sequence[float] | None): Range of images with more than 8 bits. Defaults to ``None``.
        **layout (Any): Further arguments of :func:`~anomalib_uniad.data.layouts.read_products`.

    Returns:
        Source: The products.

    Raises:
        FileNotFoundError: If the folder is not there.
        ValueError: If it has no products, or is one itself.
    """
    given = {name: value for name, value in layout.items() if value is not None}
    limits = check_value_range(value_range)
    products = read_products(folder, categories, **given)
    options = {"root": folder, "categories": categories, **given, "value_range": value_range}
    words = ["anomalib", "train", "--model", "UniAD", "--data", "MultiCategory"]
    for name, value in options.items():
        if value is not None:
            words += [f"--data.{name}", _word(value)]
    return Source(str(folder), products, shlex.join(words), limits, own_folders=True)


def read_config(file: Path) -> Source:
    """Read the section ``data`` of a config, which may be MultiCategory, MetaFile or another datamodule of images.

    Args:
        file (Path): Config of ``anomalib train``, or of a datamodule alone.

    Returns:
        Source: The products.

    Raises:
        ValueError: If there are no data in the file, or something is wrong with them.
        OSError: If the file, or what it names, cannot be read.
    """
    name, arguments, alone, make = _parse(file)
    command = shlex.join(["anomalib", "train", *(["--model", "UniAD", "--data"] if alone else ["--config"]), str(file)])
    limits = check_value_range(arguments.get("value_range"))
    if name == "MultiCategory" and arguments.get("source") in (None, "Folder"):
        if arguments.get("root") is None:
            raise InputError(f"{file} has no root in its section data: set it to the folder with your products.")
        layout = {key: arguments.get(key) for key in _LAYOUT}
        products = read_products(arguments["root"], _names(arguments.get("categories")), **layout)
        return Source(str(file), products, command, limits, own_folders=True)
    if name == "MetaFile":
        root = find_root(arguments["root"])
        records = read_meta_files(root, *(arguments.get(key) for key in ("train_meta", "test_meta", "ader_meta")))
        check_use(
            find_files(records, root, arguments.get("allow_outside_root", False)),
            arguments.get("allow_defective_train", False),
        )
        return Source(str(file), _by_category(records, "listed in meta files", root), command, limits, strict=True)
    datamodule = make()
    datamodule.images_checked = True  # here, and not by an error that ends it
    datamodule.setup()
    records = list(_records(datamodule))
    layout_name = f"as {getattr(datamodule, 'source', None) or name} reads it"
    products = _by_category(records, layout_name, Path(getattr(datamodule, "root", None) or "."))
    return Source(str(file), products, command, limits)


def _parse(file: Path) -> tuple[str, Mapping[str, Any], bool, Callable[[], Any]]:
    """Name of the datamodule's class, its arguments, whether the file is of it alone, and what makes it."""
    content = read_yaml(file)
    data = content.get("data", content if "class_path" in content else None) if isinstance(content, dict) else None
    if data is None:
        raise InputError(f"{file} has no section data: give a config of anomalib train, or a folder with images.")
    silent = logging.getLogger(f"{__name__}.parser")  # anomalib's command line ends at what other parsers log
    silent.propagate = False
    silent.addHandler(logging.NullHandler())
    parser = ArgumentParser(exit_on_error=False, logger=silent)
    parser.add_subclass_arguments(AnomalibDataModule, "data", required=True)
    parser.add_argument("--config", action="config")
    if isinstance(data, str) and not Path(data).is_absolute() and is_there(file.parent / data):
        data = str(file.parent / data)  # a file beside it
    try:
        parsed = parser.parse_object({"data": data})
    except Exception as error:  # jsonargparse raises its own and what values raise
        sentence = parser_sentence(str(error)) or _reason_of(error)
        raise InputError(f"The section data of {file} cannot be used: {sentence}") from error
    arguments = vars(parsed.data.init_args)

    def make() -> Any:
        return parser.instantiate_classes(parsed).data

    return parsed.data.class_path.rpartition(".")[2], arguments, "data" not in content, make


def _reason_of(error: Exception) -> str:
    """Why jsonargparse refuses a value, without the types that it has tried."""
    text = " ".join(str(error).split()).rpartition("Expected a <class 'NoneType'> - ")[2]
    for end in (" Given value type:", " Subclass types expect"):
        text = text.partition(end)[0]
    return f"{shortened(ValueError(text))}."


def _records(datamodule: Any) -> Iterable[Record]:
    """Records of what a datamodule has in its tables."""
    sets = [("train", Split.TRAIN), ("val", Split.TEST), ("test", Split.TEST)]
    seen: set[str] = set()
    for name, split in sets:
        samples = getattr(getattr(datamodule, f"{name}_data", None), "samples", None)
        if samples is None:
            continue
        names = categories_of(list(samples["image_path"]), datamodule)
        for row, category in zip(samples.to_dict("records"), names, strict=True):
            path = str(row["image_path"])
            if path in seen:
                continue
            seen.add(path)
            label = int(row.get("label_index", 0))
            mask = row.get("mask_path") if label else None
            masks = [
                str(part)
                for part in (mask if isinstance(mask, list | tuple) else [mask])
                if isinstance(part, str | Path) and str(part)
            ]
            yield Record(
                Path(path).parent,
                Path(path).name,
                split,
                image=path,
                label=label,
                label_name=str(row.get("label", "")),
                masks=tuple(masks),
                category=category,
                paths=(path, *masks),
            )


def _by_category(records: Iterable[Record], layout: str, root: Path) -> list[Product]:
    products: dict[str, Product] = {}
    for record in records:
        product = products.setdefault(record.category, Product(record.category, root, layout))
        product.records.append(record)
    return [products[name] for name in sorted(products)]


def _names(categories: Any) -> list[str] | None:
    if isinstance(categories, str):
        return [name.strip(" \"'") for name in categories.strip("[] ").split(",")]
    return categories


def _word(value: Any) -> str:
    """Write an argument for a command line, in a list with quotes where a name would be a number or two names."""
    if isinstance(value, list | tuple):
        return yaml.safe_dump(list(value), default_flow_style=True, allow_unicode=True, width=math.inf).strip()
    return str(value)

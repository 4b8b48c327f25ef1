# SPDX-License-Identifier: Apache-2.0
"""Files in which a person sets something for all images, and for products: thresholds, regions of interest."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anomalib_uniad.checks import show
from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import read_yaml, shortened


def read_products(file: Path, what: str, everywhere: str) -> tuple[Any, dict[str, Any]]:
    """Read a file of yaml.

    Args:
        file (Path): The file.
        what (str): What it has, for messages.
        everywhere (str): Key of what is for all images.

    Returns:
        tuple[Any, dict[str, Any]]: What is for all images, ``None`` without it, and for each product by its name.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is something else; the message names what.
    """
    if not file.is_file():
        raise MissingFileError(f"There is no file {file} with {what}.")
    content = read_yaml(file)
    if not isinstance(content, dict) or not content or set(content) - {everywhere, "products"}:
        raise InputError(f"{file} must have the keys {everywhere} or products, got {show(content)}.")
    products = content.get("products") or {}
    if not isinstance(products, dict):
        raise InputError(f"{file}: products must name products, got {show(products)}.")
    return content.get(everywhere), {str(name): value for name, value in products.items()}


def check_products(file: Path, what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse products that a model does not know.

    Args:
        file (Path): Where they are from, for the message.
        what (str): What it has.
        given (Iterable[str]): The products.
        known (Iterable[str]): Those that the model does know.
    """
    known = dict.fromkeys(known)
    if unknown := [name for name in given if name not in known]:
        names = ", ".join(known) or "none"
        raise InputError(f"{file} has {what} of {shortened(', '.join(unknown))}, but the model knows {names}.")

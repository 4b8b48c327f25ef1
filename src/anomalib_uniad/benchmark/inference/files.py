# SPDX-License-Identifier: Apache-2.0
"""The models that are measured, exported once."""

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from anomalib.deploy import CompressionType
from anomalib.models import Padim, Patchcore
from lightning.pytorch import Trainer
from torch import nn

from anomalib_uniad.benchmark.training.images import write_images
from anomalib_uniad.data import MultiCategory
from anomalib_uniad.model import UniAD

COMPRESSION = {
    "f32": None,
    "f16": CompressionType.FP16,
    "int8": CompressionType.INT8,
    "int8_ptq": CompressionType.INT8_PTQ,
}
# Variants that are the same file: the default of `anomalib export`, for images of any size.
ANY_SIZE = {"any_size": None, "any_size_1024": (1024, 1024)}  # -> size of the images, None is the model's
CORESET = {"patchcore_10": 0.1, "patchcore_1": 0.01}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models.

    Attributes:
        uniad (dict[str, Any]): Arguments of UniAD.
        backbone (str): The same backbone for the others.
        patchcore_layers (tuple[str, ...]): Of the strides of PatchCore's own layers, 8 and 16.
        padim_layers (tuple[str, ...]): Of the strides of PaDiM's own layers, 4, 8 and 16.
        padim_features (int): Channels that PaDiM keeps.
    """

    uniad: dict[str, Any] = field(default_factory=lambda: {"pre_trained": False})
    backbone: str = "tf_efficientnet_b4"
    patchcore_layers: tuple[str, ...] = ("blocks.2", "blocks.4")
    padim_layers: tuple[str, ...] = ("blocks.1", "blocks.2", "blocks.4")
    padim_features: int = 100


PAPER = Sizes()
SMALL = Sizes(
    uniad={
        "pre_trained": False,
        "backbone": "resnet18",
        "image_size": 64,
        "hidden_dim": 32,
        "feedforward_dim": 64,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "neighbor_size": 1,
    },
    backbone="resnet18",
    patchcore_layers=("layer2", "layer3"),
    padim_layers=("layer1", "layer2", "layer3"),
    padim_features=20,
)


class Files:
    """Exports models when they are first asked for; what the folder has already is taken as it is.

    Args:
        folder (Path): Where the files are.
        sizes (Sizes): Sizes of the models.
        training_images (int): Number of images of which PatchCore's memory bank is as large.
        calibration_images (int): Number of generated images with which INT8 is calibrated.
        seed (int): Seed of weights and images.

    Raises:
        ValueError: If the folder has files that were made with other arguments.
    """

    def __init__(self, folder: Path, sizes: Sizes, training_images: int, calibration_images: int, seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self._folder, self._training, self._calibration = folder, training_images, calibration_images
        self._uniad: UniAD | None = None
        folder.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {"training_images": training_images, "calibration_images": calibration_images}
        arguments |= {"seed": seed, "backbone": sizes.backbone}
        notes = folder / "arguments.json"
        if notes.is_file() and json.loads(notes.read_text()) != arguments:
            msg = f"{folder} has files made with other arguments ({notes}): give another work_dir, or delete it."
            raise ValueError(msg)
        notes.write_text(json.dumps(arguments), encoding="utf-8")

    @property
    def uniad(self) -> UniAD:
        """UniAD with generated weights, which normalises and decides as after a validation."""
        if self._uniad is None:
            model = UniAD(**self.sizes.uniad, seed=self.seed, visualizer=True).eval()
            with torch.inference_mode():
                images = torch.rand(4, 3, *model.model.image_size, generator=torch.Generator().manual_seed(self.seed))
                raw = model.model(cast("nn.Module", model.pre_processor)(images))
            post_processor: Any = model.post_processor
            for level, values in (("image", raw.pred_score), ("pixel", raw.anomaly_map)):
                getattr(post_processor, f"_{level}_threshold").copy_(values.mean())
                getattr(post_processor, f"{level}_min").copy_(values.min())
                getattr(post_processor, f"{level}_max").copy_(values.max())
            self._uniad = model
        return self._uniad

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return self.uniad.model.image_size

    @property
    def onnx(self) -> Path:
        """UniAD in ONNX, in which names of modules are kept."""
        return self._folder / "weights" / "onnx" / "uniad.onnx" if self._has("onnx/uniad.onnx") else self._export_onnx()

    def openvino(self, name: str) -> Path:
        """File of a variant, exported if it is not there; ``name`` as in :data:`.command.Variant`."""
        name = {"bf16": "f32"}.get(name, "any_size" if name in ANY_SIZE else name)
        if not self._has(f"openvino/{name}.xml"):
            with _quietly():
                self._export(name)
        return self._folder / "weights" / "openvino" / f"{name}.xml"

    def bank(self, name: str) -> int | None:
        """Vectors in PatchCore's memory bank, ``None`` for other methods."""
        if name not in CORESET:
            return None
        patches = (self.image_size[0] // 8) * (self.image_size[1] // 8)
        return max(int(self._training * patches * CORESET[name]), 9)  # its score looks at 9 neighbors

    def size_of_images(self, name: str) -> tuple[int, int]:
        """Height and width of the images that a variant is measured with."""
        return ANY_SIZE.get(name) or self.image_size

    def images(self, count: int) -> Path:
        """Folder with ``count`` generated training images of two categories, in the layout of MVTec AD."""
        folder = self._folder / f"images_{count}"
        if not folder.is_dir():
            write_images(folder, count, self.image_size[0], self.seed)
        return folder

    def checkpoint(self) -> tuple[Path, Path]:
        """UniAD as a Lightning checkpoint, and the config of its arguments."""
        checkpoint, config = self._folder / "uniad.ckpt", self._folder / "uniad.yaml"
        if not checkpoint.is_file():
            with _quietly():
                trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
                trainer.strategy.connect(self.uniad)
                trainer.save_checkpoint(checkpoint)
        config.write_text(yaml.safe_dump({"model": {"class_path": "UniAD", "init_args": self.sizes.uniad}}))
        return checkpoint, config

    def _has(self, name: str) -> bool:
        return (self._folder / "weights" / name).is_file()

    def _export_onnx(self) -> Path:
        with _quietly():
            return self.uniad.to_onnx(self._folder, "uniad", input_size=self.image_size)

    def _export(self, name: str) -> None:
        common: Mapping[str, Any] = {"export_root": self._folder, "model_file_name": name}
        if name in ANY_SIZE:
            self.uniad.__dict__.pop("to_onnx", None)
            self.uniad.to_openvino(**common)
            return
        if name in COMPRESSION:
            datamodule = None
            if name == "int8_ptq":
                datamodule = MultiCategory(root=self.images(self._calibration), num_workers=0)
            onnx = self.onnx
            self.uniad.__dict__["to_onnx"] = lambda *_, **__: onnx  # exported once for all precisions
            self.uniad.to_openvino(
                **common, input_size=self.image_size, compression_type=COMPRESSION[name], datamodule=datamodule
            )
            return
        model = self._padim() if name == "padim" else self._patchcore(name)
        # For one image, which is what is measured.
        model.eval().to_openvino(**common, input_size=self.image_size, onnx_kwargs={"dynamic_shapes": None})

    def _patchcore(self, name: str) -> Patchcore:
        """PatchCore with a memory bank of the right size; its time does not depend on the values."""
        model = Patchcore(
            backbone=self.sizes.backbone,
            layers=self.sizes.patchcore_layers,
            pre_trained=False,
            pre_processor=Patchcore.configure_pre_processor(self.image_size),
            evaluator=False,
            visualizer=False,
        )
        channels = sum(model.model.feature_extractor.out_dims)
        draw = torch.Generator().manual_seed(self.seed)
        model.model.memory_bank = torch.randn(self.bank(name) or 0, channels, generator=draw)
        return model

    def _padim(self) -> Padim:
        """PaDiM with statistics of the right size."""
        model = Padim(
            backbone=self.sizes.backbone,
            layers=list(self.sizes.padim_layers),
            pre_trained=False,
            n_features=self.sizes.padim_features,
            pre_processor=Padim.configure_pre_processor(self.image_size),
            evaluator=False,
            visualizer=False,
        )
        features, patches = self.sizes.padim_features, (self.image_size[0] // 4) * (self.image_size[1] // 4)
        draw = torch.Generator().manual_seed(self.seed)
        model.model.gaussian.mean = torch.randn(features, patches, generator=draw)
        model.model.gaussian.inv_covariance = torch.randn(patches, features, features, generator=draw)
        return model


class _quietly(warnings.catch_warnings):  # noqa: N801  # a function by its use
    """torch, NNCF and Lightning say a lot while they export."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        self._disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        return entered

    def __exit__(self, *error: Any) -> None:
        logging.disable(self._disabled)
        super().__exit__(*error)

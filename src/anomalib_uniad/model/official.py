# SPDX-License-Identifier: Apache-2.0
"""UniAD from checkpoints of the authors' code."""

from pathlib import Path
from typing import Any, TypeVar, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from anomalib_uniad.deploy.official import OfficialCheckpoint, load_official

from .torch_model import UniADModel

Model = TypeVar("Model", bound="FromOfficial")


class FromOfficial(LightningModule):
    """The part of a Lightning module that takes over weights of the authors' code."""

    official: OfficialCheckpoint | None = None

    @classmethod
    def from_official(cls: type[Model], checkpoint: str | Path, **arguments: Any) -> Model:
        """Make the model of a checkpoint of the authors' code, ``ckpt.pth.tar``.

        Sizes are read off the tensors, the rest off the config in the file, else it is the paper's. Nothing of the
        file is executed.

        Args:
            checkpoint (str | Path): The file, with the backbone's weights in it.
            **arguments (Any): Arguments of the model that are to be others than the file says, or that it does not
                tell, for example ``image_score="mean"``.

        Returns:
            Model: The model, with the weights loaded. Its attribute ``official`` tells where each argument is from, and
            which tensors of the file were not used.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, is not of UniAD, or contradicts the arguments.
        """
        path = Path(checkpoint)
        given = {name: value for name, value in arguments.items() if value is not None}
        official = load_official(path, given)
        model = cls(**{**given, **official.arguments, "pre_trained": False, "backbone_weights": None})
        network = cast("UniADModel", model.model)
        try:
            network.transformer.load_state_dict(official.transformer)
        except RuntimeError as error:  # lists what is missing, unknown or of another shape
            msg = f"{str(path)!r} does not fit the model. {error}"
            raise ValueError(msg) from error
        wanted = network.backbone.features.state_dict()
        needed = {name: tensor for name, tensor in official.backbone.items() if name in wanted}
        network.backbone.features.load_state_dict(needed, strict=False)  # only counters of batches may be missing
        official.unused += [official.names[name] for name in official.backbone if name not in wanted]
        official.used = len(needed) + len(official.transformer)
        official.backbone, official.transformer = {}, {}
        model.official = official
        return model

    def on_predict_start(self) -> None:
        """Warn if there are no thresholds, without which anomalib calls nearly every image anomalous."""
        super().on_predict_start()
        post_processor: Any = getattr(self, "post_processor", None)
        if getattr(post_processor, "enable_thresholding", False) and post_processor._image_threshold.isnan():
            rank_zero_warn(
                "The model has no thresholds: it was never validated, like a checkpoint of the authors' code. Scores "
                "and heatmaps are right, labels mean nothing. Validate it on your images and save it to have them."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write down for how many epochs the authors' code has trained it, as long as it is not trained further."""
        super().on_save_checkpoint(checkpoint)
        epochs = None if self.official is None else self.official.epoch
        if epochs and not checkpoint["epoch"]:
            checkpoint["epoch"] = epochs
            progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
            progress.update(dict.fromkeys(progress, epochs))

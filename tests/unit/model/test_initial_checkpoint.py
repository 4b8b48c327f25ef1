# SPDX-License-Identifier: Apache-2.0
"""A training that starts from the weights of another one."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_uniad import MultiCategory, UniAD
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

NORMED = {**SMALL, "feature_norm": "standard", "visualizer": False, "resume_interval": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """Images of two products, and the checkpoint of one of them."""
    root = make_mvtec_like(tmp_path_factory.mktemp("data") / "Products")
    folder = tmp_path_factory.mktemp("first")
    own = PreProcessor(Compose([Resize((64, 64)), Normalize([0.4] * 3, [0.3] * 3)]))
    engine = quiet_engine(folder, max_epochs=1)
    engine.fit(UniAD(**NORMED, seed=1, pre_processor=own), datamodule=make_data(root, ["bottle"]))
    return root, Path(engine.best_model_path)


def make_data(root: Path, categories: list[str]) -> MultiCategory:
    return MultiCategory("MVTecAD", root, categories=categories, train_batch_size=4, num_workers=0)


def test_everything_that_was_learned_is_there(trained: tuple[Path, Path], tmp_path: Path) -> None:
    root, file = trained
    saved = torch.load(file, weights_only=True)["state_dict"]
    # pre_trained would look for weights on the hub.
    model = UniAD(**{**NORMED, "pre_trained": True}, seed=2, initial_checkpoint=file)
    own = model.state_dict()
    assert all(own[name].equal(value) for name, value in saved.items() if name.startswith("model."))
    assert model.pre_processor.transform.transforms[-1].mean == [0.4] * 3
    assert model.training_summary == {}
    assert model.category_thresholds == {}

    class First(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == 0:
                self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    first = First()
    engine = quiet_engine(tmp_path, first, max_epochs=1)
    engine.fit(model, datamodule=make_data(root, ["bottle", "cable"]))
    # The statistics of features as well: the weights belong to them.
    assert all(first.weights[name].equal(value) for name, value in saved.items() if name.startswith("model."))
    assert model.training_summary["categories"] == ["bottle", "cable"]
    name = "model.transformer.output_projection.weight"
    assert not model.state_dict()[name].equal(saved[name])
    later = UniAD.load_from_checkpoint(engine.best_model_path)
    assert later.hparams["initial_checkpoint"] is None
    described = yaml.safe_load((Path(engine.trainer.default_root_dir) / "model.yaml").read_text())
    assert described["model"]["init_args"]["initial_checkpoint"] is None


def test_what_is_said_about_other_images(trained: tuple[Path, Path]) -> None:
    model = UniAD(**NORMED, initial_checkpoint=trained[1])
    datamodule = SimpleNamespace(categories=["cable"], value_range=None, images_checked=True)
    model.trainer = SimpleNamespace(datamodule=datamodule)
    with pytest.warns(UserWarning, match=r"model\.ckpt was trained on bottle as well, of which this training has no"):
        model.setup("fit")
    datamodule.value_range = (0.0, 4095.0)
    with pytest.raises(ValueError, match="was trained with no value_range, but SimpleNamespace has value_range="):
        model.setup("fit")


def test_files_that_do_not_fit_are_refused(trained: tuple[Path, Path]) -> None:
    _, file = trained
    with pytest.raises(ValueError, match=r"model\.ckpt is of another model; .*: hidden_dim: 16 in the checkpoint, 32 "):
        UniAD(**{**NORMED, "hidden_dim": 32}, initial_checkpoint=file)
    with pytest.raises(ValueError, match="feature_norm: standard in the checkpoint, none in the model"):
        UniAD(**SMALL, initial_checkpoint=str(file))
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*other\.ckpt: its folder has model\.ckpt\."):
        UniAD(**NORMED, initial_checkpoint=file.with_name("other.ckpt"))

# SPDX-License-Identifier: Apache-2.0
"""Training with cached features is the same training, only without images."""

import errno
import json
import re
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from anomalib.data import Folder, ImageBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from torchvision.transforms.v2 import Compose, Normalize, RandomHorizontalFlip, Resize

import feature_cache_worker
from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.training import feature_cache, feature_store
from anomalib_uniad.training.cached_dataset import CachedDataset
from anomalib_uniad.training.feature_cache import FeatureCache
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

EPOCHS = 2


class Trace(Callback):
    """Notes the losses, the validation metrics and the types of the batches."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.metrics: list[dict[str, float]] = []
        self.seen: set[tuple[str, str]] = set()
        self.paths: list[list[str]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
        self.seen.add(("train", type(batch).__name__))
        self.paths.append(batch.image_path)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.seen.add(("val", type(batch).__name__))

    def on_train_epoch_end(self, trainer, pl_module) -> None:  # validations run before it
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if k != "train_loss"})

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.seen.add(("test", type(batch).__name__))


def small_model(**arguments) -> UniAD:
    return UniAD(**{**SMALL, "feedforward_dim": 32, "seed": 7, "resume_interval": 0, **arguments})


def make_engine(folder: Path, *callbacks: Callback, epochs: int = EPOCHS, **arguments) -> Engine:
    return quiet_engine(folder, *callbacks, max_epochs=epochs, **arguments)


def fit(folder: Path, datamodule, cache: FeatureCache | None = None, **arguments) -> tuple[Trace, UniAD, Engine]:
    trace, model = Trace(), small_model(**arguments)
    engine = make_engine(folder, trace, *([cache] if cache else []))
    engine.fit(model=model, datamodule=datamodule)
    return trace, model, engine


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    # Images that are larger and smaller than the model's 64 pixels, of equal size within a category.
    return make_mvtec_like(tmp_path_factory.mktemp("data") / "Products", sizes={"bottle": (96, 120), "cable": (48, 48)})


def make_multi_category(root: Path, **arguments) -> MultiCategory:
    return MultiCategory("MVTecAD", root, train_batch_size=3, eval_batch_size=4, num_workers=0, **arguments)


def make_mvtec(root: Path, **arguments) -> MVTecAD:
    return MVTecAD(root=root, category="bottle", train_batch_size=3, eval_batch_size=4, num_workers=0, **arguments)


def make_folder(root: Path, **arguments) -> Folder:
    """Classification only: no masks."""
    return Folder(
        name="plain",
        root=root / "bottle",
        normal_dir="train/good",
        abnormal_dir="test/broken",
        normal_test_dir="test/good",
        train_batch_size=3,
        eval_batch_size=4,
        num_workers=0,
        **arguments,
    )


@pytest.fixture
def extractions(monkeypatch) -> list[int]:
    """Sizes of the batches of images that the backbone has seen, of any model."""
    from anomalib_uniad.model.torch_model import UniADModel

    calls: list[int] = []
    original = UniADModel.extract

    def extract(self, images):
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(UniADModel, "extract", extract)
    return calls


@pytest.mark.parametrize(
    "make", [make_multi_category, *(pytest.param(make, marks=pytest.mark.slow) for make in (make_mvtec, make_folder))]
)
def test_same_training_without_images(root: Path, tmp_path: Path, extractions: list[int], make) -> None:
    plain, plain_model, _ = fit(tmp_path / "plain", make(root))
    for mode in ("memory", "disk") if make is make_multi_category else ("memory",):
        extractions.clear()
        cached, model, engine = fit(tmp_path / mode, make(root), FeatureCache(mode, directory=tmp_path / "features"))
        datamodule = engine.trainer.datamodule
        assert sum(extractions) == len(datamodule.train_data) + len(datamodule.val_data)
        assert cached.seen == {("train", "CachedBatch"), ("val", "CachedBatch")}
        assert cached.paths == plain.paths
        assert len(cached.losses) == len(plain.losses) >= 2 * EPOCHS
        assert cached.losses == pytest.approx(plain.losses, rel=1e-5)
        assert len(cached.metrics) == EPOCHS
        for ours, theirs in zip(cached.metrics, plain.metrics, strict=True):
            assert "image_AUROC" in ours
            assert ours == pytest.approx(theirs, abs=1e-6)
        # Thresholds come from masks as well.
        found = model.post_processor.state_dict()
        for name, value in plain_model.post_processor.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.slow
def test_pixel_metrics_are_the_same(root: Path, tmp_path: Path) -> None:
    from anomalib.metrics import AUROC

    from anomalib_uniad import PerCategoryEvaluator

    def evaluator() -> PerCategoryEvaluator:
        return PerCategoryEvaluator(val_metrics=[AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_")])

    plain, *_ = fit(tmp_path / "plain", make_multi_category(root), evaluator=evaluator())
    cached, *_ = fit(tmp_path / "cached", make_multi_category(root), FeatureCache("memory"), evaluator=evaluator())
    assert {"pixel_AUROC", "pixel_AUROC/bottle"} <= cached.metrics[0].keys()
    for ours, theirs in zip(cached.metrics, plain.metrics, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_the_next_training_reads_the_files(root: Path, tmp_path: Path, extractions: list[int]) -> None:
    first, *_ = fit(tmp_path / "1", make_multi_category(root), FeatureCache("disk", directory=tmp_path / "features"))
    assert sum(extractions) == 8 + 12
    extractions.clear()
    second, *_ = fit(tmp_path / "2", make_multi_category(root), FeatureCache("disk", directory=tmp_path / "features"))
    assert extractions == []
    assert second.losses == first.losses
    third, *_ = fit(
        tmp_path / "3", make_multi_category(root), FeatureCache("disk", "float16", directory=tmp_path / "features")
    )
    assert sum(extractions) == 8 + 12
    assert third.losses != first.losses
    assert third.losses == pytest.approx(first.losses, rel=1e-2)


def test_a_new_product_leaves_the_files_of_the_others(root: Path, tmp_path: Path, extractions: list[int]) -> None:
    for categories, built in ((["cable"], 4 + 6), (["bottle", "cable"], 4 + 6)):
        extractions.clear()
        cache = FeatureCache("disk", directory=tmp_path / "features")
        fit(tmp_path, make_multi_category(root, categories=categories), cache)
        assert sum(extractions) == built


@pytest.mark.slow
def test_copies(root: Path, tmp_path: Path, extractions: list[int]) -> None:
    """Each epoch draws a version of each image: as many steps, and a training that is resumed draws the same."""

    def train(copies, epochs=2, ckpt_path=None, mode="disk") -> tuple[Trace, int, Engine]:
        extractions.clear()
        trace = Trace()
        cache = FeatureCache(mode, directory=tmp_path / "features", copies=copies)
        engine = make_engine(tmp_path, trace, cache, epochs=epochs)
        engine.fit(model=small_model(), datamodule=make_multi_category(root), ckpt_path=ckpt_path)
        return trace, sum(extractions), engine

    plain, built, _ = train(None)
    assert built == 8 + 12
    copies = {"bottle": ["rotate_90", "rotate_any"]}
    whole, built, _ = train(copies)
    assert built == 2 * 4  # what was there is used
    assert len(whole.losses) == len(plain.losses)
    assert whole.losses != plain.losses
    assert whole.losses == pytest.approx(plain.losses, rel=0.1)
    first, built, engine = train(copies, epochs=1)
    assert built == 0
    resumed, *_ = train(copies, ckpt_path=engine.best_model_path)
    assert first.losses + resumed.losses == whole.losses
    in_memory, built, _ = train(copies, mode="memory")
    assert built == 8 + 12 + 2 * 4
    assert in_memory.losses == whole.losses
    assert in_memory.metrics == whole.metrics
    _, built, _ = train({**copies, "cable": ["horizontal_flip"]})
    assert built == 4


@pytest.mark.slow
def test_sampling_by_variance(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As many steps as without, of other images; a training that is resumed draws the same."""

    def train(sampling, epochs=2, ckpt_path=None) -> tuple[list[float], Engine]:
        trace = Trace()
        cache = FeatureCache("disk", directory=tmp_path / "features", product_sampling=sampling)
        engine = make_engine(tmp_path, trace, cache, epochs=epochs)
        engine.fit(model=small_model(), datamodule=make_multi_category(root), ckpt_path=ckpt_path)
        return trace.losses, engine

    plain, _ = train("uniform")
    assert "Images drawn" not in caplog.text
    with caplog.at_level("INFO"):
        whole, _ = train("variance")
    assert re.search(r"Images drawn: bottle [\d.]+ %, cable [\d.]+ %\.", caplog.text)
    assert len(whole) == len(plain)
    assert whole != plain
    first, engine = train("variance", epochs=1)
    resumed, _ = train("variance", ckpt_path=engine.best_model_path)
    assert first + resumed == whole


def test_copies_of_unknown_products_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"feature_cache_copies has 'bottel', but the products .* are bottle, cable\."):
        fit(tmp_path, make_multi_category(root), FeatureCache("memory", copies={"bottel": ["rotate_90"]}))


@pytest.mark.slow
def test_everything_is_as_before_afterwards(root: Path, tmp_path: Path) -> None:
    datamodule, trace, model = make_multi_category(root), Trace(), small_model()
    datamodule.num_workers = 1
    filters = list(warnings.filters)
    engine = make_engine(tmp_path, trace, FeatureCache("memory"), epochs=1)
    results = engine.train(model=model, datamodule=datamodule)[0]
    assert "image_AUROC" in results
    assert trace.seen == {("train", "CachedBatch"), ("val", "CachedBatch"), ("test", "ImageBatch")}
    assert not any(isinstance(data, CachedDataset) for data in (datamodule.train_data, datamodule.val_data))
    assert datamodule.num_workers == 1
    assert warnings.filters == filters
    heatmaps = list((Path(engine.trainer.default_root_dir) / "images").rglob("*.png"))
    assert len(heatmaps) == 12
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    assert checkpoint["anomalib_pre_processor_config"]["transform"] is not None
    loaded = UniAD.load_from_checkpoint(engine.best_model_path)
    images = torch.rand(2, 3, 100, 90)
    with torch.no_grad():
        assert loaded.eval()(images).anomaly_map.equal(model.eval()(images).anomaly_map)


def test_an_exception_puts_everything_back(root: Path, tmp_path: Path) -> None:
    class Broken(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            raise KeyError("power cut")

    datamodule, model = make_mvtec(root), small_model()
    engine = make_engine(tmp_path, Broken(), FeatureCache("memory"))
    with pytest.raises(KeyError, match="power cut"):
        engine.fit(model=model, datamodule=datamodule)
    assert type(next(iter(datamodule.train_dataloader()))) is ImageBatch
    assert type(next(iter(datamodule.val_dataloader()))) is ImageBatch
    trace = Trace()  # and the next training works
    make_engine(tmp_path, trace, FeatureCache("memory")).fit(model=model, datamodule=datamodule)
    assert trace.seen == {("train", "CachedBatch"), ("val", "CachedBatch")}


def test_resuming_uses_the_cache(root: Path, tmp_path: Path, extractions: list[int]) -> None:
    directory = tmp_path / "features"
    engine = make_engine(tmp_path / "first", FeatureCache("disk", directory=directory), epochs=1)
    engine.fit(model=small_model(), datamodule=make_mvtec(root))
    extractions.clear()
    # Without its seed, the model has other random weights until the checkpoint brings those of the cache.
    trace = Trace()
    second = make_engine(tmp_path / "second", trace, FeatureCache("disk", directory=directory), epochs=2)
    second.fit(model=small_model(seed=8), datamodule=make_mvtec(root), ckpt_path=engine.best_model_path)
    assert extractions == []
    assert len(trace.losses) == 2


def test_the_number_of_steps_is_known_early(root: Path, tmp_path: Path) -> None:
    """`configure_optimizers` may ask for the dataloaders, long before the training starts."""
    model = small_model()
    original = model.configure_optimizers
    steps: list[float] = []

    def configure_optimizers():
        steps.append(model.trainer.estimated_stepping_batches)
        return original()

    model.configure_optimizers = configure_optimizers
    trace = Trace()
    make_engine(tmp_path, trace, FeatureCache("memory"), epochs=2).fit(model=model, datamodule=make_mvtec(root))
    assert steps == [4] == [len(trace.losses)]


def test_validation_features_come_first(root: Path, tmp_path: Path, extractions: list[int], monkeypatch) -> None:
    """What does not fit is refused before long work starts, also if it is validated late."""
    data = make_multi_category(root)
    engine = make_engine(tmp_path, FeatureCache("memory"), check_val_every_n_epoch=EPOCHS)
    before: list[int] = []
    monkeypatch.setattr(UniAD, "on_train_epoch_start", lambda _: before.append(len(extractions)), raising=False)
    engine.fit(model=small_model(), datamodule=data)
    assert before[0] == before[-1] == len(extractions) > 0
    assert sum(extractions) == len(data.train_data) + len(data.val_data)


def test_without_validation_set(tmp_path: Path) -> None:
    root = make_mvtec_like(tmp_path / "data", train=4, good=2, bad=2)
    datamodule = make_multi_category(root, val_split_mode="none")
    trace = Trace()
    engine = make_engine(tmp_path, trace, FeatureCache("memory"), epochs=1)
    engine.fit(model=small_model(), datamodule=datamodule)
    assert trace.seen == {("train", "CachedBatch")}


def test_no_cache_for_a_single_batch(root: Path, tmp_path: Path) -> None:
    trace = Trace()
    engine = make_engine(tmp_path, trace, FeatureCache("disk", directory=tmp_path / "cache"), fast_dev_run=True)
    engine.fit(model=small_model(), datamodule=make_multi_category(root))
    assert {kind for _, kind in trace.seen} == {"ImageBatch"}
    assert not (tmp_path / "cache").exists()


def test_synthetic_anomalies_are_not_kept_on_disk(root: Path, tmp_path: Path) -> None:
    datamodule = make_mvtec(root, val_split_mode="synthetic", val_split_ratio=0.5, seed=3)
    cache = FeatureCache("disk", directory=tmp_path / "features")
    trace, *_ = fit(tmp_path, datamodule, cache)
    assert ("val", "CachedBatch") in trace.seen
    assert [entry.meta["images"] for entry in cache.store.entries()] == [2]


@pytest.mark.slow
def test_it_says_where_features_come_from(root: Path, tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(feature_cache, "rank_zero_info", said.append)
    for _ in range(2):
        fit(tmp_path, make_mvtec(root), FeatureCache("disk", directory=tmp_path / "features"))
    assert len(said) == 6
    assert said[0].startswith("The features of 6 images, 512x4x4 float32, need 0.2 MB in ")
    assert "MVTecAD, validation" in said[1]
    assert said[2].startswith("The features of 4 images, 512x4x4 float32, need 0.1 MB in ")
    assert "MVTecAD, training" in said[3]
    assert "(4 images, 0.1 MB), built now." in said[3]
    assert "(4 images, 0.1 MB), built earlier." in said[5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_augmentations": RandomHorizontalFlip()}, "train_augmentations has RandomHorizontalFlip"),
        ({"val_augmentations": RandomHorizontalFlip(0.1)}, "val_augmentations has RandomHorizontalFlip"),
    ],
)
def test_random_augmentations_are_refused_at_once(
    root: Path, tmp_path: Path, extractions: list[int], arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, make_mvtec(root, **arguments), FeatureCache("memory"))
    assert extractions == []


@pytest.mark.slow
def test_deterministic_augmentations_are_applied(root: Path, tmp_path: Path) -> None:
    traces = [
        fit(tmp_path / str(number), make_mvtec(root, train_augmentations=Resize((20, 20))), *cache)[0]
        for number, cache in enumerate([[], [FeatureCache("memory")]])
    ]
    assert traces[1].losses == pytest.approx(traces[0].losses, rel=1e-5)


def test_dataloaders_without_datamodule_are_refused(root: Path, tmp_path: Path) -> None:
    datamodule = make_mvtec(root)
    datamodule.setup()
    engine = make_engine(tmp_path, FeatureCache("memory"))
    with pytest.raises(ValueError, match="give the trainer one instead of dataloaders"):
        engine.fit(model=small_model(), train_dataloaders=datamodule.train_dataloader())


def test_own_collate_function_is_refused(root: Path, tmp_path: Path) -> None:
    datamodule = make_mvtec(root)
    datamodule.external_collate_fn = lambda items: items
    with pytest.raises(ValueError, match=r"its own collate_fn \(<lambda>\)"):
        fit(tmp_path, datamodule, FeatureCache("memory"))


def test_trainable_backbone_is_refused(root: Path, tmp_path: Path) -> None:
    model = small_model()
    model.model.backbone.requires_grad_()
    with pytest.raises(ValueError, match="trainable parameters"):
        make_engine(tmp_path, FeatureCache("memory")).fit(model=model, datamodule=make_mvtec(root))


def test_weights_that_change_after_the_build_are_noticed(root: Path, tmp_path: Path) -> None:
    class Loader(Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            next(iter(pl_module.model.backbone.parameters())).data += 1

    with pytest.raises(RuntimeError, match="weights changed after the features were computed"):
        make_engine(tmp_path, Loader(), FeatureCache("memory")).fit(model=small_model(), datamodule=make_mvtec(root))


@pytest.mark.slow
def test_two_processes_build_one_cache(tmp_path: Path) -> None:
    data = make_mvtec_like(tmp_path / "data", ["bottle"], train=8, good=2, bad=2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, feature_cache_worker.__file__, str(port), str(data), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["kinds"] == second["kinds"] == ["CachedBatch"]
    # Each process trains on its half in each epoch, and both end with the same weights.
    for epoch in range(2):
        halves = [result["paths"][4 * epoch : 4 * epoch + 4] for result in (first, second)]
        assert sorted(halves[0] + halves[1]) == sorted(str(data / f"bottle/train/good/{n:03}.png") for n in range(8))
    assert first["weight"] == second["weight"]
    # One of the two built each cache, the other one waited for it.
    assert first["extracted"] + second["extracted"] == 8 + 4


def test_a_disk_that_is_too_small(root: Path, tmp_path: Path, monkeypatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(feature_store.shutil, "disk_usage", lambda path: usage(10**9, 0, feature_store.RESERVE + 10**5))
    cache = FeatureCache("disk", directory=tmp_path / "features")
    with pytest.raises(OSError, match=r"need 0\.2 MB in .*features, but there are only 0\.0 MB beside the other files"):
        fit(tmp_path, make_mvtec(root), cache)
    assert cache.store.entries() == cache.store.unfinished() == []


def test_a_disk_that_becomes_full(root: Path, tmp_path: Path, monkeypatch) -> None:
    def append(self, name, array) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("anomalib_uniad.training.feature_store.CacheWriter.append", append)
    cache = FeatureCache("disk", directory=tmp_path / "features")
    with pytest.raises(OSError, match=r"became full\. Halve it with feature_cache_dtype=float16"):
        fit(tmp_path, make_mvtec(root), cache)
    assert cache.store.entries() == cache.store.unfinished() == []


def test_the_arguments_of_the_model(root: Path, tmp_path: Path) -> None:
    model = small_model(
        feature_cache="disk",
        feature_cache_dtype="float16",
        feature_cache_dir=tmp_path / "features",
        feature_cache_copies=("vertical_flip",),
    )
    trace = Trace()
    make_engine(tmp_path, trace).fit(model=model, datamodule=make_mvtec(root))
    assert trace.seen == {("train", "CachedBatch"), ("val", "CachedBatch")}
    entries = FeatureCache("disk", directory=tmp_path / "features").store.entries()
    names = {"MVTecAD, training", "MVTecAD, training, vertical_flip", "MVTecAD, validation"}
    assert {entry.meta["dataset"] for entry in entries} == names
    assert model.hparams["feature_cache_copies"] == ["vertical_flip"]
    assert {entry.meta["arrays"]["features"]["dtype"] for entry in entries} == {"float16"}


@pytest.mark.slow
def test_a_pre_processor_of_anomalib(root: Path, tmp_path: Path) -> None:
    """The model makes its own of it, which leaves batches of features alone."""
    transform = Compose([Resize((64, 64)), Normalize([0.5] * 3, [0.5] * 3)])
    traces = [
        fit(tmp_path / mode, make_mvtec(root), feature_cache=mode, pre_processor=PreProcessor(transform))[0]
        for mode in ("off", "memory")
    ]
    assert traces[1].seen == {("train", "CachedBatch"), ("val", "CachedBatch")}
    assert traces[1].losses == pytest.approx(traces[0].losses, rel=1e-5)

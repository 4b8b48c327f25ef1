# SPDX-License-Identifier: Apache-2.0
"""Images rendered from features, and pictures of what a model makes of images."""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.cli import main
from anomalib_uniad.errors import ExistingFileError, InputError, MissingFileError
from anomalib_uniad.model import UniADModel
from anomalib_uniad.report.columns import COST
from anomalib_uniad.report.decisions import nearest_good
from anomalib_uniad.report.nearest_good import NearestGood
from anomalib_uniad.trained_run import CHECKPOINT, checkpoint_of, folder_of, look, open_run, pixels_of
from anomalib_uniad.visualization import train_decoder as training
from anomalib_uniad.visualization.feature_decoder import FeatureDecoder
from anomalib_uniad.visualization.inside import attention_of, draw_queries, transformer_of
from anomalib_uniad.visualization.show import _draw, _seen_mask, show
from small import quiet_engine

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about loggers and workers

LONG = "a plate whose name does not end where others do"
ARGUMENTS: dict[str, Any] = {
    "backbone": "tf_efficientnet_lite0",
    "layers": (0, 1, 2, 3),
    "image_size": 96,
    "hidden_dim": 64,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "feedforward_dim": 128,
    "dropout": 0.0,
    "neighbor_size": 3,
    "feature_resize": "area",
    "feature_norm": "standard",
    "optimizer": "muon",
    "learning_rate": 0.003,
    "gradient_clip_norm": 0.0,
    "feature_cache": "memory",
    "visualizer": False,
    "seed": 0,
}
SPOT = slice(40, 58), slice(52, 70)  # where defects are


def plate(seed: int, base: int, spot: bool, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    """A plate in uneven light; a defective one has a dark spot."""
    random = np.random.default_rng(seed)
    light = Image.fromarray(random.uniform(-45, 45, (5, 5)).astype(np.float32)).resize(
        size[::-1], Image.Resampling.BICUBIC
    )
    pixels = base + np.asarray(light) + random.normal(0, 4, size)
    if spot:
        pixels[SPOT] = 15
    return pixels.clip(0, 255).astype(np.uint8)


def test_the_folder_of_a_checkpoint(tmp_path: Path) -> None:
    assert folder_of(tmp_path / "run" / CHECKPOINT) == tmp_path / "run"
    assert folder_of(Path("/data/model.ckpt")) == Path("/data"), "an imported one"


def write(path: Path, *arguments: Any, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(plate(*arguments, **more)).save(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, with its images in ``data``, and a decoder, neither of which has learned much."""
    return make_run(tmp_path_factory.mktemp("visualization"), 8, 2, 10)


def make_run(folder: Path, images: int, epochs: int, steps: int) -> Path:
    for name, base in (("plate", 150), (LONG, 110)):
        for number in range(images):
            write(folder / "data" / name / "train" / "good" / f"{number:03d}.png", number, base, spot=False)
        for number in range(4):
            write(folder / "data" / name / "test" / "good" / f"{number:03d}.png", 100 + number, base, spot=False)
            write(folder / "data" / name / "test" / "spot" / f"{number:03d}.png", 200 + number, base, spot=True)
            mask = np.zeros((96, 96), np.uint8)
            mask[SPOT] = 255
            file = folder / "data" / name / "ground_truth" / "spot" / f"{number:03d}_mask.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
    data = MultiCategory(root=folder / "data", train_batch_size=8, eval_batch_size=8, num_workers=0)
    engine = quiet_engine(folder, max_epochs=epochs)
    engine.train(model=UniAD(**ARGUMENTS), datamodule=data)
    made = next(folder.rglob("model.ckpt")).parents[2]
    main(["train-decoder", str(made), "--data", str(folder / "data"), "--steps", str(steps)])
    return made


def decoder_of(run: Path) -> tuple[UniADModel, FeatureDecoder]:
    model = UniAD.load_from_checkpoint(run / CHECKPOINT).eval()
    return model, FeatureDecoder.load(run / "decoder.pt", model)


def darkness(images: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """How much darker the middle of the spot is than in images without one (B,), both (B, 3, H, W) of any size."""
    scale = images.shape[-1] / 96
    rows, columns = (slice(round((part.start + 4) * scale), round((part.stop - 4) * scale)) for part in SPOT)
    return (without - images)[..., rows, columns].mean(dim=(1, 2, 3))


@pytest.mark.slow
def test_a_defect_fades_in_the_reconstruction_and_lights_up_in_the_map(tmp_path: Path) -> None:
    model, decoder = decoder_of(make_run(tmp_path, 24, 25, 150))
    own, rebuilt = [], []
    for spot in (True, False):
        pixels = np.stack([plate(seed, 150, spot) for seed in range(200, 212)]).astype(np.float32) / 255
        images = torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1)
        with torch.no_grad():
            features = model.model.normalise(model.model.extract(model.pre_processor(images)))
            own.append(decoder(model.model.denormalise(features)))
            rebuilt.append(decoder(model.model.denormalise(model.model.reconstruct(features))))
            if spot:
                maps = model(images).anomaly_map[:, 0]
    seen, left = darkness(*own), darkness(*rebuilt)
    assert seen.mean() > 0.12
    assert left.mean() < 0.7 * seen.mean(), (left, seen)
    for values in maps:
        row, column = np.unravel_index(values.argmax(), values.shape)
        assert SPOT[0].start - 8 <= row < SPOT[0].stop + 8
        assert SPOT[1].start - 8 <= column < SPOT[1].stop + 8


def test_pictures(run: Path, tmp_path: Path) -> None:
    data = run.parents[2] / "data"
    table = pd.read_csv(run / "predictions.csv")
    of = table[table["category"] == "plate"].sort_values("raw_score")
    main(["show", str(run), "--data", str(data), "--count", "2", "--output", str(tmp_path / "out")])
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    wanted = [*of["path"].iloc[:2], *of["path"].iloc[-2:]]
    names = {f"images/plate/{'_'.join(Path(path).parts[-2:])}.png" for path in wanted}
    assert names <= set(written)
    assert {"plate.png", f"{LONG}.png"} <= set(written)
    assert len(written) == 2 * (4 + 1)
    with Image.open(tmp_path / "out" / "plate.png") as sheet, Image.open(tmp_path / "out" / sorted(names)[0]) as one:
        assert sheet.width == one.width
        assert sheet.height > 3.5 * one.height
        assert np.asarray(one).std() > 20
    with pytest.raises(ExistingFileError, match=r"out has files in it: give another --output"):
        show([run], tmp_path / "out", data=data)


@pytest.mark.slow
def test_failures(run: Path, tmp_path: Path) -> None:
    """Of a table in which two good plates are called anomalous and a spot is missed."""
    data = run.parents[2] / "data"
    shutil.copytree(run, tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "predictions.csv")
    table["decision"] = table["label"]
    table["normalised_score"] = (table["label"] == "anomalous") * 0.6 + 0.2
    of = table[table["category"] == "plate"]
    good, bad = (list(of.loc[of["label"] == label, "path"]) for label in ("normal", "anomalous"))
    for path, *values in ((good[0], "anomalous", 0.7), (good[1], "unknown", 1.0), (bad[-1], "normal", 0.1)):
        table.loc[table["path"] == path, ["decision", "normalised_score"]] = values
    first, second, third = (f"{'_'.join(Path(path).parts[-2:])}.png" for path in (good[1], good[0], bad[-1]))
    table.to_csv(tmp_path / "run" / "predictions.csv", index=False)
    files = show([tmp_path / "run"], tmp_path / "one", count=1, failures=True, data=data)
    assert [file.name for file in files] == [first, third, "plate.png"]
    files = show([tmp_path / "run"], tmp_path / "all", failures=True, data=data)
    assert [file.name for file in files[:2]] == [first, second]
    model = UniAD.load_from_checkpoint(run / CHECKPOINT).eval()
    nearest = NearestGood(model, open_run(run / CHECKPOINT, data)[1])
    images = torch.from_numpy(
        np.asarray(Image.open(data / "plate/train/good/005.png").convert("RGB")) / np.float32(255)
    )
    with torch.no_grad():
        features = model.model.normalise(model.model.extract(model.pre_processor(images.permute(2, 0, 1)[None])))
    assert nearest.of(features, "plate").image_path == [str(data / "plate/train/good/005.png")]
    assert Path(nearest.of(features, LONG).image_path[0]).parts[-4] == LONG
    assert nearest.of(features, "another") is None
    likes = nearest_good(tmp_path / "run", [(good[0], "plate"), (bad[-1], "plate"), ("other.png", "plate")])
    assert likes == {}, "model.yaml does not say where the images are"
    section = yaml.safe_dump({"data": {"class_path": "MultiCategory", "init_args": {"root": str(data)}}})
    with (tmp_path / "run" / "model.yaml").open("a") as stream:
        stream.write(section)
    likes = nearest_good(tmp_path / "run", [(good[0], "plate"), (bad[-1], "plate"), ("other.png", "plate")])
    assert {path: like.parts[-4:-1] for path, like in likes.items()} == dict.fromkeys(
        (good[0], bad[-1]), ("plate", "train", "good")
    )
    table.loc[table["path"] == bad[-1], ["raw_score", "threshold"]] = 1.0, 2.0  # which is what the page decides by
    table.to_csv(tmp_path / "run" / "predictions.csv", index=False)
    page = tmp_path / "review.html"
    main(["review", str(tmp_path / "run"), "--output", str(page)])
    assert page.read_text().count(f'"{likes[bad[-1]].name}", "data:image/jpeg') >= 1
    main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.html").read_text()
    assert text.count("good, most like it: ") == 3
    assert f"good, most like it: {likes[bad[-1]].name}" in text
    table["decision"] = table["label"]
    table.to_csv(tmp_path / "run" / "predictions.csv", index=False)
    with pytest.raises(InputError, match="There is neither a false alarm nor a missed defect in"):
        show([tmp_path / "run"], tmp_path / "none", failures=True, data=data)


def test_several_runs(run: Path, tmp_path: Path) -> None:
    data = run.parents[2] / "data"
    names = ["plate/test/spot/000.png", "plate/train/good/000.png", "plate/test/good/000.png"]
    held_out = {Path(path) for path in open_run(run / CHECKPOINT, data)[1].val_data.samples["image_path"]}
    chosen = [data / name for name in names if (data / name) in held_out or "test" in name]
    files = show([run, run / CHECKPOINT], tmp_path, [*chosen, chosen[0]], data=data)
    assert len(set(files)) == len(chosen) + 1
    with Image.open(files[0]) as picture:
        assert picture.width == 9 * (176 + 6) + 6  # image, mask, features, and three panels of each run
    with pytest.raises(InputError, match=r"other\.png is none of the test images of data"):
        show([run], tmp_path / "b", [Path("other.png")], data=data)
    with pytest.raises(OSError, match=r"plate\.png"):
        show([run], tmp_path / "plate.png" / "b", chosen, data=data)
    with pytest.raises(OSError, match=r"plate\.png"):
        training.train_decoder(run, tmp_path / "plate.png" / "decoder.pt", data=data)


def test_a_benchmark_stands_for_its_trainings(run: Path, tmp_path: Path) -> None:
    """Of UniAD, one model for all categories, the first data and seed; with one decoder."""
    data, bench = run.parents[2] / "data", tmp_path / "bench"
    cells = [("a|b", "all", "unified", 1), ("a|b", "all", "unified", 2), ("a|b", "Padim", "unified", 1)]
    cells += [("a|b", "no mask", "unified", 1), ("a|b", "no mask", "separate", 1), ("c", "no mask", "unified", 1)]
    keys = dict(zip(("data", "method", "mode", "seed"), zip(*cells, strict=True), strict=True))
    table = pd.DataFrame({**keys, "category": "plate", "kind": "category", "image_AUROC": 1.0, "note": ""})
    table = table.assign(**dict.fromkeys(COST, 1), model=table["method"].where(table["method"] == "Padim", "UniAD"))
    for name in ("all", "no mask"):
        shutil.copytree(run, bench / "a_b" / name / "unified" / "seed1" / "run" / "UniAD" / "data" / "latest")
    table.to_csv(bench / "results.csv", index=False)
    shutil.copy(run / "decoder.pt", bench)
    chosen = data / "plate" / "test" / "spot" / "000.png"
    files = show([bench], tmp_path / "out", [chosen], data=data)
    assert len(files) == 2
    with Image.open(files[0]) as picture:
        assert picture.width == 9 * (176 + 6) + 6
    table[table["mode"] == "separate"].to_csv(bench / "results.csv", index=False)
    with pytest.raises(InputError, match=r"bench has no training of UniAD for all categories together"):
        training.train_decoder(bench)


@pytest.mark.parametrize("how", [{"resize_mode": "pad"}, {"crop": (0, 40, 96, 96)}, {"tiles": (1, 2)}], ids=str)
def test_wide_images(run: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    """Image, mask and map show the same part, whatever the model sees of an image."""
    for part in ("train/good/000.png", "train/good/001.png", "test/good/000.png", "test/spot/000.png"):
        write(tmp_path / "data" / "plate" / part, 7, 150, spot="spot" in part, size=(96, 200))
    mask = np.zeros((96, 200), np.uint8)
    mask[SPOT] = 255
    (tmp_path / "data" / "plate" / "ground_truth" / "spot").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "data" / "plate" / "ground_truth" / "spot" / "000_mask.png")
    model = UniAD(**{**ARGUMENTS, **how})
    torch.save(
        {
            "state_dict": model.state_dict(),
            "hyper_parameters": dict(model.hparams),
            "pytorch-lightning_version": "2.6.0",
        },
        tmp_path / "model.ckpt",
    )
    dataset = open_run(tmp_path / "model.ckpt", tmp_path / "data")[1].test_data
    row = [str(path) for path in dataset.samples["image_path"]].index(str(tmp_path / "data/plate/test/spot/000.png"))
    batch = dataset.collate_fn([dataset[row]])
    prepared, features = look(model.eval(), batch.image)
    pixels = pixels_of(model, prepared)[0].mean(dim=0).numpy()
    seen = _seen_mask(model, batch)
    assert seen.shape == pixels.shape
    assert pixels[seen].mean() < 0.12
    assert np.quantile(pixels[~seen], 0.03) > 0.25
    shown = _draw(batch, "plate", {"run": (model, FeatureDecoder(features.shape[1]).eval())}, None, None)
    assert [title for title, _ in shown.panels][:3] == ["image", "ground truth", "its features"]
    assert len({picture.size for _, picture in shown.panels}) == 1


class Stopped(training.DecoderTraining):
    """Is killed in step 110."""

    def training_step(self, *args: Any) -> torch.Tensor:
        if self.global_step == 110:
            raise ConnectionError
        return super().training_step(*args)


class Counted(training.DecoderTraining):
    """Knows with which step it began."""

    seen: ClassVar[list[int]] = []

    def training_step(self, *args: Any) -> torch.Tensor:
        self.seen.append(self.global_step)
        return super().training_step(*args)


@pytest.mark.slow
def test_a_decoder_goes_on_and_is_not_replaced(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "decoder.pt"
    arguments = {"data": run.parents[2] / "data", "steps": 120, "output": file}
    training.train_decoder(run, **arguments)
    whole = torch.load(file, weights_only=True)["state_dict"]
    file.unlink()
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(training, "DecoderTraining", Stopped)
        training.train_decoder(run, **arguments)
    assert not file.exists()
    with monkeypatch.context() as patch:
        patch.setattr(training, "DecoderTraining", Counted)
        training.train_decoder(run, **arguments)
    assert Counted.seen == list(range(100, 120))
    model, resumed = UniAD.load_from_checkpoint(run / CHECKPOINT), []
    image = torch.from_numpy(np.asarray(Image.open(run.parents[2] / "data/plate/train/good/005.png").convert("RGB")))
    prepared, features = look(model.eval(), image.permute(2, 0, 1)[None] / 255)
    for state in (whole, torch.load(file, weights_only=True)["state_dict"]):
        decoder = FeatureDecoder(features.shape[1]).eval()
        decoder.load_state_dict(state)
        with torch.no_grad():
            drawn = decoder(model.model.denormalise(features))
        small = torch.nn.functional.interpolate(pixels_of(model, prepared), (48, 48), mode="area")
        resumed.append(float((drawn - small).abs().mean()))
    assert max(resumed) < 0.06, "both have learned"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(ExistingFileError, match=r"decoder\.pt is there: give another --output"):
        training.train_decoder(run, **arguments)


def test_attention_and_queries(run: Path, tmp_path: Path) -> None:
    model, decoder = decoder_of(run)
    features = torch.randn(1, sum(model.model.backbone.channels), 6, 6)
    found = attention_of(model, features)
    assert list(found) == ["encoder 1", "decoder 1, first attention", "decoder 1, second attention"]
    for weights in found.values():
        assert weights.shape == (8, 36, 36)
        assert (weights.sum(dim=2) - 1).abs().max() < 1e-5
        assert weights[:, 14, [7, 8, 9, 13, 14, 15, 19, 20, 21]].abs().max() == 0, "row 2, column 2, and around it"
    attention = model.model.transformer.encoder.layers[0].self_attention
    inside = torch.randn(1, 36, 64)
    values = attention._heads(inside, inside, torch.zeros(36, 64))
    by_hand = (attention.weights(inside, inside, torch.zeros(36, 64)) @ list(values)[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(inside, inside, torch.zeros(36, 64)), attention.out_proj(by_hand))
    panels = dict(draw_queries(model, decoder))
    assert list(panels) == ["random", "mean", "layer 1"]
    assert all(picture.size == (48, 48) for picture in panels.values())
    chosen = run.parents[2] / "data" / "plate" / "test" / "spot" / "000.png"
    files = show([run], tmp_path / "out", [chosen], point=[60, 50], queries=True, data=run.parents[2] / "data")
    assert [file.name for file in files] == [
        "spot_000.png.png",
        "spot_000.png-attention.png",
        "plate.png",
        "queries.png",
    ]
    with Image.open(files[1]) as picture:
        assert picture.width > 9 * 176
    with pytest.raises(
        InputError, match=r"point must be two numbers, pixels from the left and from the top, got \[1\]"
    ):
        show([run], tmp_path / "b", [chosen], point=[1], data=run.parents[2] / "data")
    with pytest.raises(InputError, match=r"The point \[60, 96\.5\] lies outside of what the model sees of .*000\.png"):
        show([run], tmp_path / "b", [chosen], point=[60, 96.5], data=run.parents[2] / "data")
    plain = UniAD(**{**ARGUMENTS, "reconstruction": "mlp"})
    with pytest.raises(InputError, match="A model with reconstruction=mlp has neither attention nor queries"):
        transformer_of(plain)
    without = UniAD(**{**ARGUMENTS, "decoder_query": "none"})
    with pytest.raises(InputError, match="A model with decoder_query=none has no queries"):
        draw_queries(without, decoder)


def test_mistakes(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"is not the folder of a run of UniAD: there is no weights"):
        checkpoint_of(tmp_path)
    with pytest.raises(MissingFileError, match=r"There is no checkpoint absent\.ckpt"):
        checkpoint_of(Path("absent.ckpt"))
    with pytest.raises(MissingFileError, match=r"model\.yaml does not say what the images of .* give them with --data"):
        show([run], tmp_path / "a")
    (tmp_path / "decoder.pt").write_text("x")
    model = UniAD.load_from_checkpoint(run / CHECKPOINT)
    with pytest.raises(InputError, match=r"decoder\.pt is not a decoder of `anomalib-uniad train-decoder`"):
        FeatureDecoder.load(tmp_path / "decoder.pt", model)
    with pytest.raises(MissingFileError, match=r"There is no decoder absent: make one with"):
        FeatureDecoder.load(Path("absent"), model)
    other = UniAD(**{**ARGUMENTS, "layers": (0, 1), "pre_trained": False})
    with pytest.raises(
        InputError, match=r"other features than the model's: layers \[0, 1, 2, 3\], not \[0, 1\]; weights"
    ):
        FeatureDecoder.load(run / "decoder.pt", other)

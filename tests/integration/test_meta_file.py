# SPDX-License-Identifier: Apache-2.0
"""Models on meta files: the same as on the folders that the files were made from."""

from pathlib import Path

import pandas as pd
import pytest
from anomalib.cli.cli import AnomalibCLI
from anomalib.models import Padim

from anomalib_uniad import MetaFile, MultiCategory, UniAD
from anomalib_uniad.data.make_meta import make_meta
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error:::anomalib_uniad")]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = make_mvtec_like(tmp_path_factory.mktemp("x") / "line_3", sizes={"bottle": (64, 64), "cable": (48, 80)})
    make_meta(root)
    return root


def make(cls, root: Path, **arguments):
    return cls(root=root, train_batch_size=4, eval_batch_size=5, num_workers=0, **arguments)


def train(folder: Path, datamodule, **arguments) -> tuple[UniAD, dict[str, float]]:
    model = UniAD(**{**SMALL, "seed": 7, "resume_interval": 0, **arguments})
    results = quiet_engine(folder, max_epochs=1).train(model=model, datamodule=datamodule)
    return model, results[0]


@pytest.fixture(scope="module")
def plain(root: Path, tmp_path_factory) -> tuple[Path, MetaFile, dict[str, float]]:
    folder, datamodule = tmp_path_factory.mktemp("plain"), make(MetaFile, root)
    return folder, datamodule, train(folder, datamodule)[1]


def test_uniad(root: Path, plain: tuple[Path, MetaFile, dict[str, float]], tmp_path: Path) -> None:
    folder, datamodule, results = plain
    _, expected = train(tmp_path, make(MultiCategory, root, val_split_mode="same_as_test"))
    assert results == expected
    assert {"image_AUROC", "image_AUROC/bottle", "pixel_AUROC/cable"} <= results.keys()
    run = folder / "UniAD" / "line_3" / "v0"
    assert list(pd.read_csv(run / "metrics.csv")["category"]) == ["bottle", "cable", "mean"]
    images = {path.relative_to(run / "images").as_posix() for path in (run / "images").rglob("*.png")}
    assert images == {Path(path).relative_to(root).as_posix() for path in datamodule.test_data.samples.image_path}


def test_feature_cache(root: Path, plain: tuple[Path, MetaFile, dict[str, float]], tmp_path: Path) -> None:
    expected = plain[2]
    for mode in ("memory", "disk"):
        cached = {"feature_cache": mode, "feature_cache_dir": tmp_path / "features"}
        _, results = train(tmp_path / mode, make(MetaFile, root), **cached)
        assert results == pytest.approx(expected, abs=1e-5)
    assert len(list((tmp_path / "features").glob("*/meta.json"))) == 4  # training and validation of two products


def test_feature_cache_keeps_united_and_missing_masks(root: Path, tmp_path: Path) -> None:
    """The image without a mask is defective all over, so thresholds learned with and without the cache agree."""
    lines = (root / "test.json").read_text().splitlines()
    first = "bottle/ground_truth/broken/000_mask.png"
    lines[0] = lines[0].replace(f'"{first}"', f'["{first}", "{first.replace("000", "001")}"]')
    lines[1] = lines[1].replace('"maskname"', '"ignored"')
    (tmp_path / "test.json").write_text("\n".join(lines))
    files = {"train_meta": root / "train.json", "test_meta": tmp_path / "test.json"}
    plain, _ = train(tmp_path / "off", make(MetaFile, root, **files))
    cached, _ = train(tmp_path / "memory", make(MetaFile, root, **files), feature_cache="memory")
    threshold = plain.post_processor._pixel_threshold
    assert cached.post_processor._pixel_threshold == pytest.approx(threshold.item(), rel=1e-4)


def test_other_models_report_per_category(root: Path, tmp_path: Path) -> None:
    small = {"backbone": "resnet18", "pre_trained": False, "layers": ["layer1"], "n_features": 8}
    model = Padim(**small, pre_processor=Padim.configure_pre_processor(image_size=(32, 32)))
    engine = quiet_engine(tmp_path, max_epochs=1)
    engine.fit(model=model, datamodule=make(MetaFile, root, val_split_mode="from_test", seed=1))
    results = engine.test(model=model, datamodule=engine.trainer.datamodule)[0]
    assert results["image_AUROC"] == pytest.approx(
        (results["image_AUROC/bottle"] + results["image_AUROC/cable"]) / 2, abs=1e-6
    )


def test_without_masks_there_are_no_pixel_metrics(root: Path, tmp_path: Path) -> None:
    text = (root / "test.json").read_text()
    (tmp_path / "test.json").write_text(text.replace('"maskname"', '"ignored"'))
    files = {"train_meta": root / "train.json", "test_meta": tmp_path / "test.json"}
    _, results = train(tmp_path, make(MetaFile, root, val_split_mode="none", **files))
    assert "image_AUROC/bottle" in results
    assert not any("pixel" in name for name in results)


def test_command_line(root: Path) -> None:
    command_line = AnomalibCLI.__new__(AnomalibCLI)
    command_line.parser = command_line.init_parser()
    command_line.subcommand_parsers = {}
    command_line.subcommand_method_arguments = {}
    command_line.add_subcommands()
    data = ["--data", "MetaFile", "--data.root", str(root), "--data.train_meta", str(root / "train.json")]
    options = ["--data.test_meta", str(root / "test.json"), "--data.val_split_mode", "from_test"]
    model = ["--model", "UniAD", "--model.backbone", "resnet18", "--model.pre_trained", "false"]
    parsed = command_line.parser.parse_args(["train", *model, *data, *options])
    made = command_line.subcommand_parsers["train"].instantiate_classes(parsed.train).data
    assert type(made) is MetaFile
    assert made.categories == ["bottle", "cable"]
    assert made.val_split_mode == "from_test"
    parsed = command_line.parser.parse_args(["train", *model, *data[:3], "nothing"])
    made = command_line.subcommand_parsers["train"].instantiate_classes(parsed.train).data
    with pytest.raises(FileNotFoundError, match=r"The root .*nothing is not there"):  # not one of the parser
        made.prepare_data()


def test_mistakes_in_the_text_leave_no_results(root: Path, tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text((root / "test.json").read_text().replace('"label": 1', '"label": 2', 1))
    datamodule = make(MetaFile, root, train_meta=root / "train.json", test_meta=tmp_path / "test.json")
    with pytest.raises(ValueError, match=r"^1 problem in .*\n.*test\.json, line \d+: label is 2"):
        train(tmp_path / "results", datamodule)
    assert not (tmp_path / "results").exists()

# SPDX-License-Identifier: Apache-2.0
"""Files as this version of the package writes them, kept for tests that later versions read them.

    python tools/version_files.py tests/versions/0.2.0

A tiny model of two generated products is trained, tested, exported and used for a prediction. Only arguments that all
versions have are given, and those that switch on what a version has added. The files of 0.1.0 were made with its
source before that of the present one: ``PYTHONPATH=../release-0.1.0/src``, of commit bb10ccd.
"""

import argparse
import importlib.metadata
import inspect
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.engine import Engine
from PIL import Image

from anomalib_uniad import MultiCategory, UniAD

PRODUCTS = ("bolt", "washer")
SIZE = 48
MODEL: dict[str, Any] = {
    "backbone": "test_byobnet",
    "layers": (0, 1),
    "pre_trained": False,
    "image_size": SIZE,
    "feature_stride": 8,
    "hidden_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "feedforward_dim": 16,
    "neighbor_size": 3,
    "seed": 5,
}
# What came after 0.1.0 and is in files.
ADDED: dict[str, Any] = {
    "product_calibration": True,
    "feature_norm": "standard",
    "feature_resize": "area",
    "image_score": "top",
    "optimizer": "muon",
}
THRESHOLDS = "products:\n  bolt:\n    image: 1.25\n    pixel: 2.5\n"
PACKAGES = ("anomalib", "torch", "lightning", "timm", "onnx", "openvino")


def main(folder: Path) -> None:
    """Train, test, export and predict, and copy the files.

    Args:
        folder: Where they go; it must not be there yet.
    """
    if folder.exists():
        sys.exit(f"{folder} is there already: files of a version are written once.")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)  # whose name is taken out of the files
        make_images(work / "Products")
        make_files(work, folder)
    print("\n".join(f"{path.stat().st_size:8} {path}" for path in sorted(folder.rglob("*")) if path.is_file()))


def make_images(root: Path) -> None:
    """Write two products in the layout of MVTec AD: grey gradients with some noise, and bright squares in them."""
    random = np.random.default_rng(0)
    for number, product in enumerate(PRODUCTS):
        for folder, count in (("train/good", 4), ("test/good", 12), ("test/broken", 3)):
            for index in range(count):
                pixels = np.linspace(40 + 60 * number, 140, SIZE)[:, None] + 4 * random.standard_normal((SIZE, SIZE))
                if folder == "test/broken":
                    pixels[16 : 26 + 2 * index, 16:30] = 250
                file = root / product / folder / f"{index:03}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB").save(file)
                if folder == "test/broken":
                    mask = np.zeros((SIZE, SIZE), np.uint8)
                    mask[16 : 26 + 2 * index, 16:30] = 255
                    path = root / product / "ground_truth" / "broken" / f"{index:03}_mask.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(path)


def make_files(work: Path, folder: Path) -> None:
    """Make all files of a version from images in ``work``."""
    from anomalib_uniad.inference import predict

    known = inspect.signature(UniAD).parameters
    added = ADDED if ADDED.keys() <= known.keys() else {}
    model = UniAD(**MODEL, **added, feature_cache="disk", feature_cache_dir=work / "features")
    data = MultiCategory(
        "MVTecAD",
        work / "Products",
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
        val_split_mode="same_as_test",
    )
    engine = Engine(
        default_root_dir=work / "run",
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
    )
    engine.fit(model=model, datamodule=data)
    engine.test(model=model, datamodule=data)
    exported = engine.export(model=model, export_type="openvino", export_root=work)
    products = folder.parent / "Products"  # the same for all versions
    if not products.exists():
        shutil.copytree(work / "Products", products)
    for cache in (work / "features").glob("[!.]*"):
        if not (cache / "masks.npy").exists():  # those of the validation are larger
            shutil.copytree(cache, folder / "features" / cache.name)
    checkpoint = torch.load(engine.best_model_path, weights_only=True)
    torch.save(_renamed(checkpoint, str(work)), folder / "model.ckpt")
    for suffix in (".xml", ".bin"):
        shutil.copy(exported.with_suffix(suffix), folder / f"model{suffix}")
    images = sorted(products.glob("*/test/*/000.png"))
    predict(folder / "model.xml", images, output=work / "predictions", heatmaps=False)
    run = Path(engine.trainer.default_root_dir)
    copied = {name: run / name for name in ("metrics.csv", "metrics.json", "predictions.csv")}
    copied["predicted.csv"] = work / "predictions" / "predictions.csv"
    for name, file in copied.items():
        text = _renamed(file.read_text(encoding="utf-8"), str(work))
        (folder / name).write_text(text, encoding="utf-8")
    if "thresholds_file" in known:
        (folder / "thresholds.yaml").write_text(THRESHOLDS, encoding="utf-8")

    batch = np.stack([np.asarray(Image.open(path)) for path in images])
    with torch.no_grad():
        found = model.eval()(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)
    expected = {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "arguments": added,
        "images": [path.relative_to(folder.parent).as_posix() for path in images],
        "scores": found.pred_score.tolist(),
        "labels": found.pred_label.tolist(),
        "map_means": found.anomaly_map.mean(dim=(1, 2, 3)).tolist(),
        "map_maxima": found.anomaly_map.amax(dim=(1, 2, 3)).tolist(),
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


def _renamed(value: Any, work: str) -> Any:
    """A value without the name of the temporary folder in any text of it."""
    if isinstance(value, str):
        return value.replace(work, "work")
    if isinstance(value, dict):
        return {_renamed(key, work): _renamed(item, work) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_renamed(item, work) for item in value)
    return value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the files, such as tests/versions/0.2.0")
    warnings.simplefilter("ignore")
    main(parser.parse_args().folder)

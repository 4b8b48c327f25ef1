# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomalib_uniad.errors import InputError
from anomalib_uniad.image_files import Seen, check_samples, listed, look, look_at, read_mask

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    made = {
        "rgb.png": Image.fromarray(NOISE),
        "photo.jpg": Image.fromarray(NOISE),
        "grey.bmp": Image.fromarray(NOISE[..., 0]),
        "alpha.png": Image.fromarray(np.dstack([NOISE, NOISE[..., :1]])),
        "deep.png": Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257),
        "scan.tif": Image.fromarray(NOISE),
    }
    for name, image in made.items():
        image.save(tmp_path / name)
    return [tmp_path / name for name in made]


def reasons(paths: Sequence[Path]) -> dict[str, str]:
    return {path: seen.reason for path, seen in look_at(paths).items() if seen.reason}


def test_masks(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[10:31, 20:45] = 255
    for suffix in (".png", ".jpg", ".bmp"):
        Image.fromarray(pixels).save(tmp_path / f"mask{suffix}", quality=60)
        np.testing.assert_array_equal(read_mask(tmp_path / f"mask{suffix}"), pixels > 0)
    assert np.count_nonzero(np.asarray(Image.open(tmp_path / "mask.jpg"))) > (pixels > 0).sum()
    grey = Image.fromarray(pixels // 255 * 7)
    red = Image.fromarray(pixels[..., None] * np.array([1, 0, 0], np.uint8))
    others = {"ones": Image.fromarray(pixels // 255), "grey": grey, "red": red, "palette": red.convert("P")}
    for name, mask in others.items():
        mask.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png"), pixels > 0)


def test_whole_files(images: list[Path], tmp_path: Path) -> None:
    seen = look_at(images)
    assert list(seen) == [str(path) for path in images]
    assert not reasons(images)
    assert {Path(path).name for path, found in seen.items() if found.depth} == {"deep.png"}
    assert [found.type for found in seen.values()] == ["PNG", "JPEG", "BMP", "PNG", "PNG", "TIFF"]
    assert look_at([]) == {}
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(NOISE[:32]).save(tmp_path / "turned.jpg", exif=exif)
    assert look(tmp_path / "turned.jpg") == Seen("", "JPEG", "RGB", (64, 32), turned=True)
    assert not any(found.turned for found in seen.values())


def test_damaged_files(images: list[Path], tmp_path: Path) -> None:
    for path in images:
        content = path.read_bytes()
        cut = tmp_path / f"cut_{path.name}"
        cut.write_bytes(content[: len(content) // 2])
        found = reasons([*images, cut])
        assert list(found) == [str(cut)]
        assert str(tmp_path) not in found[str(cut)]
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    several = [tmp_path / f"cut_{path.name}" for path in images]
    several += [tmp_path / name for name in ("text.png", "empty.jpg", "gone.png")]
    found = reasons(several)
    assert list(found) == [str(path) for path in several]
    assert [found[str(path)] for path in several[-3:]] == [
        "it is no image that Pillow knows",
        "it is empty",
        "no such file or directory",
    ]
    assert listed(found).startswith(f"{several[0]}")
    assert listed(found).endswith("; and 4 more")


def datamodule(images: Sequence[Path], masks: Sequence[Any] = (), **attributes: Any) -> SimpleNamespace:
    """What a datamodule with these files shows of itself."""
    table = pd.DataFrame({"image_path": list(map(str, images))})
    tested = pd.DataFrame({"image_path": [str(images[0])] * len(masks), "mask_path": list(masks), "label_index": 1})
    good = pd.DataFrame({"image_path": [str(images[0])], "mask_path": ["not_there.png"], "label_index": 0})
    tested = pd.concat([tested, good], ignore_index=True)
    train, test = SimpleNamespace(samples=table), SimpleNamespace(samples=tested)
    return SimpleNamespace(train_data=train, test_data=test, **attributes)


def test_files_of_a_datamodule(images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "movie.avi").touch()
    good = [path for path in images if path.name != "deep.png"]
    masks = [None, float("nan"), str(good[0]), list(map(str, good[:2]))]  # as in tables of anomalib
    fine = datamodule([*good, tmp_path / "movie.avi"], masks)
    check_samples(fine)
    assert fine.images_checked
    with pytest.raises(
        InputError, match=r"^2 of 7 files cannot be used: .*deep\.png \(.*; .*empty\.jpg \(it is empty\)"
    ):
        check_samples(datamodule(images, [str(tmp_path / "empty.jpg")]))
    check_samples(datamodule(images, value_range=(0, 4095)))
    check_samples(datamodule(images, images_checked=True))
    check_samples(datamodule(images, trainer=SimpleNamespace(is_global_zero=False)))  # another process looks

# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_uniad.data.readable import check_readable

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


def test_whole_files(images: list[Path]) -> None:
    check_readable(images, "Do something.")
    check_readable([], "Do something.")


def test_damaged_files(images: list[Path], tmp_path: Path) -> None:
    for path in images:
        content = path.read_bytes()
        cut = tmp_path / f"cut_{path.name}"
        cut.write_bytes(content[: len(content) // 2])
        message = rf"1 of {len(images) + 1} images cannot be read: .*cut_{path.stem}\.\w+ \(.+\)\. Do something\.$"
        with pytest.raises(ValueError, match=message):
            check_readable([*images, cut], "Do something.")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    several = [tmp_path / f"cut_{path.name}" for path in images]
    several += [tmp_path / name for name in ("text.png", "empty.jpg", "gone.png")]
    with pytest.raises(ValueError, match=r"9 of 9 images cannot be read: .*cut_rgb.*; and 4 more\. Do something\."):
        check_readable(several, "Do something.")

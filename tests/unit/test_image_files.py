# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_uniad.image_files import listed, look_at

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
    assert look_at(images) == ({}, [str(path) for path in images if path.name == "deep.png"])
    assert look_at([]) == ({}, [])


def test_damaged_files(images: list[Path], tmp_path: Path) -> None:
    for path in images:
        content = path.read_bytes()
        cut = tmp_path / f"cut_{path.name}"
        cut.write_bytes(content[: len(content) // 2])
        found, _ = look_at([*images, cut])
        assert list(found) == [str(cut)]
        assert found[str(cut)]
        assert str(tmp_path) not in found[str(cut)]
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    several = [tmp_path / f"cut_{path.name}" for path in images]
    several += [tmp_path / name for name in ("text.png", "empty.jpg", "gone.png")]
    found, _ = look_at(several)
    assert list(found) == [str(path) for path in several]
    assert listed(found).startswith(f"{several[0]} (")
    assert listed(found).endswith("; and 4 more")

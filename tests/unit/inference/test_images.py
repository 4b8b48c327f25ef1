# SPDX-License-Identifier: Apache-2.0
import os
import re
import shutil
import struct
import zlib
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from anomalib.data.utils import read_image as anomalib_read_image
from PIL import Image
from torch.nn import functional as F
from torchvision.datasets.folder import IMG_EXTENSIONS

from anomalib_uniad.image_files import EXTENSIONS, look, read_image
from anomalib_uniad.inference.images import find_images, resize_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 4), dtype=np.uint8)


def test_extensions_are_those_of_anomalib() -> None:
    assert set(EXTENSIONS) == set(IMG_EXTENSIONS)


def image_of(mode: str) -> Image.Image:
    image = Image.fromarray(PIXELS[..., :3] if mode != "RGBA" else PIXELS)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, ".png") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        *((mode, ".jpg") for mode in ("RGB", "L", "CMYK")),
        *((mode, ".tif") for mode in ("RGB", "L", "CMYK", "LAB")),
        ("RGB", ".bmp"),
        ("RGB", ".ppm"),
        ("L", ".pgm"),
        ("RGBA", ".webp"),
    ],
)
def test_equal_to_anomalib(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    image_of(mode).save(path)
    actual = read_image(path)
    assert actual.dtype == np.uint8
    assert actual.shape == (12, 17, 3)
    np.testing.assert_array_equal(actual / 255.0, anomalib_read_image(path))


def test_palette_with_transparency(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    image_of("P").save(path, transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(path), np.asarray(image_of("P").convert("RGB")))


def test_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image_of("RGB").save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg").shape == (12, 17, 3)
    np.testing.assert_array_equal(
        read_image(tmp_path / "image.jpg") / 255.0, anomalib_read_image(tmp_path / "image.jpg")
    )


def test_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "image.webp"
    first, second = image_of("RGB"), Image.new("RGB", (17, 12), "red")
    first.save(path, save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(read_image(path), np.asarray(first))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_more_than_eight_bits(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    pixels = np.array([[0, 100, 1100], [2100, 4100, 65535]], dtype=np.uint16)
    if suffix == ".pgm":  # which Pillow 10 reads, but does not write
        path.write_bytes(b"P5 3 2 65535\n" + pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(pixels).save(path)
    image = read_image(path, (100, 4100))
    expected = np.array([[0, 0, 63.75], [127.5, 255, 255]], dtype=np.float32)
    np.testing.assert_allclose(image, np.repeat(expected[..., None], 3, axis=2), rtol=1e-6)
    with pytest.raises(ValueError, match=r"cannot be read: it has more than 8 bits .*: train with value_range"):
        read_image(path)


def test_floating_point(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1, 0, 0.5, 2]], dtype=np.float32)).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "float.tif", (0, 1))[0, :, 0], [0, 0, 127.5, 255])
    with pytest.raises(ValueError, match="more than 8 bits"):
        read_image(tmp_path / "float.tif")


def test_values_as_they_are_in_the_file(tmp_path: Path) -> None:
    """Pillow wraps integers without sign, and stretches PGM files."""
    tifffile.imwrite(tmp_path / "large.tif", np.array([[0, 2**31, 2**32 - 1]], dtype=np.uint32))
    np.testing.assert_allclose(read_image(tmp_path / "large.tif", (0, 2**32 - 1))[0, :, 0], [0, 127.5, 255])
    (tmp_path / "twelve.pgm").write_bytes(b"P5 3 1 4095\n" + np.array([0, 1000, 4095], ">u2").tobytes())
    np.testing.assert_allclose(read_image(tmp_path / "twelve.pgm", (0, 2000))[0, :, 0], [0, 127.5, 255], atol=0.01)


def test_no_number(tmp_path: Path) -> None:
    values = np.array([[0, np.inf, -np.inf, 3e38, np.nan]], dtype=np.float32)
    tifffile.imwrite(tmp_path / "finite.tif", values[:, :-1])
    np.testing.assert_array_equal(read_image(tmp_path / "finite.tif", (0, 1))[0, :, 0], [0, 255, 0, 255])
    tifffile.imwrite(tmp_path / "hole.tif", values)
    with pytest.raises(ValueError, match=r"hole\.tif cannot be read: it has pixels that are not a number\."):
        read_image(tmp_path / "hole.tif", (0, 1))
    assert look(tmp_path / "hole.tif", (0, 1)).problem == "it has pixels that are not a number"


def bomb(width: int, height: int) -> bytes:
    """Head of a PNG file that says that it has so many grey pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


UNREADABLE = {
    "text": "it is no image that Pillow knows",
    "eps": "it is no image that Pillow knows",  # which would start a program
    "empty": "it is empty",
    "cut": r"it is cut off \(truncated\)",
    "webp": "it is damaged or cut off",
    "bomb": "it has more than the 178,956,970 pixels that are opened at most",
    "gone": "no such file or directory",
    "link": "it is a link to something that is not there",
    "circle": "it is a link in a circle",
    "folder": "it is a folder",
    "pipe": "it is a pipe, socket or device, not a file",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.png"
    data = BytesIO()
    image_of("RGB").save(data, "WEBP" if kind == "webp" else "PNG")
    made = {"text": b"hello", "empty": b"", "cut": data.getvalue()[:300], "webp": data.getvalue()[:-9]}
    made |= {"bomb": bomb(30000, 30000), "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"}
    if kind in made:
        path.write_bytes(made[kind])
    elif kind in {"link", "circle"}:
        path.symlink_to(path if kind == "circle" else tmp_path / "gone.png")
    elif kind != "gone":
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    assert re.fullmatch(UNREADABLE[kind], look(path).reason)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} cannot be read: .*({UNREADABLE[kind]}).*\.$"):
        read_image(path)


def make_folder(root: Path) -> Path:
    for name in ("b/2.PNG", "b/10.png", "a.jpeg", "b/c/1.tif", "notes.txt", "b.png/inside.bmp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_find(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    found = find_images([root])
    names = ["a.jpeg", "b/10.png", "b/2.PNG", "b/c/1.tif", "b.png/inside.bmp"]
    assert [image.name.as_posix() for image in found] == names
    assert all(image.path == root / image.name for image in found)
    left = find_images([root], leave_out=[root / "b"])
    assert [image.name.as_posix() for image in left] == ["a.jpeg", "b.png/inside.bmp"]


def test_find_in_several_places(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    shutil.copytree(root / "b" / "c", tmp_path / "more")
    found = find_images([root / "a.jpeg", tmp_path / "more", root])
    assert [image.name for image in found][:3] == [
        PurePath("a.jpeg"),
        PurePath("more/1.tif"),
        PurePath("images/b/10.png"),
    ]
    assert len(found) == 6  # a.jpeg once


def test_folders_of_the_same_name(tmp_path: Path) -> None:
    """Their names tell which image is from which."""
    for name in ("bottle/good", "cable/good", "cable/bad"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").touch()
    sources = [tmp_path / name for name in ("bottle/good", "cable/good", "cable/bad")]
    names = [image.name.as_posix() for image in find_images([*sources, sources[0]])]
    assert names == ["bottle/good/0.png", "cable/good/0.png", "cable/bad/0.png"]
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "0.png").touch()
    here = tmp_path.name
    assert [image.name.as_posix() for image in find_images([tmp_path / "good", sources[0]])] == [
        f"{here}/good/0.png",
        "bottle/good/0.png",
    ]


def test_links(tmp_path: Path) -> None:
    """Each name is an image of its own, links to folders are searched, and circles end."""
    root = make_folder(tmp_path / "images")
    shutil.copytree(root / "b", tmp_path / "elsewhere")
    (root / "b" / "link.png").symlink_to(root / "b" / "10.png")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    (root / "b" / "circle").symlink_to(tmp_path)
    names = {image.name.as_posix() for image in find_images([root])}
    assert {"b/10.png", "b/link.png", "folder/10.png", "folder/c/1.tif"} <= names
    assert not [name for name in names if "circle" in name]


def test_heatmaps_are_no_images(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    for name in ("results/heatmaps/a.png", "own/heatmaps/a.png"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    (root / "results" / "predictions.csv").touch()
    names = {image.name.as_posix() for image in find_images([root])}
    assert "own/heatmaps/a.png" in names
    assert "results/heatmaps/a.png" not in names


def test_what_cannot_be_read_is_not_missed(tmp_path: Path, monkeypatch) -> None:
    """It is found, so that reading it tells of it; hidden files are left out."""
    root = make_folder(tmp_path / "images")
    for name in ("._a.png", ".cache/b.png", "locked/c.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    os.mkfifo(root / "pipe.png")
    for name, target in (
        ("gone.png", "x.png"),
        ("loop.png", "loop.png"),
        ("other", "/mnt/not there"),
        ("loop", "loop"),
    ):
        (root / name).symlink_to(target)
    scandir = os.scandir

    def refuse(path: Path | str) -> Any:
        if Path(path) == root / "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {image.name.as_posix(): image.path for image in find_images([root])}
    new = {"pipe.png", "gone.png", "loop.png", "other", "loop", "locked"}
    assert set(found) - new == {"a.jpeg", "b/10.png", "b/2.PNG", "b/c/1.tif", "b.png/inside.bmp"}
    assert set(found) >= new
    with pytest.raises(ValueError, match=r"locked cannot be read: permission denied\.$"):
        read_image(found["locked"])
    with pytest.raises(
        OSError, match=r"^The folder .*locked cannot be read: Permission denied; change its permissions"
    ):
        find_images([root / "b", root / "locked"])


@pytest.mark.parametrize("size", [(20, 30), (90, 40), (61, 47)])
def test_resize(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    resized = resize_image(image, size)
    assert resized.dtype == np.float32
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = F.interpolate(tensor, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    np.testing.assert_allclose(resized, expected.numpy(), atol=0.01)


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file or folder .*gone"):
        find_images([tmp_path / "gone"])
    with pytest.raises(ValueError, match=r"has no images: their names end in .jpg"):
        find_images([tmp_path])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes.txt is not an image"):
        find_images([tmp_path / "notes.txt"])

# SPDX-License-Identifier: Apache-2.0
"""Heatmaps over images."""

import unicodedata
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomalib_uniad.geometry import Geometry

from .inspection import Inspection

# ColorBrewer's scale from blue over pale yellow to red, which colour-blind people can read as well
# (https://colorbrewer2.org/#type=diverging&scheme=RdYlBu&n=11).
_ENDS = "313695 4575b4 74add1 abd9e9 e0f3f8 ffffbf fee090 fdae61 f46d43 d73027 a50026"
_STOPS = np.array([list(bytes.fromhex(colour)) for colour in _ENDS.split()])  # (11, 3)
_PLACES = np.linspace(0, 1, 256)
_COLOURS_OF = np.stack([np.interp(_PLACES, np.linspace(0, 1, 11), stops) for stops in _STOPS.T], axis=1)
_SCALE = _COLOURS_OF.round().astype(np.uint8)  # (256, 3)
_COLOURS = {"normal": "#2e7d32", "anomalous": "#b71c1c", "unknown": "#6a1b9a", "undecided": "#616161"}


def map_to_image(anomaly_map: np.ndarray, size: tuple[int, int], geometry: Geometry | None = None) -> np.ndarray:
    """Put the map of a model to where it belongs in the image.

    Args:
        anomaly_map (np.ndarray): ``(h, w)``, as the model puts it out.
        size (tuple[int, int]): Height ``H`` and width ``W`` of the image file.
        geometry (Geometry | None): How images became the model's input: the attribute ``geometry`` of the metadata of
            an exported file. Defaults to ``None``, stretched.

    Returns:
        np.ndarray: ``(H, W)``, float32; NaN where the model does not look, outside of its crop.

    Raises:
        ValueError: If the crop does not lie in the image.

    Examples:
        >>> pad = Geometry((4, 4), "pad")
        >>> map_to_image(np.array([[9, 9, 9, 9], [0, 0, 1, 1], [0, 0, 1, 1], [9, 9, 9, 9]]), (2, 4), pad)
        array([[0., 0., 1., 1.],
               [0., 0., 1., 1.]], dtype=float32)
    """
    geometry = geometry or Geometry((anomaly_map.shape[0], anomaly_map.shape[1]))
    seen, covered = geometry.seen(size), geometry.covered(size)
    cut = np.ascontiguousarray(anomaly_map[covered.rows, covered.columns], np.float32)
    resized = Image.fromarray(cut).resize((seen.width, seen.height), Image.Resampling.BILINEAR)
    result = np.full(size, np.nan, np.float32)
    result[seen.rows, seen.columns] = np.asarray(resized)
    return result


def draw_heatmap(image: np.ndarray, values: np.ndarray) -> Image.Image:
    """Lay a map over an image, half and half; what the model does not look at stays as it is.

    Args:
        image (np.ndarray): ``(H, W, 3)``, from 0 to 255.
        values (np.ndarray): ``(H, W)``, from 0 (blue) over 0.5 (pale yellow) to 1 (red); NaN where there is none.

    Returns:
        Image.Image: Of the image's size.
    """
    outside = np.isnan(values)
    levels = (np.where(outside, 0, values) * 255).round().clip(0, 255).astype(np.uint8)
    pixels = image if image.dtype == np.uint8 else image.round().astype(np.uint8)
    colours = np.take(_SCALE, levels, axis=0)  # three times as fast as an index
    colours[outside] = pixels[outside]
    return Image.blend(Image.fromarray(pixels), Image.fromarray(colours), 0.5)


def draw_inspection(image: np.ndarray, inspection: Inspection) -> Image.Image:
    """Draw what a model says: the heatmap with the outline of the mask, and below it scale, decision, score, product.

    The mark on the scale is the threshold, if there is one. A black line is around the region of interest.

    Args:
        image (np.ndarray): ``(H, W, 3)``, from 0 to 255.
        inspection (Inspection): With its map.

    Returns:
        Image.Image: As wide as the image, and higher by the scale and a line of text.
    """
    values = inspection.anomaly_map
    drawn = draw_heatmap(image, np.full(image.shape[:2], np.nan) if values is None else values)
    for part, colour in ((inspection.region_of_interest, (0, 0, 0)), (inspection.mask, (255, 255, 255))):
        if part is not None and part.any():
            width = max(1, round(min(image.shape[:2]) / 200))
            drawn = Image.fromarray(outlined(np.array(drawn), part, colour, width))
    score = inspection.raw_score if inspection.score is None else inspection.score
    words = (inspection.decision, "" if score is None else f"{score:.3g}", inspection.product)
    text = drawable("  ".join(filter(None, words)))
    line = _line(drawn.width)
    font = _font(line * 0.7)
    if (length := font.getlength(text)) > drawn.width:
        font = _font(max(1.0, line * 0.7 * drawn.width / length))
    below = drawn.height + caption_height(drawn.width) - line
    strip = _strip(drawn.width, below - drawn.height, inspection.map_threshold)
    picture = Image.new("RGB", (drawn.width, below + line), _COLOURS[inspection.decision])
    picture.paste(drawn)
    picture.paste(strip, (0, drawn.height))
    ImageDraw.Draw(picture).text((drawn.width / 2, below + line / 2), text, "white", font, "mm")
    return picture


def outlined(pixels: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], width: int = 1) -> np.ndarray:
    """Draw the outline of a mask into an image.

    Args:
        pixels (np.ndarray): ``(H, W, 3)``, uint8; stays as it is.
        mask (np.ndarray): ``(H, W)``, not 0 inside.
        colour (tuple[int, int, int]): Red, green and blue.
        width (int): Of the line, in pixels. Defaults to ``1``.

    Returns:
        np.ndarray: ``(H, W, 3)``.
    """
    import cv2  # see regions

    outlines, _ = cv2.findContours((mask > 0).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(pixels.copy(), outlines, -1, colour, width)


def _strip(width: int, height: int, mark: float | None) -> Image.Image:
    """The colours from 0 to 1, with a mark."""
    levels = np.linspace(0, 255, width).round().astype(np.uint8)
    strip = np.repeat(_SCALE[levels][None], height, axis=0)
    if mark is not None:
        half, place = max(1, width // 150), round(mark * width)
        strip[:, max(0, place - half) : place + half] = 0
    return Image.fromarray(strip)


def drawable(text: str) -> str:
    """Text in the letters that Pillow's own font has, with a question mark for others.

    Examples:
        >>> drawable("Zahnbürste 歯")
        'Zahnburste ?'
    """
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letter if letter.isprintable() else "?" for letter in letters).encode("ascii", "replace").decode()


def caption_height(width: int) -> int:
    """Height of the scale and the line of text below a picture of a width, both in pixels."""
    return _line(width) + max(3, _line(width) // 3)


@lru_cache(maxsize=32)  # it is decoded and read at each call
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _line(width: int) -> int:
    return max(10, width // 16)

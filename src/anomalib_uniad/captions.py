# SPDX-License-Identifier: Apache-2.0
"""Text in pictures, in letters of all languages; for all rooms, no torch."""

from pathlib import Path

import matplotlib as mpl
from PIL import ImageFont

_FONT = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib.

    Args:
        size (int): Its size in pixels.
    """
    return ImageFont.truetype(_FONT, size)


def fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a text to a width.

    Args:
        text (str): The text.
        font (ImageFont.FreeTypeFont): In which it is written.
        width (float): In pixels.

    Returns:
        str: The text, or its beginning and an ellipsis.

    Examples:
        >>> fit("a very long name of a file", font_of(10), 60)
        'a very lon…'
    """
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"

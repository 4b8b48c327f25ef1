# SPDX-License-Identifier: Apache-2.0
"""Text in pictures, in the letters of matplotlib's font; for all rooms, no torch."""

from bisect import bisect_right

from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import ImageFont

_FONT = findfont(FontProperties(["DejaVu Sans"]))


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more, no Chinese or Japanese.

    Args:
        size (int): Its size in pixels.
    """
    return ImageFont.truetype(_FONT, size)


def printable(text: str) -> str:
    r"""Escape what the font lacks, such as Chinese letters, and what is no letter, such as line breaks.

    Examples:
        >>> printable("Zahnbürste 歯")
        'Zahnbürste \\u6b6f'
    """
    font = get_font(_FONT)
    return "".join(
        letter
        if letter.isprintable() and font.get_char_index(ord(letter))
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a text, as it is :func:`printable`, to a width.

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
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    fitting = bisect_right(range(1, len(text) + 1), width, key=lambda count: font.getlength(f"{text[:count]}…"))
    return f"{text[:fitting]}…"

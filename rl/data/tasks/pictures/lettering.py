"""Fonts and text: only those that matplotlib ships, drawn the same whatever is installed beside."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

FAMILIES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")


def font_file(family: str, is_bold: bool = False) -> Path:
    """The file of one of FAMILIES; a font of the same name on the machine is never taken."""
    name = f"{family}-Bold.ttf" if is_bold else f"{family}.ttf"
    return Path(matplotlib.get_data_path(), "fonts", "ttf", name)


@cache
def font(family: str, size: int, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels, laid out by Pillow itself: other engines differ by machine."""
    path = font_file(family, is_bold)
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)

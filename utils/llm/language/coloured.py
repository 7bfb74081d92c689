"""Tokens made visible: their text with its spaces, coloured by how likely the model found it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from utils.llm.tokens import Tokens

SHADES = {0.5: "#CFE8F5", 0.1: "#FFF3C4", 0.01: "#F8CF8D", 0.0: "#EE9A76"}  # from so likely on
FONT = "DejaVu Sans Mono"  # comes with matplotlib; every letter has the same width
_INCHES = 6.9 / 72  # width of a letter of 11 points
_GAP = 0.3  # letters between two boxes
_SIGNS = {" ": "␣", "\n": "↵", "\t": "→"}


def visible(piece: bytes) -> str:
    """The text of a token as it can be drawn; bytes that cannot be are shown as numbers."""
    try:
        text = "".join(_SIGNS.get(letter, letter) for letter in piece.decode())
    except UnicodeDecodeError:  # part of a letter
        text = ""
    if text and all(ord(letter) in _drawn() and letter.isprintable() for letter in text):
        return text
    return f"⟨{piece.hex(' ')}⟩"


@cache
def _drawn() -> frozenset[int]:
    font = font_manager.get_font(font_manager.findfont(FONT))
    return frozenset(font.get_charmap())


def words(vocabulary: Tokens, tokens: Sequence[int]) -> list[str]:
    return [visible(vocabulary.spell(token)) for token in tokens]


def lines(shown: Sequence[str], width: float) -> list[tuple[int, float]]:
    """Line and column of each text, on lines of `width` inches."""
    places, line, column = [], 0, 0.0
    for text in shown:
        if column and (column + len(text)) * _INCHES > width:
            line, column = line + 1, 0
        places.append((line, column))
        column += len(text) + _GAP
    return places


def draw(ax: Axes, shown: Sequence[str], chances: Sequence[float], width: float) -> None:
    """Write texts on `ax`, `width` inches wide, each in the shade of its probability."""
    places = lines(shown, width)
    for text, chance, (line, column) in zip(shown, chances, places, strict=True):
        shade = next(color for least, color in SHADES.items() if chance >= least)
        box = {"facecolor": shade, "edgecolor": "white", "pad": 1.5, "linewidth": 0.8}
        x = column * _INCHES
        ax.text(x, line, text, family=FONT, fontsize=11, bbox=box, va="center", parse_math=False)
    ax.set(xlim=(0, width), ylim=(places[-1][0] + 0.7, -0.7))
    ax.set_axis_off()


def legend(ax: Axes) -> None:
    """What the shades mean, below `ax`."""
    names = ("at least 50 %", "10 to 50 %", "1 to 10 %", "less than 1 %")
    handles = [
        Patch(color=color, label=name) for color, name in zip(SHADES.values(), names, strict=True)
    ]
    ax.legend(
        handles=handles, title="probability that the model gave it", title_fontsize=9,
        alignment="left", loc="upper left", bbox_to_anchor=(0, 0), ncols=4, frameon=False,
        fontsize=9,
    )  # fmt: skip

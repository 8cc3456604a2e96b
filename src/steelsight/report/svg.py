"""The few elements that charts are drawn of, as SVG text; and text that is safe to show.

x is in per cent and y in px, so that a chart takes any width while its text keeps its size.
``name`` is a class of the style sheet, which gives colour and stroke.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from html import escape


def chart(height: int, label: str, parts: Sequence[str]) -> str:
    """The picture around its parts; ``label`` says what it shows to those who do not see it."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" width="100%" height="{height}" '
        f'role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def text(x: str, y: int, said: str, name: str, anchor: str = "start", shift: int = 0) -> str:
    """A line of text, escaped; ``shift`` moves it sideways in px."""
    offset = f' dx="{shift}"' if shift else ""
    return (
        f'<text class="{name}" x="{x}" y="{y}"{offset} text-anchor="{anchor}">'
        f"{escape(visible(said))}</text>"
    )


def rule(x: float, y: float, height: float, name: str) -> str:
    """A vertical line at ``x`` per cent, from ``y`` down."""
    at = percent(x)
    return f'<line class="{name}" x1="{at}" x2="{at}" y1="{number(y)}" y2="{number(y + height)}"/>'


def baseline(y: float) -> str:
    """A horizontal line over the whole width."""
    return f'<line class="axis" x1="0" x2="100%" y1="{number(y)}" y2="{number(y)}"/>'


def number(value: float) -> str:
    """At most three decimals."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def percent(value: float) -> str:
    """A place or width of so many per cent."""
    return f"{number(value)}%"


def visible(text: str) -> str:
    """Makes what would act unseen visible: U+202E, which turns text around, becomes ‹U+202E›.

    Controls, direction marks, lone surrogates and private characters; the joiner and the
    variation selector that emoji are made of stay.
    """
    return "".join(_visible_characters(text))


def _visible_characters(text: str) -> Iterator[str]:
    for character in text:
        hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
        if hidden and character != "\u200d":
            yield f"‹U+{ord(character):04X}›"
        else:
            yield character

"""What all pages share: one HTML file from a template, its pictures inside, written at once.

A page is self-contained, works offline and has no scripts; ``templates/page.html.j2`` holds its
head and the policy that says so to the browser. What comes from outside (names, notes, paths) is
escaped, and bounded or made visible by the filters below.
"""

import math
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from steelsight.defects import DefectClass
from steelsight.errors import InputError
from steelsight.report.charts import line_svg, share_text
from steelsight.report.overlays import LINE_PATTERNS, data_uri
from steelsight.report.svg import visible


def render_page(template: str, **values: Any) -> str:
    """The page as text; ``values`` are what the template names."""
    return _environment().get_template(template).render(values)


def write_page(path: Path, text: str) -> None:
    """Writes a page: first beside ``path``, then in its place at once; its folder is made.

    Raises:
        InputError: the file cannot be written; what was there stays as it was.
    """
    beside = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Names may hold lone surrogates (bytes that are no UTF-8); visible() has made those
            # in names readable, any other becomes "?".
            beside.write_bytes(text.encode("utf-8", errors="replace"))
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}), expected a file in a folder"
            " with room; check the path, its permissions and the free space"
        ) from error


class PictureBudget:
    """Pictures inside a page, as ``data:`` URIs, until their bytes are spent.

    Attributes:
        exceeded: a picture did not fit any more.
    """

    def __init__(self, picture_bytes: int) -> None:
        """``picture_bytes``: all pictures together, before base64 (which adds a third)."""
        self._bytes_left = picture_bytes
        self.exceeded = False

    def embedded(self, jpeg: bytes) -> str | None:
        """The URI of one more picture; ``None`` if it does not fit (a smaller one still may)."""
        if len(jpeg) > self._bytes_left:
            self.exceeded = True
            return None
        self._bytes_left -= len(jpeg)
        return data_uri(jpeg, "image/jpeg")


def legend(classes: Sequence[DefectClass]) -> list[tuple[str, str]]:
    """Name and line of each type, as the overlays draw it."""
    return [
        (c.name, line_svg(css_colour(c), LINE_PATTERNS[i % len(LINE_PATTERNS)]))
        for i, c in enumerate(classes)
    ]


def css_colour(defect_class: DefectClass) -> str:
    """Rebuilt from numbers: a colour from a foreign bundle must not carry other CSS."""
    red, green, blue = defect_class.rgb
    return f"#{red:02x}{green:02x}{blue:02x}"


def relative_href(path: str) -> str:
    """A link that stays beside the report, whatever the path says.

    ``./`` in front and percent-encoding leave no scheme (``javascript:``) and no host (``//x``).
    """
    return "./" + quote(path.replace("\\", "/"), safe="/", errors="surrogateescape").lstrip("/")


def _probability(value: float | None) -> str:
    """Three decimals, but never a rounded 0 or 1."""
    if value is None or not math.isfinite(value):
        return "–"
    if value < 0.001:
        return "< 0.001"
    return "> 0.999" if value > 0.999 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"


def _rate(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


def _paragraphs(text: str) -> Iterable[str]:
    """Blank lines part paragraphs; line ends inside them stay (lists, tables of a model card)."""
    lines = [visible(line.rstrip()) for line in text.splitlines()]
    return [p.strip("\n") for p in "\n".join(lines).split("\n\n") if p.strip()]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("steelsight.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible,
        "href": relative_href,
        "probability": _probability,
        "share": share_text,
        "duration": _duration,
        "rate": _rate,
        "thousands": _thousands,
        "paragraphs": _paragraphs,
    }
    return environment

"""Reading pages in tests."""

import re
from html import unescape
from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements by tag, texts, tables, and whether every element is closed in order."""

    VOID = frozenset(
        {"meta", "img", "image", "br", "rect", "path", "line", "polyline", "polygon", "circle"}
    )

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.html = text
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] not in (["style"], []):
            self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def sections(self):
        return [attrs["id"] for attrs in self.all("section")]

    @property
    def rows(self):
        """Tables as lists of cell texts."""
        found = re.findall(r"<tr[^>]*>(.*?)</tr>", self.html, re.DOTALL)
        cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in found]
        return [[unescape(" ".join(re.sub(r"<[^>]*>", " ", c).split())) for c in r] for r in cells]

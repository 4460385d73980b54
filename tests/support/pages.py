"""What a test reads of an HTML page: its elements, its text, and what it would fetch."""

import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Parsed(HTMLParser):
    """A page's elements in order, their attributes and all text; open and closed tags must fit."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        """All text, blanks made one."""
        return " ".join(" ".join(self.text).split())

    def of(self, tag: str) -> list[dict]:
        """The attributes of every element of a tag."""
        return [values for name, values in self.tags if name == tag]

    def fetched(self) -> list[str]:
        """What the page would load or lead away to: everything but anchors and data."""
        links = [
            values[key]
            for _, values in self.tags
            for key in ("src", "href", "action", "srcset", "data", "poster", "xlink:href")
            if key in values
        ]
        return [link for link in links if not link.startswith(("#", "data:"))]


def chromium() -> str:
    """The browser's command; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (found := shutil.which(name)) is not None:
            return str(Path(found))
    pytest.skip("no Chromium on this machine")

"""What is wrong with the markup of a page that we wrote: browsers mend it in silence, and show something else."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_NO_TEXT = {"table", "thead", "tbody", "tr", "ul", "ol", "dl", "select", "html", "head"}


class _Reader(HTMLParser):
    """Notes what does not nest, and texts where none can be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.faults.append(f"<{tag}> has an attribute twice")
        if any(not name.replace("-", "").replace(":", "").isalnum() for name in names):
            self.faults.append(f"<{tag}> has odd attributes: {names}")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> within {self.open[-3:]}, line {self.getpos()[0]}")
            return
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open and self.open[-1] in _NO_TEXT:
            self.faults.append(f"{data.strip()[:60]!r} directly within <{self.open[-1]}>")


def faults(page: str) -> list[str]:
    """What is wrong with it; empty for a good page."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return [*reader.faults, *(f"<{tag}> is never closed" for tag in reader.open)]

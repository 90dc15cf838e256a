"""What a browser would make of the page."""

from __future__ import annotations

from html.parser import HTMLParser

INLINE = {"a", "abbr", "b", "br", "code", "em", "i", "small", "span", "strong", "sub", "sup"}


class Page(HTMLParser):
    """Elements, ids, links, text; fails where an end tag closes something else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.paragraphs: list[str] = [""]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in INLINE:
            self.paragraphs.append("")
        if tag not in ("meta", "link", "img", "line", "circle", "polyline", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"
        if tag not in INLINE:
            self.paragraphs.append("")

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)
            self.paragraphs[-1] += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

"""HTML as a tree of elements, for tests of pages; the parser is the standard library's."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from xml.etree.ElementTree import Element, TreeBuilder

VOID = {"meta", "img", "input"}


class _Reader(HTMLParser):
    """Builds the tree; ElementTree's own builder refuses what is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.builder = TreeBuilder()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        self.builder.data(data)


def parsed(html: str) -> Element:
    """Return the root of a document."""
    reader = _Reader()
    reader.builder.start("document", {})
    reader.feed(html)
    reader.close()
    assert not reader.open, f"never closed: {reader.open}"
    reader.builder.end("document")
    return reader.builder.close()


def within(element: Element, name: str = "*", class_: str | None = None) -> Iterator[Element]:
    """Yield the elements inside, in their order, of a name and of a class."""
    for inner in element.iter() if name == "*" else element.iter(name):
        is_of_class = class_ is None or class_ in inner.get("class", "").split()
        if inner is not element and is_of_class:
            yield inner


def text_of(element: Element) -> str:
    """Return all text inside, exactly."""
    return "".join(element.itertext())


def line_of(element: Element) -> str:
    """Return all text inside as it is shown: on one line, with single spaces."""
    return " ".join(text_of(element).split())


def shape(element: Element) -> tuple:
    """Return names alone: what markup there is, whatever the texts."""
    return (element.tag, sorted(element.attrib), [shape(inner) for inner in element])

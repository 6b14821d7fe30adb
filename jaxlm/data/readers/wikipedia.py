"""Read the pages of a MediaWiki dump (pages-articles.xml), without their markup."""

import io
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from jaxlm.config import UserError
from jaxlm.data.documents import Columns, Record
from jaxlm.data.readers.streams import (
    LONGEST_RECORD,
    describe,
    import_reader,
    open_stream,
    too_long,
)
from jaxlm.data.remote_files import SourceFile

FILE_NAMESPACE, CATEGORY_NAMESPACE = "6", "14"
INVISIBLE_TAGS = ("ref", "references", "table", "gallery", "timeline", "math", "score")
EMPTY_LINES = re.compile(r"\n{3,}")
EMPTY_BRACKETS = re.compile(r" ?\((?:[\s,;]|&nbsp;)*\)")


def read_wikipedia(path: SourceFile, columns: Columns) -> Iterator[Record | UserError]:
    """Yield the fields "text", "title" and "id" of each article, numbered as in the dump.

    Redirects and other namespaces (talk, users, templates) are left out. Raises UserError, with the
    line, where the file is not XML.
    """
    del columns
    parser = import_reader("mwparserfromhell", f"{path}: MediaWiki's XML")
    hidden = {"file", "image", "category"}
    number = 0
    with open_stream(path) as stream:
        try:
            for element in finished_elements(PageStream(stream, path)):
                tag = local_name(element)
                if tag == "namespace" and element.get("key") in (
                    FILE_NAMESPACE,
                    CATEGORY_NAMESPACE,
                ):
                    hidden.add((element.text or "").lower())
                elif tag == "page":
                    number += 1
                    page = {local_name(child): child for child in element.iter()}
                    markup = article_markup(page)
                    if markup is None:
                        continue

                    if len(markup) > LONGEST_RECORD:
                        yield too_long(f"{path}:{number}")
                        continue
                    fields = {name: page[name].text or "" for name in ("title",) if name in page}
                    fields["text"] = strip_markup(markup, hidden, parser)
                    yield Record(number, fields)
        except ElementTree.ParseError as error:
            raise UserError(f"{path}:{error.position[0]}: not XML: {describe(error)}") from error


class PageStream:
    """A stream that ends in a UserError inside a page of more than LONGEST_RECORD bytes."""

    def __init__(self, stream: io.BufferedIOBase, path: SourceFile):
        self.stream, self.path = stream, path
        self.left = LONGEST_RECORD

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes, all that there are before damage; none at the end."""
        data = self.stream.read1(size)
        self.left -= len(data)
        if self.left < 0:
            raise UserError(f"{self.path}: one page of more than {LONGEST_RECORD >> 20} MiB")
        return data


def finished_elements(stream: PageStream) -> Iterator[ElementTree.Element]:
    """Yield the elements of an XML file when they end; what ended below the root is forgotten."""
    path: list[ElementTree.Element] = []
    try:
        for event, element in ElementTree.iterparse(stream, events=("start", "end")):
            if event == "start":
                path.append(element)
                continue

            path.pop()
            yield element
            if len(path) == 1:
                path[0].clear()
                stream.left = LONGEST_RECORD
    except (LookupError, ValueError) as error:  # of an encoding that the parser does not know
        raise UserError(f"{stream.path}: not XML: {describe(error)}") from error


def local_name(element: ElementTree.Element) -> str:
    """Return the name of an element without its namespace."""
    return element.tag.rpartition("}")[2]


def article_markup(page: dict[str, ElementTree.Element]) -> str | None:
    """Return the markup of an article; None for a redirect and for pages of other kinds."""
    if "redirect" in page or "text" not in page:
        return None
    if "ns" in page and page["ns"].text != "0":
        return None
    return page["text"].text


def strip_markup(markup: str, hidden: set[str], parser: Any) -> str:
    """Return the text of an article: without templates, tables, notes, files and categories.

    `hidden` are the prefixes of links whose words are no part of the text, in lower case.
    """
    code = parser.parse(markup, skip_style_tags=False)
    for link in code.filter_wikilinks():
        prefix, colon, _ = str(link.title).strip().partition(":")
        if colon and prefix.strip().lower() in hidden:
            remove(code, link)
    for tag in code.filter_tags():
        if str(tag.tag).strip().lower() in INVISIBLE_TAGS:
            remove(code, tag)

    text = code.strip_code(normalize=True, collapse=False)
    text = EMPTY_BRACKETS.sub("", text)
    lines = (line.strip() for line in text.splitlines())
    return EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip()


def remove(code: Any, node: Any) -> None:
    """Remove a node, unless it went with another that held it."""
    try:
        code.remove(node)
    except ValueError:
        return

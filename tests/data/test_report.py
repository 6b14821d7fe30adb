"""The report of a store: its numbers, its pictures, and hostile text in it."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxlm.data import build_markdown, build_page, describe_store, near_duplicates
from jaxlm.data.report import list_stages, show_share
from jaxlm.data.report_charts import compare_probability
from jaxlm.data.visible_text import display_width, escape_text, fit_width

HOSTILE = "</td></pre><script>alert(1)</script> | `x` **b** <img src=x> \x1b[31m\n| a | b |\n\u202e"
MANIFEST = {
    "splits": {
        "train": [{"source": "we|b", "documents": 50, "bytes": 5000, "tokens": 1200}],
        "validation": [{"source": "we|b", "documents": 10, "bytes": 900, "tokens": 250}],
    },
    "validation": {"bytes": 900, "tokens": 250},
    "dropped": {"we|b": {"exact_duplicate": 30, "language": 10}},
}
CURATION = {
    "sources": {
        "we|b": {
            "read": {"documents": 100, "bytes": 10_000},
            "dropped": {
                "language": {"documents": 10, "bytes": 1_000},
                "exact_duplicate": {"documents": 30, "bytes": 3_000},
            },
            "samples": {"language": [{"name": HOSTILE, "text": HOSTILE}]},
        }
    },
    "config": {"exact_duplicates": True},
    "near_duplicates": {"similarity": 0.8, "bands": 32, "rows": 4},
}


def describe(**more):
    manifest = copy.deepcopy(MANIFEST | more)
    return describe_store(SimpleNamespace(manifest=manifest, path=Path("stores/0a1b")))


@pytest.fixture
def full():
    fertility = {"we|b": {"bytes_per_token": 4.07, "tokens_per_word": 1.5}}
    return describe(curation=copy.deepcopy(CURATION), fertility=fertility)


class Tags(HTMLParser):
    """Check that every element is closed in turn, and collect elements, addresses and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.names, self.links, self.words = [], set(), [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.links += [name for name, _ in attrs if name in ("src", "href", "xlink:href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_stages_of_a_source_add_up(full):
    source = full["sources"]["we|b"]
    assert source["documents"] == 100 and source["kept"] == 60
    assert source["dropped"] == {"language": 10, "exact_duplicate": 30}

    first, *losses, last = list_stages(source)
    assert [stage.name for stage in losses] == ["language", "exact_duplicate", "cut from documents"]
    assert first.bytes == sum(stage.bytes for stage in [*losses, last]) == 10_000
    assert first.documents - sum(stage.documents or 0 for stage in losses) == last.documents


def test_a_page_is_one_file_whatever_documents_hold(full):
    page = build_page(full)
    tags = Tags(page)
    assert tags.links == [] and "url(" not in page and "@import" not in page
    assert tags.names.isdisjoint({"script", "img", "link", "iframe", "object", "b"})
    assert "\x1b" not in page and "\u202e" not in page

    words = "".join(tags.words)
    assert r"</td></pre><script>alert(1)</script> | `x` **b** <img src=x> \x1b[31m" in words
    assert "5.9 kB" in words and "59.0%" in words and "1,200 + 250" in words and "1.50" in words
    assert "0.63: 99.6%" in words


def test_a_table_of_markdown_holds_whatever_documents_hold(full):
    text = build_markdown(full)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table
    assert "<" not in text and not re.search(r"(?<!\\)`", text) and "\x1b" not in text
    assert "| exact duplicate | 30 | 30.0% | 3,000 |" in text


def test_an_older_store_leaves_out_what_it_does_not_know():
    report = describe()
    assert set(report) == {"store", "sources", "training", "validation"}
    assert set(report["sources"]["we|b"]) == {"documents", "kept", "bytes", "tokens", "dropped"}
    assert report["sources"]["we|b"]["documents"] == 100

    page, text = build_page(report), build_markdown(report)
    Tags(page)
    assert "Bars are documents" in page and "near duplicates" not in page + text
    assert "Samples" not in page + text


def test_the_curve_is_that_of_the_search_for_near_duplicates():
    bands, rows = near_duplicates.BANDS, near_duplicates.BAND_MINIMA
    for similarity in (0.0, 0.15, 0.63, 0.8, 1.0):
        expected = near_duplicates.find_probability(similarity)
        assert compare_probability(similarity, bands, rows) == pytest.approx(expected, abs=1e-12)
    shares = (0, 1e-6, 0.5, 0.9996, 1 - 1e-8, 1)
    assert [*map(show_share, shares)] == ["0.0%", "<0.1%", "50.0%", "99.96%", ">99.9999%", "100.0%"]


def test_every_character_can_be_seen():
    assert escape_text("a\n\t\\\x1b[2J\u200b\u00a0\ud800 é日") == (
        r"a\n\t\\\x1b[2J\u200b\xa0\ud800 é日"
    )
    assert escape_text("\u0301a") == r"\u0301a" and escape_text("") == ""
    assert display_width("日本e\u0301") == 5
    assert fit_width("日本語", 6) == "日本語" and fit_width("日本語x", 6) == "日本… "

"""Pages: whatever a text holds, the page has the elements of its template and the data come back equal."""

import json
from html.parser import HTMLParser

import pytest

from alignment.command_line import REPOSITORY, UserError
from alignment.pages import SLOT, data_text, page
from alignment.records import write_whole

TEMPLATES = [path for path in sorted((REPOSITORY / "assets").glob("*.html")) if SLOT in path.read_text()]
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "</SCRIPT ><b>",
    "<!--",
    "<!--<script>",
    "]]> &lt; &amp; \\u003c \\",
    "line\u2028and\u2029paragraph\r\n\0",
    "half \ud83d of 😀, déjà vu, 漢",
    SLOT,
]


class Elements(HTMLParser):
    """The start tags and comments of a page in order, and the text of the element with the id `data`."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.data, self.inside = [], "", False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, attributes))
        self.inside = ("id", "data") in attributes

    def handle_endtag(self, tag):
        self.inside = False

    def handle_comment(self, text):
        self.found.append(("comment", text))

    def handle_data(self, text):
        self.data += text if self.inside else ""


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_no_text_of_the_data_is_markup(tmp_path, template, hostile):
    data = {"rows": [{"text": hostile, hostile: [1, 2.5, None, True]}]}
    write_whole(tmp_path / "page.html", [page(template.name, data)])
    filled, empty = (Elements(path.read_text(encoding="utf-8")) for path in (tmp_path / "page.html", template))
    assert filled.found == empty.found and sum(tag == "script" for tag, _ in filled.found) == 2
    assert empty.data == SLOT and json.loads(filled.data) == data


def test_data_are_ascii_without_an_opening_bracket():
    """`<` would end or open something, and U+2028 ends a line of script."""
    text = data_text(HOSTILE)
    assert "<" not in text and text.isascii() and text.isprintable()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_page_of_what_is_no_json(value):
    with pytest.raises(UserError, match="blame_report.html not made: one of its numbers is NaN"):
        page("blame_report.html", {"rows": [{"margins": [0.5, value]}]})


def test_templates_are_found():
    assert "blame_report.html" in [path.name for path in TEMPLATES]

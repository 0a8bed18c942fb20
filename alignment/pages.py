"""The one way to a self-contained HTML page: a template of assets/ with data in it, other people's texts as they are.

    write_whole(Path("outputs/blame.html"), [page("blame_report.html", {"rows": rows, "threshold": 1.1})])

The template has one slot, @DATA@, inside <script type="application/json" id="data">, and its script reads from there
with JSON.parse and shows with textContent. So no text is ever read as HTML, whatever it holds.
"""

from __future__ import annotations

import json
from typing import Any

from alignment.command_line import REPOSITORY, UserError
from alignment.records import read_text

SLOT = "@DATA@"


def data_text(data: Any) -> str:
    r"""JSON in ASCII without a `<`: nothing in it can close its element, open a comment or break a line of script.

    All but ASCII is written \uXXXX, so that U+2028, U+2029 and halves of surrogate pairs come through too. Raises
    ValueError for NaN and infinity, which are no JSON.
    """
    return json.dumps(data, allow_nan=False).replace("<", r"\u003c")


def page(template: str, data: Any) -> str:
    """The HTML of assets/`template` with `data` in it. Raises UserError where a number of it is NaN or infinite."""
    text = read_text(REPOSITORY / "assets" / template, "page template")
    assert text.count(SLOT) == 1, f"{template} has one slot"
    try:
        return text.replace(SLOT, data_text(data))
    except ValueError:
        raise UserError(
            f"page {template} not made: one of its numbers is NaN or infinite; are the weights sound?"
        ) from None

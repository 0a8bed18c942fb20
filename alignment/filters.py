"""Is this one text worth keeping? One predicate a rule; dropping is counted and reported by the rule's name.

Each list is in the order in which its rules are tried, and the first that holds is the reason.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from alignment.records import BAD

Rule = tuple[str, Callable[[str], bool]]  # a reason, and whether a text is to be dropped for it

_UNKNOWING, _HUMAN, _IMAGE = (
    re.compile(pattern, re.IGNORECASE) for pattern in (r"(don('|’)t|do not)\s+know", "Human:", "<Image>")
)


def _ends_in_punctuation(text: str) -> bool:
    return text[-1:] in string.punctuation


QUERY_RULES: list[Rule] = [
    ("empty", lambda query: not any(map(str.isalnum, query))),
    ("short and cut off", lambda query: len(query) < 30 and not _ends_in_punctuation(query)),
    ("long and cut off", lambda query: len(query) > 250 and not _ends_in_punctuation(query)),
]

# A2: the released code drops the long queries that are whole and keeps those cut off.
QUERY_RULES_AS_RELEASED: list[Rule] = [
    *QUERY_RULES[:2],
    ("long and whole", lambda query: len(query) > 250 and _ends_in_punctuation(query)),
]

# The heuristic filter of comparisons, as released, also where a rule is blunt (A6). few_shot.parse_reply has taken
# blanks and newlines from a reply's ends; with any other white space there it has no full stop at the end.
RESPONSE_RULES: list[Rule] = [
    ("marked BAD", lambda reply: reply == BAD),
    ("under 50 characters", lambda reply: len(reply) < 50),
    ("ends with ? or :", lambda reply: reply.endswith(("?", ":"))),
    ("starts with well", lambda reply: reply[:4].lower() == "well"),
    ("no full stop at the end", lambda reply: not reply.endswith((".", "!"))),
    ("does not know", lambda reply: _UNKNOWING.search(reply) is not None),
    ("holds Human:", lambda reply: _HUMAN.search(reply) is not None),
    ("holds <Image>", lambda reply: _IMAGE.search(reply) is not None),
]


def why_drop(text: str, rules: list[Rule]) -> str | None:
    """The first rule that drops `text`, or None where it is kept."""
    return next((reason for reason, drops in rules if drops(text)), None)

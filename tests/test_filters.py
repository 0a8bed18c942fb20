"""Each rule, case for case, on both sides of its edge."""

import pytest

from alignment.filters import QUERY_RULES, QUERY_RULES_AS_RELEASED, RESPONSE_RULES, why_drop

GOOD = "A sentence that is long enough to be kept, by a little."  # 55 characters


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (GOOD, None),
        (GOOD[:-1] + "!", None),
        ("BAD", "marked BAD"),
        ("", "under 50 characters"),
        ("x" * 48 + ".", "under 50 characters"),
        ("x" * 49 + ".", None),
        (GOOD[:-1] + "?", "ends with ? or :"),
        (GOOD[:-1] + ":", "ends with ? or :"),
        ("Well, " + GOOD, "starts with well"),
        ("Wellington is a city. " + GOOD, "starts with well"),  # A6: blunt, and kept so
        ("Swell. " + GOOD, None),
        (GOOD[:-1], "no full stop at the end"),
        (GOOD + '"', "no full stop at the end"),
        *((GOOD + space, "no full stop at the end") for space in ("\t", "\r", "\u00a0", "\u2028")),
        ("I don't know. " + GOOD, "does not know"),
        ("I don’t   know. " + GOOD, "does not know"),
        ("I do not know. " + GOOD, "does not know"),
        ("I DO NOT\nKNOW. " + GOOD, "does not know"),
        ("i Don’T knoW. " + GOOD, "does not know"),
        ("I dont know. " + GOOD, None),
        ("I don't really know. " + GOOD, None),
        ("Human: hello. " + GOOD, "holds Human:"),
        ("A human: hello. " + GOOD, "holds Human:"),
        ("HUMAN: hello. " + GOOD, "holds Human:"),
        ("The human body. " + GOOD, None),
        ("An <Image> of it. " + GOOD, "holds <Image>"),
        ("An <image> of it. " + GOOD, "holds <Image>"),
        ("<IMAGE>. " + GOOD, "holds <Image>"),
        ("An image of it. " + GOOD, None),
    ],
)
def test_the_heuristic_filter(reply, reason):
    """The three patterns ignore case, as released; what must not match stands beside what must."""
    assert why_drop(reply, RESPONSE_RULES) == reason


@pytest.mark.parametrize(
    ("query", "reason", "released"),
    [
        ("What is a fjord?", None, None),
        ("Name", "short and cut off", "short and cut off"),
        ("What is the difference between", None, None),  # 30 characters
        ("What is the difference betwee", "short and cut off", "short and cut off"),
        ("x" * 250, None, None),
        ("x" * 251, "long and cut off", None),
        ("x" * 251 + "?", None, "long and whole"),  # A2
        ("?!", "empty", "empty"),
        ("", "empty", "empty"),
    ],
)
def test_query_rules_as_meant_and_as_released(query, reason, released):
    assert why_drop(query, QUERY_RULES) == reason
    assert why_drop(query, QUERY_RULES_AS_RELEASED) == released

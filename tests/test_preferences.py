"""The data of Janus in parts: the tree, sets, what is asked again, leaks, rows in their forms, the splits."""

import json
import random

import pytest

from alignment.asking import Unusable
from alignment.command_line import REPOSITORY, UserError
from alignment.engines.schemas import fill
from alignment.intervals import wilson
from alignment.janus import measures, rows, splits
from alignment.janus.leaks import LeakRule, stem
from alignment.janus.preferences import DIMENSIONS, TREE, Tree, read_set, set_line
from alignment.janus.writers import PreferenceSets, Rubrics, SystemMessages
from alignment.records import json_list

SMALL = {dimension: {"one": ["first thing", {"preference": "second thing", "description": "Told at length."}]}
         for dimension in DIMENSIONS}  # fmt: skip


def written(path, value):
    path.write_text(json.dumps(value))
    return path


def preference_set(**names):
    return [
        {"dimension": d, "subdimension": "sub", "preference": names.get(d, f"the {d} one"), "description": "x" * 30}
        for d in DIMENSIONS
    ]


def row(name, number=0, split="train", prompt="Why is the sky blue?", output="Because.", **more):
    sources = {"main_source": "koala", "original_source": "koala"}
    found = {"id": name, "set": number, "split": split, **sources, "prompt": prompt}
    return found | {"preference_set": preference_set(), "system": "You are kind.", "output": output} | more


# The tree


def test_our_seeds():
    """At least 18 subdimensions and 90 preferences, each with a description, none twice."""
    tree = Tree.read(TREE)
    subs = [sub for dimension in DIMENSIONS for sub in tree.seeds[dimension]]
    leaves = [leaf for dimension in DIMENSIONS for part in tree.seeds[dimension].values() for leaf in part]
    assert len(subs) >= 18 and len(leaves) >= 90
    assert all(len(told) >= 20 for _, told in leaves) and len({name for name, _ in leaves}) == len(leaves)


def test_names_of_dimensions_in_any_case_and_leaves_without_description(tmp_path):
    """The published tree has `Background knowledge` and bare phrases."""
    renamed = {name.replace("_", " ").capitalize(): part for name, part in SMALL.items()}
    tree = Tree.read(written(tmp_path / "tree.json", renamed))
    assert tree.seeds["background_knowledge"] == {"one": [("first thing", ""), ("second thing", "Told at length.")]}
    assert tree.examples(random.Random(0), 0)["style"][0].startswith("one > ")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda tree: tree.pop("style"), "has no dimension style; a tree has all of style, "),
        (lambda tree: tree.update(style={}), "dimension style is empty"),
        (lambda tree: tree.update(stile=tree.pop("style")), "'stile' is none of .*did you mean 'style'"),
        (lambda tree: tree["style"].update(one=[]), "style > one is no list of preferences"),
        (lambda tree: tree["style"].update(one=[""]), "style > one, preference 0 is neither"),
        (lambda tree: tree["style"].update(one=[{"preference": 3}]), "style > one, preference 0 is neither"),
    ],
)
def test_trees_that_cannot_be_used(tmp_path, change, said):
    tree = json.loads(json.dumps(SMALL))
    change(tree)
    with pytest.raises(UserError, match=said) as raised:
        Tree.read(written(tmp_path / "tree.json", tree))
    assert "\n" not in str(raised.value) and "tree.json" in str(raised.value)


def test_sets_of_one_instruction_set_out_from_different_subdimensions():
    tree = Tree.read(TREE)
    leads = [tree.examples(random.Random(7), lead)["style"][0].split(" > ")[0] for lead in range(5)]
    assert sorted(leads) == sorted(tree.seeds["style"])


def test_a_seed_brings_its_own_subdimension():
    tree = Tree.read(TREE)
    reply = fill(tree.schema(), random.Random(2))
    for entry, name in zip(
        reply.values(), ("dry wit", "curious child", "ready to use", "admits the limits"), strict=True
    ):
        entry |= {
            "subdimension": "Elsewhere",
            "preference": name,
            "description": f"Said of {name} in a sentence of its own.",
        }
    reply["style"]["preference"] = "invented here"
    found = read_set(json.dumps(reply), tree)
    assert [each["subdimension"] for each in found] == ["elsewhere", "basic", "practicality", "accuracy"]
    assert [each["dimension"] for each in found] == list(DIMENSIONS)


SAID = "The word wit, in one or another of two old ways"


@pytest.mark.parametrize(
    "entry, reason",
    [
        ({"preference": "  "}, "preference is no text"),
        ({"preference": "twice"}, "has a preference twice"),
        ({"description": "informativeness " * 9}, "has a description twice"),
        ({"description": SAID + ".", "preference": SAID.lower()}, "description repeats"),
        ({"preference": "Style"}, "repeats its dimension"),
        ({"subdimension": "tone of voice", "preference": "Tone of Voice"}, "repeats its dimension"),
    ],
)
def test_sets_that_cannot_be_used(entry, reason):
    reply = {d: {"subdimension": "sub", "preference": f"for {d}", "description": f"{d} " * 9} for d in DIMENSIONS}
    reply["informativeness"]["preference"] = "Twice"
    reply["style"] |= entry
    with pytest.raises(Unusable, match=reason):
        read_set(json.dumps(reply), Tree.read(TREE))


# Leaks

LEAKS = json.loads((REPOSITORY / "tests" / "leak_rows.json").read_text())


def test_precision_of_the_leak_rule():
    """50 rows labelled by hand before the rule was run: 15 found, 13 of them leaks, of 25. What it misses says
    the topic in other words, of which it knows nothing."""
    rule = LeakRule()
    found = [each for each in LEAKS if rule.leaks(each["system"], each["prompt"])]
    right, leaks = sum(each["leaks"] for each in found), sum(each["leaks"] for each in LEAKS)
    assert len(LEAKS) == 50 and 15 <= leaks <= 35
    assert right / len(found) >= 0.85 and right / leaks >= 0.5, (right, len(found), leaks, wilson(right, len(found)))


def test_what_leaks():
    rule = LeakRule()
    prompt = "How do beekeepers calm an angry hive before they open it?"
    assert rule.leaks("You care for every hive.", prompt) == ["hive"]
    assert rule.leaks("You admire beekeeping.", prompt) == ["beekeeping"]
    assert rule.leaks("You love honey and those who make it.", prompt) == []  # in other words: not told
    assert rule.leaks("You stay calm before they open it.", prompt) == ["before they open it"]
    assert rule.leaks("You answer with care.", prompt) == []


def test_what_many_instructions_say_is_common():
    """`zeppelin` in 4 of 4 instructions says little about one of them; in 3 of 4 it is still rare."""
    prompts = [f"Describe a zeppelin of {place}." for place in ("Oslo", "Lima", "Cairo", "Quito")]
    assert LeakRule(prompts).leaks("You love a zeppelin.", prompts[0]) == []
    assert LeakRule(prompts[:3]).leaks("You love a zeppelin.", prompts[0]) == ["zeppelin"]


def test_stems():
    assert stem("applies") == stem("apply") == stem("applied")
    assert stem("planned") == stem("plan's") == stem("planning")
    assert stem("glass") == "glass"


# Rows


def test_instructions_in_their_forms(tmp_path):
    many = [
        {"id": 7, "instruction": "Sort these.", "instances": [{"input": "b a"}]},
        {"id": "seven", "instruction": "Say hello. ", "input": "", "source": "koala"},
    ]
    turns = [{"question_id": 1, "turns": ["First?", "Second?"]}]
    first, second = written(tmp_path / "many.json", many), written(tmp_path / "turns.json", turns)
    lines = tmp_path / "prompts.txt"
    lines.write_text("One line.\n")
    found = rows.read_instructions([str(first), str(second), str(lines)], None)
    assert [each["id"] for each in found] == [7, "seven", 1, "prompts-0"]
    assert [each["prompt"] for each in found] == ["Sort these.\nb a", "Say hello.", "First?", "One line."]
    assert [each["main_source"] for each in found] == ["many", "koala", "turns", "prompts"]


@pytest.mark.parametrize(
    "data, key, said",
    [
        ([{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}], None, "row 1 has the id '1' of data .*row 0; ids are"),
        ([{"id": "1", "prompt": "a"}, {"id": 1, "prompt": "b"}], None, "row 1 has the id 1 of data .*row 0; ids are"),
        ([{"id": 1.5, "prompt": "a"}], None, "row 0: 'id' is a float"),
        ([{"instrution": "a"}], None, "has none of instruction, .*but instrution; .*did you mean 'instrution'"),
        ([{"instruction": "a"}], "instruktion", "no 'instruktion', but instruction; .*did you mean 'instruction'"),
        ([{"prompt": "a"}, {"prompt": 3}], None, "row 1 has no text under 'prompt'"),
        ([{"prompt": "a"}, {"promt": "b"}], None, "row 1 has no text under 'prompt'; did you mean 'promt'"),
    ],
)
def test_instructions_that_cannot_be_used(tmp_path, data, key, said):
    with pytest.raises(UserError, match=said):
        rows.read_instructions([str(written(tmp_path / "data.json", data))], key)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"system": None}, "row 1 has no text under 'system'"),
        ({"output": " "}, "row 1 has no text under 'output'"),
        ({"split": "test"}, "row 1: 'split' is neither"),
        ({"set": 0}, "row 1: set 0 of id 'a' comes twice"),
        ({"preference_set": preference_set()[:3]}, "row 1: 'preference_set' is no list of one"),
    ],
)
def test_rows_between_modes_that_cannot_be_used(tmp_path, change, said):
    path = tmp_path / "responses.json"
    rows_there = [row("a"), row("a", 1) | change]
    for pieces in ([json.dumps(rows_there)], json_list(rows_there)):
        path.write_text("".join(pieces))
        with pytest.raises(UserError, match=said):
            list(rows.stage_rows(path, "gr"))


def test_an_id_names_one_instruction(tmp_path):
    path = written(tmp_path / "responses.json", [row(1), row("b"), row("1", 1)])
    with pytest.raises(UserError, match="row 2: id '1' comes again after others"):
        list(rows.stage_rows(path, "gr"))


# The published forms


def rubric():
    return {"criteria": "Is it?", "score_descriptions": {score: f"Says {score}." for score in rows.SCORES}}


def test_published_rows_of_all_kinds(tmp_path):
    """The three of the released README, as it nests and names them, and a row of each part."""
    rubrics, answer = [rubric()] * 4, {"reference_answer": "R"}
    late = {"source": "s", "system": "S", "prompt": "P", "rubric": rubrics} | answer
    early = {"id": 468, "user_prompt": "P", "system_prompt": "S", "original_source": "alpaca"} | answer
    early |= {"preference": preference_set(), "rubric": rubrics}
    readme = [{"section": "a", "example": late}, {"section": "c", "example": {"468": early}}]
    readme.insert(1, {"section": "b", "example": {"system": "S", "instruction": "P", "output": "O"}})
    found = list(rows.published(str(written(tmp_path / "readme.json", readme))))
    assert [kind for kind, _ in found] == ["bench", "sft", "bench"]
    assert list(found[0][1]) == "source system prompt reference_answer rubrics".split()
    assert found[1][1] == {"system": "S", "prompt": "P", "output": "O"}
    assert list(found[2][1]) == "source preference_set system prompt reference_answer rubrics".split()
    assert found[2][1]["source"] == "alpaca"
    pair = {"main_source": "m", "system": "S", "prompt": "P", "chosen": "c", "rejected": "r"}
    for name, kind in (("Collection-DPO.json", "dpo"), ("Collection-ORPO.json", "orpo")):
        ((got, made),) = rows.published(str(written(tmp_path / name, [pair])))
        assert got == kind and made["chosen"] == [
            {"role": "user", "content": "P"},
            {"role": "assistant", "content": "c"},
        ]
    reward = {"input": "S\nP", "chosen": "c", "rejected": "r"}
    for name, kind in (("Collection-RM.json", "rm"), ("Collection-RM-test.json", "rm_test")):
        assert list(rows.published(str(written(tmp_path / name, [reward])))) == [(kind, reward)]


@pytest.mark.parametrize(
    "data, said",
    [
        ({"prompt": "P", "output": "O"}, "row 0 has no text under 'system'"),
        ({"sistem": "S", "prompt": "P", "output": "O"}, "row 0 has no text under 'system' .*did you mean 'sistem'"),
        ({"system": "S", "prompt": "P", "chosen": [3], "rejected": "r"}, "row 0: 'chosen' is no text and no list"),
        (
            {"system": "S", "prompt": "P", "reference_answer": "R", "rubrics": [rubric()] * 3},
            "'rubrics' is no list of four",
        ),
        ({"system": "S", "prompt": "P", "output": "O", "preference_set": ["x"]}, "row 0: 'preference_set' is no list"),
    ],
)
def test_published_rows_that_cannot_be_used(tmp_path, data, said):
    with pytest.raises(UserError, match=said):
        list(rows.published(str(written(tmp_path / "data.json", [data]))))


# Splits


def test_the_bench_is_drawn_by_seed_and_share():
    instructions = [{"id": name} for name in range(40)]
    drawn = splits.draw_bench(instructions, 0.1, 1)
    assert len(drawn) == 4 and drawn == splits.draw_bench(instructions, 0.1, 1) != splits.draw_bench(
        instructions, 0.1, 2
    )
    assert splits.draw_bench(instructions, 0, 1) == set() and len(splits.draw_bench(instructions, 0.001, 1)) == 1


def test_duplicates_go_and_what_is_near_the_bench():
    bench = [{"id": 0, "prompt": "Explain how a sundial tells the time in winter."}]
    train = [
        {"id": 1, "prompt": "explain how a  sundial tells the time in winter."},
        {"id": 2, "prompt": "Explain how a sundial tells the time in summer."},
        {"id": 3, "prompt": "Name a river."},
        {"id": 4, "prompt": "Name a river."},
    ]
    kept, rest, dropped = splits.without_duplicates(bench, train)
    assert kept == bench and [each["id"] for each in rest] == [3]
    assert dropped == {"duplicate instruction": 2, "near one of the bench": 1}


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, "its preference set 0 is that of bench id 'b'"),
        ({"prompt": "What  tells the sundial in winter?"}, "its instruction is that of bench id 'b'"),
        ({"prompt": "What tells the sundial in summer?"}, "its instruction is near one of the bench"),
        ({"preference_set": preference_set(style="the style two")}, "its preference set 0 is near one of the bench"),
    ],
)
def test_what_repeats_the_bench_is_found(change, said):
    bench = [row("b", split="bench", prompt="What tells the sundial in winter?")]
    other = preference_set(style="dry", background_knowledge="none", informativeness="much", harmlessness="care")
    clean = row("c", prompt="Name three rivers of Chad.", preference_set=other)
    assert splits.prove_unseen([*bench, clean], bench) == 1
    with pytest.raises(UserError, match=f"^1 training instructions are not unseen by the bench: id 'a': {said}"):
        splits.prove_unseen([*bench, clean, row("a") | change], bench)


def test_pairs_are_of_two_system_messages_of_one_instruction():
    """Of three responses, two of them the same: the chosen and rejected always differ, and each is drawn at times."""
    own = [row(name, number, output=text) for name in range(60) for number, text in enumerate(["A", "b", "B "])]
    for kind in ("dpo", "orpo"):
        made = list(splits.pairs(own, kind, 3))
        sides = [(each["chosen"][-1]["content"], each["rejected"][-1]["content"]) for each in made]
        assert len(made) == 60 and all({a.strip().lower(), b.strip().lower()} == {"a", "b"} for a, b in sides)
        assert {a for a, _ in sides} == {"A", "b", "B "}
    assert list(splits.pairs([row(1), row(1, 1)], "dpo", 3)) == []
    assert made != list(splits.pairs(own, "dpo", 3))
    reward = next(splits.pairs(own, "rm", 3))
    assert list(reward) == ["input", "chosen", "rejected"] and reward["input"] == "You are kind.\nWhy is the sky blue?"


# Writers and measures


def test_sets_that_are_too_near_are_asked_again():
    """Two instructions of two sets. All four preferences of another in common are too near anywhere, two of four only
    within one instruction, and the next request names what is there."""
    tree = Tree.read(TREE)
    writer = PreferenceSets([row("a"), row("b")], 2, tree, 0)

    def reply(*names):
        entries = [{"preference": name, "subdimension": "any", "description": f"{name} " * 9} for name in names]
        return json.dumps(dict(zip(DIMENSIONS, entries, strict=True)))

    writer.read(0, reply("dry wit", "casual reader", "decision rule", "honest dealing"))
    with pytest.raises(Unusable, match="near another set of its instruction") as raised:
        writer.read(1, reply("dry wit", "casual reader", "what if", "balanced view"))
    asked = writer.request(1, 1, raised.value.hint).prompt[1]["content"]
    assert "choose otherwise:\n- tone dry wit; novice casual reader;" in asked
    assert "choose otherwise" not in writer.request(1, 0, "").prompt[1]["content"]
    with pytest.raises(Unusable, match="near another set of the collection"):
        writer.read(2, reply("dry wit", "casual reader", "decision rule", "honest dealing"))
    assert writer.read(3, reply("dry wit", "casual reader", "what if", "balanced view"))


@pytest.mark.parametrize(
    "body, reason",
    [
        ("a friend of numbers who likes order.", "not in the second person"),
        ("a friend. You like: - order - care.", "a list, not a paragraph"),
        ("a friend who knows your wishes and", "does not end in a sentence"),
        ("a friend who tells you about giraffes.", "leaks its instruction"),
    ],
)
def test_system_messages_that_cannot_be_used(body, reason):
    writer = SystemMessages([row("a", prompt="How tall are giraffes?")] * 2, LeakRule(), 0)
    with pytest.raises(Unusable, match=reason) as raised:
        writer.read(0, json.dumps({"opening": "As", "body": body}))
    assert raised.value.hint == ("giraffes" if "leaks" in reason else "")
    good = json.dumps({"opening": "You are", "body": "a friend who keeps to the facts."})
    assert writer.read(0, good) == "You are a friend who keeps to the facts."
    with pytest.raises(Unusable, match="the same as another of its instruction"):
        writer.read(1, good)


def test_rubrics_differ_by_score():
    writer = Rubrics([row("a")], 0)
    assert [preference["dimension"] for _, preference in writer.asks] == list(DIMENSIONS)
    assert "Preference (style, sub): the style one." in writer.request(0, 0, "").prompt[1]["content"]
    assert writer.read(0, json.dumps(rubric())) == rubric()
    same = rubric() | {"score_descriptions": dict.fromkeys(rows.SCORES, "The same.")}
    with pytest.raises(Unusable, match="two scores are described alike"):
        writer.read(0, json.dumps(same))


def test_evenness():
    """Counts 1 and 3: H = -(1/4 ln 1/4 + 3/4 ln 3/4) = 0.562335; over ln 2 = 0.693147 it is 0.811278."""
    assert measures.evenness([1, 3]) == pytest.approx(0.811278, abs=1e-6)
    assert measures.evenness([5, 5, 5]) == pytest.approx(1) and measures.evenness([4]) is None


def test_likeness_of_responses():
    """`a b c d` and `a b x y`: two of four words in common, F = 1/2; with itself 1."""
    own = [row("a", 0, output="a b c d"), row("a", 1, output="a b x y"), row("a", 2, output="a b c d"), row("z")]
    found = measures.likeness(own)
    assert found["pairs"] == 3 and found["mean"] == pytest.approx(2 / 3) and found["max"] == pytest.approx(1)


def test_the_tree_is_counted():
    rows_there = [row("a"), row("b", preference_set=preference_set(style="another"))]
    style, *_ = measures.branches([each for one in rows_there for each in one["preference_set"]])
    assert (style["name"], style["count"]) == ("style", 2)
    assert style["children"][0]["children"] == [{"name": "the style one", "count": 1}, {"name": "another", "count": 1}]
    assert set_line(preference_set()).count(";") == 3

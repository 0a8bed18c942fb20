"""audit_comparisons.py on simulated files: a planted bias raises its flags and no others, no bias raises none."""

import json
import math
import random
import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from alignment.auditing.benches import Bench, Leaks, read_bench
from alignment.auditing.configurations import circle, circles_flag, configurations_flag, has_ring, majorities, strengths
from alignment.auditing.contents import dropped_rules, leaks_flag
from alignment.auditing.duplicates import reversed_flag
from alignment.auditing.flags import Estimate, Flag
from alignment.auditing.pairs import Pair, configurations_of, read_pairs
from alignment.auditing.shortcuts import agreement_lost, balanced, cohens_d, rank_flag, reward_flag
from alignment.command_line import UserError
from alignment.intervals import clustered, wilson
from alignment.wording import distinct, refuses, repeated
from scripts import audit_comparisons

LENGTH, FADES = "the longer response is chosen", "the configurations' rank fades at equal length"
RING, PROMPT_RING = "configurations beat each other in a circle", "responses to a prompt beat each other in a circle"
ORDER, TWICE, CONTRADICT = "the order decides", "pairs come twice", "pairs contradict each other"
NEAR_PROMPTS, NEAR_ONE = "prompts nearly come twice", "chosen and rejected are nearly one"
REFUSE, LOOP, ALIKE = "many responses refuse", "responses repeat themselves", "responses are alike"
LEAK, USELESS = "items of a benchmark are in it", "rows teach nothing"
NAMES = ("13b", "7b", "3b", "1b")


class Simulated:
    """Comparisons of three responses each to 110 prompts, all of made-up words: the response of the higher quality is
    chosen, which has to do with its configuration, and nothing else has to do with anything."""

    def __init__(self, seed: int, plant: str = ""):
        self.draw, self.plant = random.Random(f"{seed} {plant}"), plant
        self.words = ["".join(self.draw.choices("abcdefghijklmnop", k=self.draw.randint(3, 9))) for _ in range(3000)]
        self.bench = [{"question_id": i, "text": self.text(14), "category": "generic"} for i in range(20)]
        self.openings = [self.text(40) for _ in range(3)]
        self.prompts: list[str] = []
        self.rows = [row for number in range(110) for row in self.of_prompt(number)]
        drawn = self.draw.sample(self.rows, 30)
        if plant == "twice":
            self.rows += [dict(row) for row in drawn]
        if plant == "contradict":
            self.rows += [row | {"score_0": row["score_1"], "score_1": row["score_0"]} for row in drawn]
        if plant == "useless":
            self.rows += [row | {"answer_1": row["answer_0"]} for row in drawn + drawn]

    def text(self, count: int) -> str:
        return " ".join(self.draw.choices(self.words, k=count)) + "."

    def chance(self, share: float) -> bool:
        return self.draw.random() < share

    def of_prompt(self, number: int):
        prompt = self.text(14)
        if self.plant == "near prompts" and number % 4 == 3:
            prompt = " ".join(["another", *self.prompts[-1].split()[1:]])
        if self.plant == "leak" and number < 6:
            question = self.bench[number]["text"]
            asked = (
                question,
                f"{self.text(5)} {question} {self.text(5)}",
                question.replace(question.split()[6], "else"),
            )
            prompt = asked[number % 3]
        self.prompts.append(prompt)
        own = [self.response(name) for name in self.draw.sample(NAMES, 3)]
        if self.plant == "nearly one" and self.chance(0.6):
            own[1]["text"] = " ".join(["instead", *own[0]["text"].split()[1:]])
        turn = self.plant == "prompt ring" and self.chance(0.5)
        sides = list(combinations(own, 2))[: 1 if self.plant == "ring" else None]
        for place, (first, second) in enumerate(sides):
            ahead = first["quality"] > second["quality"]
            if turn:
                ahead = place != 1  # 0 over 1, 2 over 0, 1 over 2
            if self.plant == "ring":
                step = NAMES.index(first["name"]) - NAMES.index(second["name"])
                ahead = self.chance(0.95 if step % 4 == 3 else 0.05 if step % 4 == 1 else 0.5)
            yield self.row(prompt, *((first, second) if ahead else (second, first)))

    def response(self, name: str) -> dict:
        rank = NAMES.index(name)
        count = self.draw.randint(35, 75) if self.plant != "rank is length" else self.draw.randint(75, 105) - 8 * rank
        text = self.text(count)
        if self.plant == "refuse" and self.chance(0.15):
            text = f"I'm sorry, but I can't help with {text}"
        if self.plant == "loop" and self.chance(0.15):
            text = " ".join([*text.split()[:12]] * 8)[: len(text)]
        if self.plant == "alike":
            text = f"{self.draw.choice(self.openings)} {text}"
        quality = self.draw.gauss(-rank / 2)
        if self.plant == "length":
            quality = self.draw.gauss(len(text), 60)
        if self.plant == "rank is length":
            quality = len(text)
        return {"name": name, "text": text, "quality": quality}

    def row(self, prompt: str, chosen: dict, rejected: dict) -> dict:
        first = self.chance(0.75 if self.plant == "order" else 0.5)
        texts = (chosen["text"], rejected["text"]) if first else (rejected["text"], chosen["text"])
        row = {"question": prompt, "answer_0": texts[0], "answer_1": texts[1]}
        return row | {
            "score_0": float(first),
            "score_1": float(not first),
            "meta": f"{chosen['name']}-vs-{rejected['name']}",
        }


def audited(folder, simulated: Simulated) -> dict:
    data, bench = folder / "pairs.json", folder / "question.jsonl"
    data.write_text(json.dumps(simulated.rows))
    bench.write_text("".join(json.dumps(row) + "\n" for row in simulated.bench))
    return audit_comparisons.audited(*read_pairs(str(data)), [read_bench(bench)], None, seed=0)


def raised(data: dict) -> set[str]:
    return {flag["name"] for flag in data["flags"] if flag["raised"]}


@pytest.mark.parametrize("seed", range(3))
def test_no_bias_raises_no_flag_though_each_is_measured(tmp_path, seed):
    data = audited(tmp_path, Simulated(seed))
    assert raised(data) == set()
    assert [flag["name"] for flag in data["flags"] if flag["raised"] is None] == []
    assert data["counts"]["pairs"] == 330 and data["counts"]["prompts"] == 110


PLANTED = {
    "length": {LENGTH},
    "rank is length": {LENGTH, FADES},
    "ring": {RING},
    "prompt ring": {PROMPT_RING},
    "order": {ORDER},
    "twice": {TWICE},
    "contradict": {CONTRADICT},
    "near prompts": {NEAR_PROMPTS},
    "nearly one": {NEAR_ONE},
    "refuse": {REFUSE},
    "loop": {LOOP},
    "alike": {ALIKE},
    "leak": {LEAK},
    "useless": {USELESS},
}


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_bias_raises_its_flags_and_no_others(tmp_path, plant):
    data = audited(tmp_path, Simulated(0, plant))
    assert raised(data) == PLANTED[plant]
    if plant == "leak":  # two items in each of three ways
        (bench,) = data["benches"]
        assert bench == {"bench": "Vicuna", "items": 20, "found": 6, "exact": 2, "run of words": 2, "near": 2}


def test_a_reward_model_that_counts_characters_and_one_that_does_not(tmp_path):
    """Both are as often right where lengths go with the preferences; only one is where they do not."""
    simulated = Simulated(0, "length")
    (tmp_path / "pairs.json").write_text(json.dumps(simulated.rows))
    pairs, _ = read_pairs(str(tmp_path / "pairs.json"))
    draw = random.Random(0)
    counting = reward_flag(pairs, [(len(pair.chosen), len(pair.rejected)) for pair in pairs], seed=0)
    knowing = reward_flag(pairs, [(draw.gauss(1), draw.gauss(0)) for _ in pairs], seed=0)
    assert counting.raised and counting.estimate.value == 0.5 and not knowing.raised
    groups = {row["pairs"]: row for row in knowing.tables["reward"]["groups"]}
    assert (
        groups["the longer one is chosen"]["rule"]["value"] == 1
        and groups["the shorter one is chosen"]["rule"]["value"] == 0
    )
    assert "chosen is as long, to 10%" in groups and groups["all pairs"]["n"] == len(pairs)


# By hand


def test_what_statistics_make_of_sums():
    """Ratios 0.1 and 0.3 have mean 0.2 and deviation 0.1. Right in one of two and in one of one: the mean of 1/2 and 1.
    Of 4 like pairs 2 agree, of 10 unlike 8: 0.8 - 0.5."""
    assert cohens_d(np.array([2, 0.4, 0.1])) == pytest.approx(2)
    assert balanced(np.array([2, 1, 1, 1])) == 0.75
    assert agreement_lost(np.array([4, 2, 10, 8])) == pytest.approx(0.3)


def pair(row: int, chosen: str, rejected: str, names=None, prompt: str | None = None) -> Pair:
    prompt = prompt or f"prompt {row}"
    return Pair(row, {"prompt": prompt}, (prompt,), prompt, chosen, rejected, names)


def test_the_rank_is_found_on_pairs_of_unlike_lengths():
    """There a wins 60 of 60, and of 100 pairs of like lengths none: all of its agreement is lost."""
    pairs = [pair(row, "x" * 30, "x" * 20, ("a", "b")) for row in range(60)]
    pairs += [pair(row, "x" * 22, "y" * 20, ("b", "a")) for row in range(60, 160)]
    flag = rank_flag(pairs, seed=0)
    assert flag.raised and flag.estimate == (1.0, (1.0, 1.0), 160)
    assert rank_flag(pairs[20:], seed=0).raised is None  # 40 unlike ones are too few


def test_a_circle_of_which_no_side_is_sure_is_none():
    """Each beats the next in 3 of 5: Wilson's interval of 3 of 5 begins at 0.23; in 30 of 31 it begins at 0.84."""
    links = [("a", "b"), ("b", "c"), ("c", "a")]
    games = [link for link in links for _ in range(3)] + [link[::-1] for link in links for _ in range(2)]
    pairs = [pair(row, "x", "y", names) for row, names in enumerate(games)]
    assert configurations_flag(pairs).estimate.value == 0 and configurations_flag(pairs).raised is False
    sure = [pair(row, "x", "y", names) for row, names in enumerate(games[:9] * 10 + games[9::2])]
    assert configurations_flag(sure).raised and configurations_flag(sure).estimate.value == 1
    assert configurations_flag(pairs[:3]).raised is None  # a and b alone


def test_prompts_whose_comparisons_close_no_ring_are_not_counted():
    """One chain, one ring that is none of circles, one circle: 1 of 2, told link by link."""
    edges = {"chain": ["ab", "bc"], "ring": ["ab", "bc", "ac"], "circle": ["ab", "bc", "ca"]}
    named = [(name, edge) for name, own in edges.items() for edge in own]
    flag = circles_flag([pair(row, *edge, prompt=name) for row, (name, edge) in enumerate(named)])
    assert flag.estimate.value == 0.5 and flag.estimate.n == 2
    assert [(each["prompt"], each["note"]) for each in flag.examples] == [
        ("circle", f"{number} of 3 in a circle") for number in (1, 2, 3)
    ]
    assert circles_flag([pair(0, "a", "b"), pair(1, "b", "c")]).raised is None


def test_reversed_pairs_and_responses_on_both_sides():
    """Rows 0 and 1 contradict each other, so "a" and "b" are on both sides; those of row 2 differ by case alone; and
    "c" is on both sides for different prompts."""
    rows = [("a", "b", "p"), (" B", "A", "p"), ("Yes.", "yes.", "q"), ("c", "d", "r"), ("e", "c", "s")]
    flag = reversed_flag([pair(row, *texts, prompt=prompt) for row, (*texts, prompt) in enumerate(rows)])
    assert flag.estimate.value == 0.4 and [each["row"] for each in flag.examples] == [0, 1]
    assert flag.tables["both_sides"] == {"for one prompt, as a chain of three has it": 2, "for different prompts": 1}


def test_clustered_by_hand():
    """Two prompts of two pairs that go together: sums of hit - 1/2 are 1 and -1, so 4 items are worth 1/4 16 / 2 = 2;
    four prompts: each sum is 1/2, and 1/4 16 / 1 = 4. Where all hit, each prompt is worth one."""
    assert clustered([1, 1, 0, 0], "aabb") == wilson(1, 2)
    assert clustered([1, 1, 0, 0], "abcd") == wilson(2, 4)
    assert clustered([1, 1, 1, 1], "aabb") == wilson(2, 2)


def test_clustered_covers():
    """Shares of 60 prompts of three pairs, which hit together as often as the prompt's own share says: the interval
    holds the true share, 1/2, about 19 times of 20, and that of independent pairs far less often."""
    draw = np.random.default_rng(0)
    groups = np.repeat(range(60), 3)
    apart = together = 0
    for _ in range(400):
        hits = (draw.random(180) < draw.beta(0.5, 0.5, 60).repeat(3)).astype(float)
        low, high = clustered(hits.tolist(), groups.tolist())
        together += low <= 0.5 <= high
        low, high = wilson(hits.sum(), 180)
        apart += low <= 0.5 <= high
    assert 0.92 <= together / 400 <= 0.98 and apart / 400 < 0.88


@pytest.mark.parametrize(
    "interval, bounds, raised",
    [
        ((0.61, 0.8), {"above": 0.6, "below": 0.4}, True),
        ((0.59, 0.8), {"above": 0.6, "below": 0.4}, False),
        ((0.2, 0.39), {"above": 0.6, "below": 0.4}, True),
        ((0.3, 0.45), {"above": 0.6, "below": 0.4}, False),
        ((0.51, 0.9), {"over": 0.5}, False),
        ((0.49, 0.9), {"over": 0.5}, True),
    ],
)
def test_a_flag_is_raised_by_its_whole_interval(interval, bounds, raised):
    assert Flag("", "", "", Estimate(sum(interval) / 2, interval, 9), **bounds).raised is raised


def test_none_found_is_no_flag_even_where_none_is_the_threshold():
    """Wilson's interval of 0 of 7 begins at 0 but for rounding."""
    assert Flag("", "", "", Estimate(0.0, (1e-18, 0.3), 7), above=0).raised is False
    assert Flag("", "", "", None, above=0).raised is None


def test_strengths_of_two_by_hand():
    """7 wins to 1, and half a win more on both sides: 7.5 to 1.5, so sigmoid(a - b) = 5/6 and a - b = log 5."""
    found = strengths(Counter({("a", "b"): 7, ("b", "a"): 1}))
    assert list(found) == ["a", "b"] and found["a"] - found["b"] == pytest.approx(math.log(5))
    assert strengths(Counter()) == {}


def test_strengths_rank_a_chain_of_which_only_neighbours_met():
    assert list(strengths(Counter({("c", "d"): 9, ("a", "b"): 30, ("b", "c"): 20}))) == ["a", "b", "c", "d"]


def test_majorities_and_circles():
    wins = Counter({("a", "b"): 3, ("b", "a"): 5, ("c", "a"): 1, ("d", "a"): 2, ("a", "d"): 2})
    assert majorities(wins) == {("b", "a"): (5 / 8, wilson(5, 8)), ("c", "a"): (1.0, wilson(1, 1))}
    beats = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    ring = circle(beats)
    assert sorted(ring) == ["a", "b", "c"]
    assert all(after in beats[each] for each, after in zip(ring, ring[1:] + ring[:1], strict=True))
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
    assert has_ring([("a", "b"), ("c", "b"), ("a", "c")]) and not has_ring([("a", "b"), ("c", "b"), ("d", "c")])


@pytest.mark.parametrize(
    "meta, names",
    [("13b-vs-7b", ("13b", "7b")), ("a-vs-b-vs-c", None), ("a-vs-a", None), ("-vs-b", None), (None, None), (3, None)],
)
def test_configurations_of(meta, names):
    assert configurations_of(meta) == names


def test_wording():
    assert distinct([["a", "b", "c"], ["a", "b"]], 2) == 2 / 3 and distinct([["a"]], 2) == 1
    assert repeated("A b, c d! a b c d") == pytest.approx(0.2) and repeated("one") == 0


@pytest.mark.parametrize(
    "text, is_one",
    [
        ("I’m sorry, but I can’t help with that.", True),
        ("As an AI language model, I don't have feelings.", True),
        ("I cannot provide legal advice.", True),
        ("I'm sorry to hear that! You can mend it.", False),
        ("As an AI assistant, I can suggest three things.", False),
        ("A cat cannot taste sugar, and I answer gladly.", False),
        ("x" * 400 + " I'm sorry, but I can't help with that.", False),
    ],
)
def test_refuses(text, is_one):
    assert refuses(text) is is_one


# Forms


def test_pairs_of_each_form(tmp_path):
    rows = [
        {"system": "Be brief.", "prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "meta": "a-vs-b"},
        {"text": ["\n\nHuman: Hi?\n\nAssistant: No.", "\n\nHuman: Hi?\n\nAssistant: Yes."], "score": [0, 1]},
        {"question": "Hi?", "answer_0": "Yes.", "answer_1": "No.", "score_0": 1, "score_1": 0},
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "Yes."},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, dropped = read_pairs(str(tmp_path / "rows.jsonl"))
    assert [(pair.chosen, pair.rejected, pair.turns) for pair in pairs] == [("Yes.", "No.", ("Hi?",))] * 3
    assert [pair.first for pair in pairs] == [None, False, True]
    assert [pair.configurations for pair in pairs] == [("a", "b"), None, None]
    assert [pair.prompt for pair in pairs] == ["system: Be brief.\n\nuser: Hi?", "Hi?", "Hi?"]
    assert dropped == {"equal responses": [3]}


TALK = "\n\nHuman: What grows on trees?\n\nAssistant: Leaves.\n\nHuman: And what else of that kind?\n\nAssistant:"
FORMS = {
    "static HHH": [{"chosen": f"{TALK} Fruit.", "rejected": f"{TALK} Money.", "type": "honest"}],
    "TruthfulQA": [
        {
            "question": "Does money grow on trees?",
            "mc1_targets": {"No.": 1, "Yes.": 0},
            "mc2_targets": {"No.": 1, "Yes.": 0},
        }
    ],
    "Vicuna": [{"question_id": 1, "category": "generic", "text": "Does money grow on trees?"}],
    "MT-Bench": [{"question_id": 81, "category": "writing", "turns": ["Write.", "Write it once more."]}],
    "AlpacaEval": [{"instruction": "Does money grow on trees?", "output": "No.", "generator": "g", "dataset": "d"}],
}


@pytest.mark.parametrize("name", FORMS)
def test_benches_in_their_released_forms(tmp_path, name):
    (tmp_path / "bench.json").write_text(json.dumps(FORMS[name]))
    bench = read_bench(tmp_path / "bench.json")
    expected = {
        "static HHH": ["What grows on trees?\nLeaves.\nAnd what else of that kind?"],
        "MT-Bench": ["Write.", "Write it once more."],
    }
    assert bench == (name, [expected.get(name, ["Does money grow on trees?"])])


def test_what_leaks_and_what_does_not(tmp_path):
    """Items of 6, 9 and 14 words: short ones only whole, of the middle one all words, of the long one a run of 13."""
    long = "please list the seven wonders of the old world in order of their age"
    rows = ["Why do cats purr so loudly?", "Why do some cats purr at night and others not?", long]
    bench = tmp_path / "bench.jsonl"
    bench.write_text("".join(json.dumps({"question_id": n, "text": text}) + "\n" for n, text in enumerate(rows)))
    leaks = Leaks(read_bench(bench))

    def found(*whole, inside=()):
        return [(leak.item, leak.way) for leak in leaks.of(whole, inside)]

    assert found("why do CATS  purr so loudly?") == [(0, "exact")]
    assert found("Tell me: why do cats purr so loudly?") == found("Why do cats purr so softly?") == []
    assert found("Q: why do some cats purr at night and others not? A:") == [(1, "run of words")]
    assert found("Why do some cats purr at night and others sing?") == []
    assert found("x", inside=["You asked me: " + long.removeprefix("please ")]) == [(2, "run of words")]
    assert found(long.replace("old", "new").replace("age", "size")) == [(2, "near")]


def test_an_item_counts_once_by_the_first_way_anywhere():
    """Inside a prompt, as a prompt, and in a response to another."""
    text = "please list the seven wonders of the old world in order of their age"
    pairs = [pair(0, "x", "y", prompt=f"And now {text}"), pair(1, "x", "y", prompt=text), pair(2, f"So {text}", "y")]
    flag = leaks_flag([*pairs, pair(3, "x", "y")], [Bench("b", [[text], ["no item"]])])
    assert flag.estimate.value == 0.75 and flag.raised
    assert flag.tables["benches"] == [{"bench": "b", "items": 2, "found": 1, "exact": 1}]
    assert [each["row"] for each in flag.examples] == [1, 0, 2]  # the exact one first


def test_an_example_of_each_dropped_rule(tmp_path):
    kept = "This is a response of more than fifty characters, and it ends well."
    rows = [
        {"prompt": "p", "chosen": kept, "rejected": "Too short."},
        {"prompt": "q", "chosen": f"Well. {kept}", "rejected": kept},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    rules = dropped_rules(read_pairs(str(tmp_path / "rows.json"))[0])
    assert [(each["reason"], each["chosen"], each["rejected"]) for each in rules] == [
        ("under 50 characters", 0, 1),
        ("starts with well", 1, 0),
    ]
    assert [each["example"]["response"] for each in rules] == ["Too short.", f"Well. {kept}"]


# The script


def run(*words):
    audit_comparisons.main(audit_comparisons.parse_args([str(word) for word in words]))


HOSTILE = "</script><img src=x onerror=alert(1)>"
ROWS = [{"prompt": f"{HOSTILE} {i}", "chosen": f"{HOSTILE} One. Two.", "rejected": "One."} for i in range(3)]


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS + ROWS[:1]))
    return tmp_path / "rows.json"


def test_page_json_and_card(tmp_path, rows, capsys):
    words = (rows, "--output_file", tmp_path / "audit.html", "--reward_model", "simulated?noise=0")
    run(*words)
    html, beside = (tmp_path / "audit.html").read_text(), json.loads((tmp_path / "audit.json").read_text())
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1])
    assert data == beside and "<img" not in html and "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    (flag,) = [each for each in data["flags"] if each["name"] == TWICE]
    assert flag["estimate"]["value"] == 0.25 and [each["row"] for each in flag["examples"]] == [3]
    assert flag["examples"][0]["note"] == "as row 0" and flag["examples"][0]["prompt"] == f"{HOSTILE} 0"
    card = json.loads((tmp_path / "audit.html.run.json").read_text())
    assert card["counts"] == data["counts"] and str(rows) in card["inputs"]
    assert data["reward"]["groups"][0]["model"]["value"] == 1  # it counts sentences
    capsys.readouterr()
    run(*words)
    assert "already made of this, finished; nothing to do" in capsys.readouterr().out


def test_without_the_json_it_is_not_finished(tmp_path, rows):
    run(rows, "--output_file", tmp_path / "audit.html")
    (tmp_path / "audit.json").unlink()
    run(rows, "--output_file", tmp_path / "audit.html")
    assert (tmp_path / "audit.json").exists()


def test_what_is_refused(tmp_path, rows):
    none, other, policy = tmp_path / "none.json", tmp_path / "other.json", tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    none.write_text(json.dumps([{"prompt": "p", "chosen": "same", "rejected": "same"}]))
    other.write_text(json.dumps([{"a": 1}]))
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    page = ("--output_file", tmp_path / "audit.html")
    for words, complaint in (
        ((none, *page), "none.json has no pair that teaches anything: 1 equal responses"),
        ((other, *page), "other.json has a; comparisons need chosen"),
        ((rows, *page, "--bench", other), "benchmark .*other.json has a: no released form"),
        ((rows, "--output_file", tmp_path / "rows.html"), "rows.json is an input of this run"),
        ((rows, *page, "--reward_model", policy), "is no reward model"),
    ):
        with pytest.raises(UserError, match=complaint):
            run(*words)
    with pytest.raises(SystemExit) as exit:
        run(rows, "--output_file", rows)
    assert exit.value.code == 2
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    assert list(tmp_path.glob("*.html*")) == []

"""Where does a row come from? Back to the request, prompt, seed and engine, and to the journal's line with the reply.

    python scripts/explain.py outputs/dry-run/comparison.json 0
    python scripts/explain.py outputs/janus/multifaceted_dpo.json 3 --whole

FILE is comparison.json, a response file or prompts.txt of synthetic_feedback.py; almost_train.json of self_play.py;
what scripts/annotate_judgments.py wrote; or a multifaceted set, or a file between the modes, of system_messages.py.
Each stage on the way is run again by its own code, in a temporary folder and without its model. So a request is shown
as it was sent, and the journal's key, a hash of engine, sampling, prompt and seed, proves it. Nothing is written beside
FILE.

What cannot be told is said in a line each, which opens with "cannot tell". Exit code 0: all is found. 1: something is
not, or is no longer as its card tells. 2: FILE has no run card, or no such row.
"""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, permutations
from pathlib import Path
from typing import Any

from alignment import comparisons, few_shot, records
from alignment.command_line import ArgumentParser, UserError, boolean, number, run
from alignment.generation import Request, record_seed
from alignment.janus import preferences, rows, splits
from alignment.judging.judgments import read_instructions
from alignment.replays import Asked, Made

HEAD, TAIL = 240, 480  # characters of a long text that are shown without --whole
SIDES = ("chosen", "rejected")
NO_LINE = "engine, sampling, prompt or seed was another (a model's folder counts by path and times), or none came"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal would obey


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("file", metavar="FILE", type=Path, help="a finished output, with its run card beside it")
    parser.add_argument("row", metavar="ROW", type=number(int, 0), help="from 0; of prompts.txt a line, from 0 too")
    shown = "show long texts whole (default: their beginnings and ends)"
    parser.add_argument("--whole", type=boolean, nargs="?", const=True, default=False, help=shown)
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    is_set = args.file.name in rows.FILES.values()
    made = Made.of(args.file.with_name(rows.FILES["sft"]) if is_set else args.file)
    explain = KINDS.get((made.script, made.mode))
    if explain is None:
        raise UserError(f"{args.file} was made by {made.stage}, of which no row is explained")
    found = rows_of(args.file, made.mode)
    if args.row >= len(found):
        raise UserError(f"{args.file} has no row {args.row}: it has {len(found):,}, and the first is row 0")
    trace = Trace(args.whole)
    trace.section(f"{args.file}, row {args.row}")
    trace.step(explain, made.output, args.file, found, args.row)
    if trace.untold:
        sys.exit(1)


@dataclass
class Again:
    """What a stage that was run again asked, in order, and the rows that it made."""

    asked: list[Asked]
    rows: list

    @cached_property
    def _by_seed(self) -> dict[int, list[Asked]]:
        found: dict[int, list[Asked]] = {}
        for each in self.asked:
            found.setdefault(each.request.seed, []).append(each)
        return found

    def found(self, derivation: tuple, clue: str = "") -> Asked | None:
        """The request of a seed. Of several, as seeds of 31 bits may meet, one that says `clue`."""
        fits = self._by_seed.get(seed_of(derivation), [])
        return next((each for each in fits if clue in spoken(each.request)), fits[0] if fits else None)


class Trace:
    """What is printed, and how many lines of it say that something cannot be told. Each stage is run again once."""

    def __init__(self, whole: bool):
        self._whole, self.untold = whole, 0
        self._made: dict[Path, Made] = {}
        self._again: dict[Path, Again] = {}

    def section(self, title: str) -> None:
        print(f"\n{title}\n{'-' * min(len(title), 110)}")

    def fact(self, name: str, value: object) -> None:
        print(f"{name:<9}  {value}")

    def cannot(self, line: object) -> None:
        self.untold += 1
        print(f"cannot tell: {line}")

    def text(self, name: str, text: str) -> None:
        shown = text
        if not self._whole and len(text) > HEAD + TAIL:
            left = len(text) - HEAD - TAIL
            shown = f"{text[:HEAD]}\n[... {left:,} characters, shown by --whole ...]\n{text[-TAIL:]}"
        print(f"{name}, {len(text):,} characters:")
        shown = CONTROL.sub(lambda found: repr(found[0])[1:-1], shown)
        print("\n".join(f"  | {line}" for line in shown.split("\n")))

    def step(self, explain: Explain, output: Path, path: Path, found: list, at: int) -> None:
        """Explain a row of `path`, whose card is beside `output`; in a line, why it cannot be."""
        try:
            if output not in self._made:
                self._made[output] = self.card(Made.of(output))
            explain(self, self._made[output], path, found, at)
        except UserError as error:
            self.cannot(error)

    def card(self, made: Made) -> Made:
        """Tell who made a file, of what, and what is no longer as its card tells."""
        told = (made.card.get(name) for name in ("finished", "commit"))
        self.fact("made by", ", ".join(filter(None, (made.stage, *told))))
        self.fact("of", ", ".join(map(str, made.inputs)) or "nothing")
        for line in made.differences():
            self.cannot(line)
        return made

    def again(self, made: Made) -> Again:
        """What a stage asks and makes when it is run again. Raises UserError where it cannot be."""
        if made.output not in self._again:
            self._again[made.output] = Again([], [])
            if not made.journal.exists():
                self.cannot(f"the replies of {made.stage}: the journal {made.journal} is gone")
            for line in made.lines()[1]:
                self.cannot(f"line {line} of the journal {made.journal}: it is damaged")
            with made.again() as replay:
                output = replay.folder / made.output.name
                self._again[made.output] = Again(replay.asked, rows_of(output, made.mode) if output.exists() else [])
            if replay.fault and not replay.missing:
                self.cannot(f"all of {made.output.name}: run again, {made.stage} ends early: {replay.fault}")
        return self._again[made.output]

    def request(self, made: Made, asked: Asked | None, derivation: tuple, after: str, *, is_so: bool) -> None:
        """A request and its reply, and beside it the text that came of it; `is_so` where it comes of it again."""
        if asked is None or asked.request.seed != seed_of(derivation):
            self.text("in the file", after)
            return self.cannot(f"its request: run again, {made.stage} asks none of seed {seeded(derivation)}")
        self.fact("seed", seeded(derivation))
        self.fact("engine", asked.identity)
        told = {name: value for name, value in asked.sampling.determinants.items() if name != "schema"}
        schema = ", under a JSON schema" if asked.sampling.schema else ""
        self.fact("sampling", ", ".join(f"{name} {value}" for name, value in told.items()) + schema)
        self.fact("key", asked.key)
        if asked.line:
            self.fact("journal", f"{made.journal}, line {asked.line.number}, finish {asked.line.finish!r}")
        self.text("prompt sent", spoken(asked.request))
        if asked.line:
            self.text("reply as it came", asked.line.text)
        self.text("in the file", after)
        if asked.line and not is_so:
            self.cannot(f"why {made.output.name} has this text: of the journal's replies {made.stage} makes another")
        elif not asked.line and is_so:
            self.fact("journal", "no line has this key: no whole reply came")
        elif not asked.line and made.journal.exists():
            self.cannot(f"its reply: no line of {made.journal} has this key; {NO_LINE}")


Explain = Callable[[Trace, Made, Path, list, int], None]


def rows_of(path: Path, mode: str | None) -> list:
    """The rows of a file that a stage writes. Raises UserError where it holds others."""
    if mode == "pg":
        return records.read_prompts(path)
    if mode == "rg":
        return list(records.replies_of(path))
    return list(rows.stage_rows(path, mode)) if mode in rows.STAGES else records.read_rows(path)


def seeded(derivation: tuple) -> str:
    """A seed, and what it is derived from."""
    return f"{seed_of(derivation)} = {told_of(derivation)}"


def told_of(derivation: object) -> str:
    inside = isinstance(derivation, tuple)
    return f"record_seed({', '.join(map(told_of, derivation))})" if inside else repr(derivation)


def seed_of(derivation: tuple) -> int:
    """The seed of the run's own and what names a record; of a further try under a schema, of that of the first."""
    first, *rest = derivation
    return record_seed(seed_of(first) if isinstance(first, tuple) else first, *rest)


def spoken(request: Request) -> str:
    """What was sent, as text: of messages each under its role; token ids as numbers."""
    if request.is_chat:
        return "\n".join(f"[{each['role']}]\n{each['content']}" for each in request.prompt)
    return request.prompt if isinstance(request.prompt, str) else f"as token ids, {request.prompt}"


# ALMoST, synthetic_feedback.py


def comparison(trace: Trace, made: Made, path: Path, found: list, at: int) -> None:
    args, row = made.args(), found[at]
    names, ranks = comparisons.parse_rubric(args.rubric)
    prompts_file, *files = (path.with_name(file.name) for file in made.inputs)
    prompts = records.read_prompts(prompts_file)[: args.limit]
    responses = [records.read_responses(file, len(prompts), args.limit) for file in files]
    form = comparisons.in_messages if args.format == "messages" else dict

    def pairs(place: int) -> Iterator[dict]:
        """What cs makes of one prompt."""
        own = [[replies[place]] for replies in responses]
        return map(form, comparisons.compare([prompts[place]], own, names, ranks, comparisons.Waterfall(names)))

    same = found[:at].count(row)
    places = (place for place in range(len(prompts)) if row in pairs(place))
    place = next(islice(places, same, None), None)  # of rows that are the same the n-th is of the n-th such prompt
    if place is None:
        return trace.cannot(f"its prompt: of no line of {prompts_file} does cs make this row")
    trace.fact("prompt", f"line {place} of {prompts_file}, from 0")
    both = next(
        pair for pair in permutations(range(len(names)), 2) if row["meta"] == "-vs-".join(names[n] for n in pair)
    )
    for side, column in zip(SIDES, both, strict=True):
        trace.section(f"{side}: {files[column]}, row {place}, rank {ranks[column]} (0 is the best)")
        trace.step(response, files[column], files[column], responses[column], place)
    trace.section(f"prompt: {prompts_file}, line {place} from 0")
    trace.step(prompt, prompts_file, prompts_file, prompts, place)


def response(trace: Trace, made: Made, path: Path, found: list, at: int) -> None:
    """A reply of rg. The n-th request is of the n-th prompt."""
    again, args = trace.again(made), made.args()
    shown = few_shot.Demonstrations.read(args.prompt_file_path[0], args.n_shot[0])
    derivation = (args.seed, shown.name, args.n_shot[0], at)
    asked = again.asked[at] if at < len(again.asked) else None
    is_so = at < len(again.rows) and again.rows[at] == found[at]
    trace.request(made, asked, derivation, "(null: no reply)" if found[at] is None else found[at], is_so=is_so)


def prompt(trace: Trace, made: Made, path: Path, found: list, at: int) -> None:
    """A prompt of pg: the first candidate that reads as it was accepted, as later ones are near duplicates of it."""
    again, args = trace.again(made), made.args()
    parse = few_shot.parse_query_as_released if args.legacy else few_shot.parse_query
    places = (place for place, each in enumerate(again.asked) if each.line and parse(each.line.text) == found[at])
    place = next(places, None)
    if place is None:
        return trace.cannot(f"its request: no reply in the journal of {path.name} reads as this prompt")
    is_so = at < len(again.rows) and again.rows[at] == found[at]
    trace.fact("candidate", f"{place}, from 0")
    trace.request(made, again.asked[place], (args.seed, "pg", place), found[at], is_so=is_so)


# ALMoST, self_play.py


def answer(trace: Trace, made: Made, path: Path, found: list, at: int) -> None:
    """An answer: its dialogue and turn by self_play.jsonl, its request, the user's message before it, the prompt."""
    told, args, row = path.with_name("self_play.jsonl"), made.args(), found[at]
    try:
        dialogue, place, turn = next(islice(answers(told), at, None))
        is_it = row == {"input": turn["input"], "output": turn["candidates"][turn["chosen"]]["output"]}
    except (StopIteration, LookupError, TypeError):
        is_it = False
    if not is_it:
        return trace.cannot(f"its dialogue: answer {at} of {told} is another")
    again = trace.again(made)
    trace.fact("dialogue", f"{dialogue}, turn {place}, candidate {turn['chosen']} of {len(turn['candidates'])}, from 0")
    rewards = [each["reward"] if each["dropped"] is None else each["dropped"] for each in turn["candidates"]]
    trace.fact("rewards", f"{', '.join(map(str, rewards))}; chosen by --choose {args.choose}")
    derivation = (args.seed, "assistant", dialogue, place, turn["chosen"])
    asked, is_so = again.found(derivation, turn["user"]), row in again.rows
    trace.request(made, asked, derivation, row["output"], is_so=is_so)
    if place:
        trace.section(f"the user's message before it: dialogue {dialogue}, turn {place}")
        derivation = (args.seed, "user", dialogue, place)
        trace.request(made, again.found(derivation), derivation, turn["user"], is_so=is_so)
    file = records.prompts_file(path.parent)
    trace.section(f"prompt: {file}, line {dialogue} from 0")
    trace.step(prompt, file, file, records.read_prompts(file), dialogue)


def answers(path: Path) -> Iterator[tuple[int, int, dict]]:
    """(dialogue, turn, what self_play.jsonl tells of it) of each answer, in the order of almost_train.json."""
    for dialogue, line in enumerate(records.read_rows(path)):
        for place, turn in enumerate(line["turns"]):
            if turn["chosen"] is not None:
                yield dialogue, place, turn


# CUT, scripts/annotate_judgments.py


def judgment(trace: Trace, made: Made, path: Path, found: list, at: int) -> None:
    args, row = made.args(), found[at]
    sources = read_instructions(str(args.data_path), with_output=True)[: args.limit]
    keys = ("id", "instruction", "input", "output")
    places = [place for place, each in enumerate(sources) if all(each[key] == row.get(key) for key in keys)]
    same = sum(all(each.get(key) == row.get(key) for key in keys) for each in found[:at])
    if same >= len(places):
        return trace.cannot(f"its source: no row of {args.data_path} has its id, instruction, input and output")
    place, again = places[same], trace.again(made)
    trace.fact("source", f"{args.data_path}, row {place}")
    derivation = (args.seed, "judge", place)
    after = "(null: satisfactory)" if row["judgment"] is None else row["judgment"]
    trace.request(made, again.found(derivation, row["output"]), derivation, after, is_so=row in again.rows)


# Janus, system_messages.py


def published(trace: Trace, made: Made, path: Path, found: list, at: int) -> None:
    """A row of a multifaceted set, by the responses that ds makes it of, and by what was asked for each of these."""
    kind = next(kind for kind, name in rows.FILES.items() if name == path.name)
    args, row, mode = made.args(), found[at], "rb" if kind == "bench" else "gr"
    source = path.with_name(rows.STAGES[mode])
    makers: dict[str, Callable[[list[dict]], Iterable[dict]]] = {
        "sft": splits.demonstrations,
        "small": lambda own: splits.one_each(own, args.seed),
        "bench": lambda own: (splits.bench_row(each, each["rubrics"]) for each in own),
    }
    maker = makers.get(kind, lambda own: splits.pairs(own, kind, args.seed))
    all_rows = rows.stage_rows(source, mode)
    own = next((own for own in splits.by_instruction(all_rows) if row in maker(own)), None)
    if own is None:
        return trace.cannot(f"its responses: of no instruction of {source} does ds make this row")
    if kind not in ("sft", "bench"):
        trace.fact("drawn by", seeded((args.seed, kind, own[0]["id"])))
    sides = {"response": next((each for each in own if row in maker([each])), None)}
    if kind in splits.PAIRS:
        split = "bench" if kind == "rm_test" else "train"
        pair = splits.draw_pair([each for each in own if each["split"] == split], kind, args.seed)
        sides = dict(zip(SIDES, pair, strict=True))
    for side, each in sides.items():
        for mode in [*["rb"][: kind == "bench"], "gr", "sm", "pa"]:
            written_by(trace, path.parent, mode, each, side)


def written_by(trace: Trace, folder: Path, mode: str, row: dict, side: str) -> None:
    """What one mode added to a row: what it is now, and the request that it came of; of rb one for each preference."""
    path = folder / rows.STAGES[mode]
    found = list(rows.stage_rows(path, mode))
    place = next((n for n, each in enumerate(found) if (each["id"], each["set"]) == (row["id"], row["set"])), None)
    trace.section(f"{side}, {rows.ADDS[mode]}: {path}, row {place}, id {row['id']!r}, set {row['set']}")
    if place is None or found[place][rows.ADDS[mode]] != row[rows.ADDS[mode]]:
        return trace.cannot(f"its {rows.ADDS[mode]}: it is none of {path}")
    trace.step(stage_row, path, path, found, place)


def stage_row(trace: Trace, made: Made, path: Path, found: list, at: int) -> None:
    again, args, row = trace.again(made), made.args(), found[at]
    mode, name, key = made.mode, (row["id"], row["set"]), rows.ADDS[made.mode]
    is_so = any(each[key] == row[key] for each in again.rows if (each["id"], each["set"]) == name)
    if mode == "pa":
        trace.fact("source", instruction_place(args, row["id"]))
    parts = [each["dimension"] for each in row["preference_set"]] if mode == "rb" else [None]
    for part, value in zip(parts, row[key] if mode == "rb" else [row[key]], strict=True):
        named = (args.seed, mode, *name, *filter(None, [part]))
        tries: list[tuple] = []
        for first in [(*named, attempt) for attempt in range(args.tries)]:
            tries += [first, *((first, "schema", more) for more in range(args.schema_retries))]
        clue = preferences.listed(row["preference_set"]) if mode == "sm" else row["prompt"]
        chain = [(each, asked) for each in tries if (asked := again.found(each, clue))]
        derivation, asked = chain[-1] if chain else (tries[0], None)
        if part:
            print(f"\n{part}")
        if len(chain) > 1:
            trace.fact("tries", f"{len(chain)}; the last one's reply could be used")
        trace.request(made, asked, derivation, value_text(mode, value), is_so=is_so)


def value_text(mode: str, value: Any) -> str:
    if mode == "pa":
        return preferences.listed(value)
    return json.dumps(value, indent=1, ensure_ascii=False) if mode == "rb" else value


def instruction_place(args: Namespace, name: object) -> str:
    """Where an instruction is, of pa's inputs."""
    for path in (*args.data_path, *(args.bench_data_path or [])):
        for place, row in enumerate(rows.read_instructions([path], args.instruction_key)):
            if row["id"] == name:
                return f"{path}, row {place}"
    return f"id {name!r}"


KINDS: dict[tuple[str, str | None], Explain] = {
    ("synthetic_feedback.py", "pg"): prompt,
    ("synthetic_feedback.py", "rg"): response,
    ("synthetic_feedback.py", "cs"): comparison,
    ("self_play.py", None): answer,
    ("annotate_judgments.py", None): judgment,
    **{("system_messages.py", mode): stage_row for mode in rows.STAGES},
    ("system_messages.py", "ds"): published,
}


if __name__ == "__main__":
    run(parse_args, main)

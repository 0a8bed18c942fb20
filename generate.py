r"""Checkpoint + instructions -> responses, in the form that alpaca_eval reads.

    python generate.py --base_model_name_or_path saved_models/cut-1plus-13b
    python generate.py --base_model_name_or_path saved_models/cut-1plus-13b --interactive

Reads the 805 instructions of AlpacaEval from the hub, or --data_path: .json or .jsonl rows, or .txt with an instruction
a line. What the user says is under --user_key, an `input` of the row a line below it, a system message under
--system_key. Writes [{"instruction", "system", "output", "generator", "dataset"}, ...] to
<checkpoint>/alpaca_eval.json or --output_file, whole, with a run card beside it; all rows, greedy, as released. A
journal beside the output keeps what is finished, so an interrupted run goes on. --interactive is a chat in the terminal
instead, streamed; it needs transformers alone.

    python generate.py --base_model_name_or_path outputs/janus_sft --data_path multifaceted_bench.json --recipe janus

    python generate.py --base_model_name_or_path saved_models/policy --template almost --temperature 1 --n 4 \
        --reward_model outputs/reward-model

Best of n: of --n candidates a row the output takes the one that --choose names. Beside it, under its stem:

    .candidates.jsonl  a line a row: {"instruction", "candidates": [{"output", "reward", "finish"}], "chosen": index}
    .best_of_n.json    from these rewards, what choosing among n would bring for every n up to N; and .png
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from alignment.best_of_n import (
    Answered,
    Chosen,
    Curve,
    candidate_of,
    candidate_seeds,
    chosen_in,
    curve_table,
    points_shown,
    pool_line,
    with_rewards,
)
from alignment.command_line import ArgumentParser, UserError, boolean, nearest, number, run
from alignment.engines import add_engine_arguments, engine_from, models_read
from alignment.engines.scoring import add_scorer_arguments, models_scored_by, scorer_from, scores_of
from alignment.generation import (
    AT_ONCE,
    JANUS,
    Engine,
    Reply,
    Request,
    Sampling,
    parts,
    record_seed,
    refuse_failures,
    stream,
)
from alignment.hub import hub_file
from alignment.journal import Journal
from alignment.pretrained import check_model, load_pretrained, load_tokenizer, local_folder
from alignment.ranking import WAYS
from alignment.records import json_list, lines_of, prompts_of, rows_of, write_whole
from alignment.run_cards import check_no_input, claim
from alignment.templates import CHOICES, Template, rendering_from, template_name

ALPACA_EVAL = ("tatsu-lab/alpaca_eval", "alpaca_eval.json")
OUTPUT_NAME = "alpaca_eval.json"
MOST = 100_000  # candidates
USER_KEYS = ("instruction", "prompt", "user_prompt", "input")  # where a row may say what the user says
# Sampling as the papers' released code has it: CUT's, and by --recipe
RELEASED = dict(temperature=0.0, top_p=1.0, repetition_penalty=1.0, max_new_tokens=2048)
RECIPES = {"janus": JANUS | dict(max_new_tokens=1024)}


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument(
        "--base_model_name_or_path",
        "--model_name_or_path",
        dest="model_name_or_path",
        required=True,
        metavar="MODEL",
        help="folder or hub name of the checkpoint",
    )
    parser.add_argument("--data_path", type=Path, help=".json or .jsonl (default: AlpacaEval's, from the hub)")
    parser.add_argument("--output_file", type=Path, help=f"default: {OUTPUT_NAME} in the checkpoint's folder")
    shown = f"column of what the user says (default: the first there of {', '.join(USER_KEYS)})"
    parser.add_argument("--user_key", metavar="KEY", help=shown)
    shown = "column of the system message, none where it is null or empty (default: system, where there is one)"
    parser.add_argument("--system_key", metavar="KEY", help=shown)
    shown = "default: the one that the checkpoint says it was trained with, else alpaca, which CUT trains with"
    parser.add_argument("--template", choices=CHOICES, help=shown)
    shown = "alpaca: end a response before a further '### Instruction:' (default: False, as released)"
    parser.add_argument("--stop_at_instruction", type=boolean, nargs="?", const=True, default=False, help=shown)
    shown = "janus: temperature 1.0, top-p 0.9, repetition penalty 1.03, 1,024 new tokens, but for flags that are given"
    parser.add_argument("--recipe", choices=RECIPES, help=shown)
    parser.add_argument("--max_new_tokens", type=number(int, 1), help="default: 2048, released")
    parser.add_argument("--temperature", type=number(float, 0), help="default: 0, greedy, released")
    parser.add_argument("--top_p", type=number(float, 0, 1, above=True), help="default: 1, released")
    shown = "divides what favours a token that was there before (default: 1, off)"
    parser.add_argument("--repetition_penalty", type=number(float, 0, above=True), help=shown)
    parser.add_argument("--batch_size", type=number(int, 1), default=256, help="hf: sequences in flight (default: 256)")
    parser.add_argument("--seed", type=int, default=42, help="each row's own seed derives from it (default: 42)")
    parser.add_argument(
        "--n", type=number(int, 1, MOST), default=1, help="candidates sampled for each row (default: 1)"
    )
    shown = "the candidate that is the response: of the highest reward, any, or the longest (default: reward)"
    parser.add_argument("--choose", choices=WAYS, default="reward", help=shown)
    parser.add_argument("--skip", type=number(int, 0), default=0, help="leave out the first so many rows (default: 0)")
    parser.add_argument("--limit", type=number(int, 1), help="only the first so many instructions, for a trial")
    parser.add_argument(
        "--interactive",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="chat in the terminal; an empty line forgets the conversation, Ctrl-D ends",
    )
    add_engine_arguments(parser)
    add_scorer_arguments(parser)
    args = parser.parse_args(argv)
    for name, value in (RELEASED | RECIPES.get(args.recipe, {})).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.output_file is None and Path(args.model_name_or_path).is_dir():
        args.output_file = Path(args.model_name_or_path) / OUTPUT_NAME
    return args


# Rows


def read_asked(path: Path, user_key: str | None, system_key: str | None) -> list[dict]:
    return list(asked_rows(path, columns_of(path, user_key, system_key)))


def rows_in(path: Path) -> Iterator[dict]:
    return ({"instruction": line} for line in prompts_of(path)) if path.suffix == ".txt" else rows_of(path)


def columns_of(path: Path, user_key: str | None, system_key: str | None) -> dict[str, str]:
    """Where the rows say what they ask. Raises UserError for a key that no row has."""
    said: dict[str, bool] = {}  # key -> whether a row has something under it
    for row in rows_in(path):
        for key, value in row.items():
            said[key] = said.get(key, False) or value is not None
    for flag, key in (("--user_key", user_key), ("--system_key", system_key)):
        if key and key not in said:
            raise UserError(f"data {path} has no {key!r}, but {', '.join(said)}: {flag} {key}{nearest(key, said)}")
    user = user_key or next((key for key in USER_KEYS if said.get(key)), None)
    if user is None:
        wanted = ", ".join(USER_KEYS)
        raise UserError(f"data {path} has none of {wanted}, but {', '.join(said)}; name the column by --user_key")
    return {"instruction": user, "system": system_key or "system"} | ({"input": "input"} if user != "input" else {})


def asked_rows(path: Path, columns: dict[str, str]) -> Iterator[dict]:
    """{"instruction", "input"} of each row, one by one, and its "system", "id" and "dataset" where it has them. An
    input may be "". Raises UserError for what is no text."""
    return (asked_of(f"data {path}, row {number}", row, columns) for number, row in enumerate(rows_in(path)))


def asked_of(place: str, row: dict, columns: dict[str, str]) -> dict:
    texts = {name: row.get(key) for name, key in columns.items()}
    for name, text in texts.items():
        if not isinstance(text, str | None) or (name == "instruction" and not (text or "").strip()):
            raise UserError(f"{place} has no text under {columns[name]!r}")
    own = {name: row[name] for name in ("id", "dataset") if row.get(name) is not None}
    return {"input": ""} | own | {name: text for name, text in texts.items() if text}


def rows_at(path: Path, columns: dict[str, str], numbers: range) -> Iterator[dict]:
    return islice(asked_rows(path, columns), numbers.start, numbers.stop)


def fetch_alpaca_eval() -> Path:
    """The evaluation set's file from the hub or its cache."""
    return hub_file(*ALPACA_EVAL, "AlpacaEval", "give --data_path FILE")


def output_row(row: dict, output: str, args: Namespace, dataset: str) -> dict:
    """What alpaca_eval reads, the row's id, and its `input` and system message where it has them."""
    kept = {name: row[name] for name in ("id", "instruction", "input", "system") if row.get(name) not in ("", None)}
    generator = Path(args.model_name_or_path.partition("?")[0]).name
    return kept | {"output": output, "generator": generator, "dataset": row.get("dataset") or dataset}


def check_candidates(args: Namespace) -> None:
    """Raise UserError where the flags leave nothing to choose among, or by."""
    if args.n > 1 and args.temperature == 0:
        raise UserError(f"--n {args.n} at --temperature 0 gives {args.n} times the same response; add --temperature 1")
    if args.n > 1 and args.choose == "reward" and not args.reward_model:
        raise UserError(f"--n {args.n} needs --reward_model MODEL to choose by, or --choose longest or random")


# The script


def stops(rendering: Template, args: Namespace) -> tuple[str, ...]:
    """The texts that end a response, beside the model's own end. Released CUT has none."""
    return rendering.stop if rendering.name != "alpaca" or args.stop_at_instruction else ()


def respond(args: Namespace) -> None:
    if args.output_file is None:
        raise UserError(f"--base_model_name_or_path {args.model_name_or_path} is no folder: give --output_file")
    check_candidates(args)
    output = args.output_file
    data = Path(args.data_path or fetch_alpaca_eval())
    columns = columns_of(data, args.user_key, args.system_key)
    numbers = range(sum(1 for _ in asked_rows(data, columns)))[args.skip :][: args.limit]
    if not numbers:
        raise UserError(f"data {data}: --skip {args.skip} leaves no row")
    engine = engine_from(args)
    args.template = args.template or template_name(args, "alpaca")
    scorer = scorer_from(args) if args.reward_model or args.reward_api_base else None
    models = models_read(args) + models_scored_by(args)
    beside = [output.with_name(output.stem + end) for end in (".candidates.jsonl", ".best_of_n.json", ".best_of_n.png")]
    pool_file, curve_file, _ = beside
    made = [pool_file] * (args.n > 1 or scorer is not None) + [curve_file] * (scorer is not None)
    for path in beside:
        check_no_input(path, [data], [local_folder(model, args.cache_dir) for model in models])
    with claim(output, args, script=__file__, inputs=[data], models=models, cache_dir=args.cache_dir) as held:
        if held.is_done() and all(path.exists() for path in made):
            return print(held.already())
        held.begin()
        tally = Tally(Curve() if curve_file in made else None)
        with Journal(output) as journal:
            pools = answered(args, engine, data, columns, numbers, journal)
            if scorer is not None:
                how = {"journal": journal, "label": "rewards", "total": len(numbers) * args.n}
                pools = with_rewards(pools, partial(scores_of, scorer, **how))
            chosen = tally.of(held.of_inputs(chosen_of(pools, args, numbers)), numbers, beside)
            if pool_file in made:
                write_whole(pool_file, (pool_line(*each) for each in chosen))
                lines = zip(rows_at(data, columns, numbers), lines_of(pool_file, "candidates"), strict=True)
                chosen = ((row, line["candidates"], line["chosen"]) for row, line in lines)
            if curve_file in made:
                found = tally.curve.write(curve_file, args.seed)
            kept = ((row, None if at is None else pool[at]["output"]) for row, pool, at in filter(is_kept, chosen))
            write_whole(output, json_list(output_row(row, text, args, data.stem) for row, text in kept))
        tally.refuse_failures()
        counts = {"finish": dict(tally.finishes)}
        if curve_file in made:
            counts["best_of_n"] = found | {"curve": points_shown(found["curve"])}
        held.finish(counts)
    if curve_file in made:
        print(f"from the {found['rows']:,} of {found['of']:,} rows with all candidates: {curve_file}")
        if found["curve"]:
            print(curve_table(found["curve"]))
    left_out = f", {tally.empty} empty" if tally.empty else ""
    left_out += f", rows {', '.join(tally.lost)} left out" if tally.lost else ""
    sampled = f", {args.n} candidates each" if args.n > 1 else ""
    came = f"{tally.kept:,} responses ({dict(tally.finishes)})"
    print(f"{len(numbers):,} instructions{sampled} -> {came}{left_out}: {output}")


def answered(
    args: Namespace, engine: Engine, data: Path, columns: dict[str, str], numbers: range, journal: Journal
) -> Iterator[Answered]:
    """The rows of these numbers, each with its candidates, in their order."""
    rendering, rows = rendering_from(args, None), deque()
    ends = (rendering.end_id,) if rendering.end else ()
    how = (args.max_new_tokens, args.temperature, args.top_p, stops(rendering, args), ends)
    sampling = Sampling(*how, repetition_penalty=args.repetition_penalty)

    def requests() -> Iterator[Request]:
        left = numbers
        for some in parts(rows_at(data, columns, numbers), AT_ONCE):
            own, left = left[: len(some)], left[len(some) :]
            prompts = rendering.asked(some, lambda at, own=own: f"data {data}, row {own[at]}")
            for row, prompt, place in zip(some, prompts, own, strict=True):
                rows.append(row)
                yield from (Request(prompt, seed) for seed in candidate_seeds(args.seed, place, args.n))

    how = {"journal": journal, "label": args.output_file.stem, "total": len(numbers) * args.n}
    replies = stream(engine, requests(), sampling, **how, schema_retries=args.schema_retries)
    while own := list(islice(replies, args.n)):
        yield rows.popleft(), [candidate_of(reply) for reply in own]


def chosen_of(pools: Iterable[Answered], args: Namespace, numbers: range) -> Iterator[Chosen]:
    for (row, pool), place in zip(pools, numbers, strict=False):  # there are fewer where the data was cut meanwhile
        yield row, pool, chosen_in(pool, args.choose, record_seed(args.seed, "choose", place))


def is_kept(chosen: Chosen) -> bool:
    """Whether a row is written: with its response, or null where another run may bring one."""
    _, pool, at = chosen
    return at is not None or any(Reply(None, each["finish"]).may_heal for each in pool)


class Tally:
    """What became of the rows that passed by."""

    def __init__(self, curve: Curve | None) -> None:
        self.finishes, self.lost, self.curve = Counter(), [], curve
        self.empty, self.kept = 0, 0

    def of(self, chosen: Iterable[Chosen], numbers: range, beside: Sequence[Path]) -> Iterator[Chosen]:
        """The same, counted. After the last a UserError where none says anything; else what a run with other flags left
        `beside` goes."""
        said = False
        for each, place in zip(chosen, numbers, strict=False):
            _, pool, at = each
            finishes = [candidate["finish"] for candidate in pool]
            self.finishes.update(finishes)
            self.kept += is_kept(each)
            if self.curve:
                self.curve.add(pool)
            if at is None:
                self.lost.append(f"{place} ({', '.join(dict.fromkeys(finishes))})")
            else:
                said = said or bool(pool[at]["output"])
                self.empty += not pool[at]["output"]
            yield each
        if not said:
            self.refuse_failures()
            raise UserError(f"none of {len(numbers)} instructions got a response ({dict(self.finishes)})")
        for path in beside:
            path.unlink(missing_ok=True)

    def refuse_failures(self) -> None:
        refuse_failures(Reply(None, finish) for finish in self.finishes.elements())


def chat(args: Namespace) -> None:
    """Read a line, stream the reply, remember both where the template holds several turns."""
    import torch
    from transformers import TextStreamer

    from alignment.engines.prompts import prompt_ids

    check_model(args.model_name_or_path)
    tokenizer = load_tokenizer(args.model_name_or_path, args.cache_dir)
    rendering = rendering_from(Namespace(**vars(args) | {"backend": "hf"}), "alpaca")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = {"cache_dir": args.cache_dir, "dtype": "auto"}
    model = load_pretrained("AutoModelForCausalLM", args.model_name_or_path, **where).to(device).eval()
    sampled = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p}
    turns, remembers = [], rendering.name not in ("alpaca", "raw")
    ends = model.generation_config.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    ends |= {rendering.end_id} if rendering.end else set()
    torch.manual_seed(args.seed)
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            print()
            return
        if not said or not remembers:
            turns = []
        if not said:
            continue
        turns.append({"role": "user", "content": said})
        ids, _ = prompt_ids(tokenizer, [Request(rendering.asked([{"prompt": turns}])[0], args.seed)])
        inputs = torch.tensor(ids, device=device)
        reply = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=args.max_new_tokens,
            streamer=TextStreamer(tokenizer, skip_prompt=True),
            tokenizer=tokenizer,
            stop_strings=list(stops(rendering, args)) or None,
            repetition_penalty=args.repetition_penalty,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.eos_token_id,
            **(sampled if args.temperature else {"do_sample": False, "temperature": None, "top_p": None}),
        )
        text = tokenizer.decode(reply[0, inputs.shape[1] :], skip_special_tokens=True)
        for stop in stops(rendering, args):
            text = text.removesuffix(stop)
        turns.append({"role": "assistant", "content": text.strip()})


def main(args: Namespace) -> None:
    if args.interactive:
        chat(args)
    else:
        respond(args)


if __name__ == "__main__":
    run(parse_args, main)

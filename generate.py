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

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, boolean, nearest, number, run, table
from alignment.engines import add_engine_arguments, engine_from, models_read
from alignment.engines.scoring import Scorer, add_scorer_arguments, models_scored_by, scored, scorer_from
from alignment.generation import JANUS, Reply, Request, Sampling, generate, record_seed, refuse_failures
from alignment.intervals import with_interval
from alignment.journal import Journal
from alignment.outputs import writing
from alignment.pretrained import check_model, load_pretrained, load_tokenizer, local_folder
from alignment.ranking import WAYS, best_of_n_curve, choose
from alignment.records import hub_file, json_list, read_prompts, read_rows, write_whole
from alignment.run_cards import check_no_input, claim
from alignment.templates import CHOICES, Template, rendering_from, template_name

ALPACA_EVAL = ("tatsu-lab/alpaca_eval", "alpaca_eval.json")
OUTPUT_NAME = "alpaca_eval.json"
MOST = 100_000  # candidates
PROMPT_KEYS = ("system", "instruction", "input")  # what of a row a template reads
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
    return args


# Rows


def read_asked(path: Path, user_key: str | None, system_key: str | None) -> list[dict]:
    """{"instruction", "input"} of each row, and its "system", "id" and "dataset" where it has them. An input may be "".

    Raises UserError for a key that no row has, and for what is no text.
    """
    rows = [{"instruction": line} for line in read_prompts(path)] if path.suffix == ".txt" else read_rows(path)
    there = dict.fromkeys(key for row in rows for key in row)
    for flag, key in (("--user_key", user_key), ("--system_key", system_key)):
        if key and key not in there:
            raise UserError(f"data {path} has no {key!r}, but {', '.join(there)}: {flag} {key}{nearest(key, there)}")
    user = user_key or next((key for key in USER_KEYS if any(row.get(key) is not None for row in rows)), None)
    if user is None:
        wanted = ", ".join(USER_KEYS)
        raise UserError(f"data {path} has none of {wanted}, but {', '.join(there)}; name the column by --user_key")
    columns = {"instruction": user, "system": system_key or "system"} | ({"input": "input"} if user != "input" else {})
    return [asked_of(f"data {path}, row {number}", row, columns) for number, row in enumerate(rows)]


def asked_of(place: str, row: dict, columns: dict[str, str]) -> dict:
    texts = {name: row.get(key) for name, key in columns.items()}
    for name, text in texts.items():
        if not isinstance(text, str | None) or (name == "instruction" and not (text or "").strip()):
            raise UserError(f"{place} has no text under {columns[name]!r}")
    own = {name: row[name] for name in ("id", "dataset") if row.get(name) is not None}
    return {"input": ""} | own | {name: text for name, text in texts.items() if text}


def fetch_alpaca_eval() -> Path:
    """The evaluation set's file from the hub or its cache."""
    return hub_file(*ALPACA_EVAL, "AlpacaEval", "give --data_path FILE")


def output_row(row: dict, output: str, args: Namespace, dataset: str) -> dict:
    """What alpaca_eval reads, the row's id, and its `input` and system message where it has them."""
    kept = {name: row[name] for name in ("id", "instruction", "input", "system") if row.get(name) not in ("", None)}
    generator = Path(args.model_name_or_path.partition("?")[0]).name
    return kept | {"output": output, "generator": generator, "dataset": row.get("dataset") or dataset}


# Best of n


def check_candidates(args: Namespace) -> None:
    """Raise UserError where the flags leave nothing to choose among, or by."""
    if args.n > 1 and args.temperature == 0:
        raise UserError(f"--n {args.n} at --temperature 0 gives {args.n} times the same response; add --temperature 1")
    if args.n > 1 and args.choose == "reward" and not args.reward_model:
        raise UserError(f"--n {args.n} needs --reward_model MODEL to choose by, or --choose longest or random")


def candidate_seeds(seed: int, row: int, n: int) -> list[int]:
    """One for each candidate. The first is that of a run without --n, so that a greater n only adds to the pool."""
    return [record_seed(seed, "generate", row, *([candidate] if candidate else [])) for candidate in range(n)]


def candidate_of(reply: Reply) -> dict:
    """A reply as .candidates.jsonl tells it. One that did not come has no output; one may be empty."""
    return {"output": None if reply.text is None else reply.text.strip(), "reward": None, "finish": reply.finish}


def there(pool: Sequence[dict]) -> list[dict]:
    """The candidates that say something."""
    return [each for each in pool if each["output"]]


def give_rewards(rows: Sequence[dict], pools: Sequence[Sequence[dict]], scorer: Scorer, journal: Journal) -> None:
    """Score all candidates of all rows together, a row's next to each other: their prompt is computed once."""
    prompts = [{name: row[name] for name in PROMPT_KEYS if name in row} for row in rows]
    asked = [(prompt, each) for prompt, pool in zip(prompts, pools, strict=True) for each in there(pool)]
    texts = [each["output"] for _, each in asked]
    rewards = scored(scorer, [prompt for prompt, _ in asked], texts, journal=journal, label="rewards")
    for (_, each), reward in zip(asked, rewards, strict=True):
        each["reward"] = reward


def chosen_in(pool: Sequence[dict], how: str, seed: int) -> int | None:
    """The place of the candidate that is the row's response: of those that say something, else the first that is empty;
    None where none came."""
    places = [place for place, each in enumerate(pool) if each["output"]]
    if not places:
        return next((place for place, each in enumerate(pool) if each["output"] == ""), None)
    rewards = [pool[place]["reward"] for place in places]
    return places[choose(how, rewards, [len(pool[place]["output"]) for place in places], seed)]


def pool_line(row: dict, pool: Sequence[dict], chosen: int | None) -> str:
    told = {name: row[name] for name in ("instruction", "system") if name in row}
    line = told | {"candidates": pool, "chosen": chosen}
    return json.dumps(line, ensure_ascii=False) + "\n"


def points_shown(curve: Sequence[dict]) -> list[dict]:
    """The points for a table and an axis: n a power of two, and the last."""
    return [point for point in curve if point["n"].bit_count() == 1 or point is curve[-1]]


def curve_table(curve: Sequence[dict]) -> str:
    head = ("n", "KL bound, nats", "reward of best [95% interval]", "reward of longest", "characters of best")
    forms = {"reward": "z.3f", "longest_reward": "z.3f", "length": ".0f"}
    rows = [
        (
            point["n"],
            f"{point['kl']:.3f}",
            *(with_interval(*point[name].values(), form) for name, form in forms.items()),
        )
        for point in points_shown(curve)
    ]
    return table([head, *rows])


def draw_curve(curve: Sequence[dict], path: Path) -> None:
    """Rewards of the best and the longest, and the length of the best, over the KL bound, with their intervals."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"matplotlib is not installed: {path.with_suffix('.json').name} is written, {path.name} is not")
        return
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = {
        "mean reward": {"reward": "best of n", "longest_reward": "longest of n"},
        "mean length, characters": {"length": "best of n"},
    }
    ticks = {point["kl"]: f"{point['kl']:.2f}\n({point['n']})" for point in points_shown(curve)}
    for place, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, 2, place, title=title, xlabel="KL bound, nats (n)")
        for name, label in lines.items():
            kl = [point["kl"] for point in curve]
            axes.plot(kl, [point[name]["mean"] for point in curve], ".-", label=label)
            axes.fill_between(kl, *zip(*(point[name]["interval"] for point in curve), strict=True), alpha=0.2)
        axes.set_xticks(list(ticks), ticks.values())
        axes.legend(fontsize="x-small")
    with writing(path):
        figure.savefig(path, dpi=120)


def write_curve(path: Path, pools: Sequence[Sequence[dict]], seed: int) -> dict:
    """Write and return {"rows", "of", "curve"}: the curve over the rows of which every candidate has an output, and how
    many of the rows these are; beside it the picture."""
    whole = [pool for pool in pools if len(there(pool)) == len(pool)]
    rewards = [[each["reward"] for each in pool] for pool in whole]
    lengths = [[len(each["output"]) for each in pool] for pool in whole]
    found = {"rows": len(whole), "of": len(pools), "curve": best_of_n_curve(rewards, lengths, seed=seed)}
    write_whole(path, [json.dumps(found, indent=1) + "\n"])
    if whole:
        draw_curve(found["curve"], path.with_suffix(".png"))
    return found


# The script


def stops(rendering: Template, args: Namespace) -> tuple[str, ...]:
    """The texts that end a response, beside the model's own end. Released CUT has none."""
    return rendering.stop if rendering.name != "alpaca" or args.stop_at_instruction else ()


def respond(args: Namespace) -> None:
    if args.output_file is None and not Path(args.model_name_or_path).is_dir():
        raise UserError(f"--base_model_name_or_path {args.model_name_or_path} is no folder: give --output_file")
    check_candidates(args)
    output = args.output_file or Path(args.model_name_or_path) / OUTPUT_NAME
    data = args.data_path or fetch_alpaca_eval()
    rows = read_asked(Path(data), args.user_key, args.system_key)[args.skip :][: args.limit]
    if not rows:
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
        rendering = rendering_from(args, None)
        ends = (rendering.end_id,) if rendering.end else ()
        how = (args.max_new_tokens, args.temperature, args.top_p, stops(rendering, args), ends)
        sampling = Sampling(*how, repetition_penalty=args.repetition_penalty)
        numbers = range(args.skip, args.skip + len(rows))
        prompts = rendering.asked(rows, lambda at: f"data {data}, row {args.skip + at}")
        seeds = [candidate_seeds(args.seed, number, args.n) for number in numbers]
        requests = [Request(prompt, seed) for prompt, own in zip(prompts, seeds, strict=True) for seed in own]
        with Journal(output) as journal:
            replies = generate(
                engine, requests, sampling, journal=journal, label=output.stem, schema_retries=args.schema_retries
            )
            asked = [replies[at : at + args.n] for at in range(0, len(replies), args.n)]
            pools = [[candidate_of(reply) for reply in own] for own in asked]
            if scorer is not None:
                give_rewards(rows, pools, scorer, journal)
        finishes = Counter(reply.finish for reply in replies)
        draws = [record_seed(args.seed, "choose", number) for number in numbers]
        chosen = [chosen_in(pool, args.choose, draw) for pool, draw in zip(pools, draws, strict=True)]
        outputs = [None if at is None else pool[at]["output"] for pool, at in zip(pools, chosen, strict=True)]
        if not any(outputs):
            refuse_failures(replies)
            raise UserError(f"none of {len(rows)} instructions got a response ({dict(finishes)})")
        for path in beside:
            path.unlink(missing_ok=True)  # of a run with other flags
        counts: dict = {"finish": dict(finishes)}
        if pool_file in made:
            write_whole(pool_file, (pool_line(*each) for each in zip(rows, pools, chosen, strict=True)))
        if curve_file in made:
            found = write_curve(curve_file, pools, args.seed)
            counts["best_of_n"] = found | {"curve": points_shown(found["curve"])}
        hopes = [any(reply.may_heal for reply in own) for own in asked]
        answered = [
            (row, text) for row, text, hope in zip(rows, outputs, hopes, strict=True) if hope or text is not None
        ]
        write_whole(output, json_list(output_row(row, text, args, data.stem) for row, text in answered))
        refuse_failures(replies)
        held.finish(counts)
    if curve_file in made:
        print(f"from the {found['rows']:,} of {found['of']:,} rows with all candidates: {curve_file}")
        if found["curve"]:
            print(curve_table(found["curve"]))
    lost = [
        f"{number} ({', '.join(dict.fromkeys(each['finish'] for each in pool))})"
        for number, pool, text in zip(numbers, pools, outputs, strict=True)
        if text is None
    ]
    left_out = f", {outputs.count('')} empty" if "" in outputs else ""
    left_out += f", rows {', '.join(lost)} left out" if lost else ""
    sampled = f", {args.n} candidates each" if args.n > 1 else ""
    print(f"{len(rows):,} instructions{sampled} -> {len(answered):,} responses ({dict(finishes)}){left_out}: {output}")


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

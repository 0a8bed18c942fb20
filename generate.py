"""Checkpoint + instructions -> responses, in the form that alpaca_eval reads.

    python generate.py --base_model_name_or_path saved_models/cut-1plus-13b
    python generate.py --base_model_name_or_path saved_models/cut-1plus-13b --interactive

Reads the 805 instructions of AlpacaEval from the hub, or --data_path: .json or .jsonl rows of instruction (and input).
Writes [{"instruction", "output", "generator", "dataset"}, ...] to <checkpoint>/alpaca_eval.json or --output_file,
whole, with a run card beside it. Greedy, as released; a journal beside the output keeps what is finished, so an
interrupted run goes on. --interactive is a chat in the terminal instead, streamed; it needs transformers alone.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, boolean, number, run
from alignment.engines import add_engine_arguments, engine_from, models_read
from alignment.generation import Request, Sampling, generate, record_seed, refuse_failures
from alignment.journal import Journal
from alignment.judging import read_instructions
from alignment.pretrained import check_model, load_pretrained, load_tokenizer
from alignment.records import json_list, write_whole
from alignment.run_cards import claim
from alignment.templates import CHOICES, rendering_from

ALPACA_EVAL = ("tatsu-lab/alpaca_eval", "alpaca_eval.json")
OUTPUT_NAME = "alpaca_eval.json"


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
    parser.add_argument("--template", choices=CHOICES, default="alpaca", help="default: alpaca, which CUT trains with")
    parser.add_argument("--max_new_tokens", type=number(int, 1), default=2048, help="default: 2048, released")
    parser.add_argument("--temperature", type=number(float, 0), default=0.0, help="default: 0, greedy, released")
    parser.add_argument("--top_p", type=number(float, 0, 1, above=True), default=1.0, help="default: 1, released")
    parser.add_argument("--batch_size", type=number(int, 1), default=256, help="hf: sequences in flight (default: 256)")
    parser.add_argument("--seed", type=int, default=42, help="each row's own seed derives from it (default: 42)")
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
    return parser.parse_args(argv)


def fetch_alpaca_eval() -> Path:
    """The evaluation set's file from the hub or its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, name = ALPACA_EVAL
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"AlpacaEval cannot be had from the hub ({reason}); give --data_path FILE") from None


def output_row(row: dict, output: str, args: Namespace, dataset: str) -> dict:
    """What alpaca_eval reads, and the instruction's own `id` and `input` where it has them."""
    kept = {name: row[name] for name in ("id", "instruction", "input") if row.get(name) not in ("", None)}
    generator = Path(args.model_name_or_path.partition("?")[0]).name
    return kept | {"output": output, "generator": generator, "dataset": row.get("dataset") or dataset}


def respond(args: Namespace) -> None:
    if args.output_file is None and not Path(args.model_name_or_path).is_dir():
        raise UserError(f"--base_model_name_or_path {args.model_name_or_path} is no folder: give --output_file")
    output = args.output_file or Path(args.model_name_or_path) / OUTPUT_NAME
    data = args.data_path or fetch_alpaca_eval()
    rows = read_instructions(str(data))[args.skip :][: args.limit]
    if not rows:
        raise UserError(f"data {data}: --skip {args.skip} leaves no row")
    engine = engine_from(args)
    read = {"inputs": [data], "models": models_read(args), "cache_dir": args.cache_dir}
    with claim(output, args, script=__file__, **read) as held:
        if held.is_done():
            return print(held.already())
        held.begin()
        rendering = rendering_from(args, "alpaca")
        ends = (rendering.end_id,) if rendering.end else ()
        sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, rendering.stop, ends)
        texts = [rendering.render(row) for row in rows]
        seeds = [record_seed(args.seed, "generate", number) for number in range(args.skip, args.skip + len(rows))]
        requests = [Request(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        with Journal(output) as journal:
            replies = generate(
                engine, requests, sampling, journal=journal, label=output.stem, schema_retries=args.schema_retries
            )
        finishes = Counter(reply.finish for reply in replies)
        pairs = zip(rows, replies, strict=True)
        answered = [(row, reply.text and reply.text.strip()) for row, reply in pairs if reply.text or reply.may_heal]
        if not any(text for _, text in answered):
            refuse_failures(replies)
            raise UserError(f"none of {len(rows)} instructions got a response ({dict(finishes)})")
        write_whole(output, json_list(output_row(row, text, args, data.stem) for row, text in answered))
        refuse_failures(replies)
        held.finish({"finish": dict(finishes)})
    missing = [f"{number} ({reply.finish})" for number, reply in enumerate(replies, args.skip) if reply.text is None]
    left_out = f", rows {', '.join(missing)} left out" if missing else ""
    print(f"{len(rows):,} instructions -> {len(answered):,} responses ({dict(finishes)}){left_out}: {output}")


def chat(args: Namespace) -> None:
    """Read a line, stream the reply, remember both where the template holds several turns."""
    import torch
    from transformers import TextStreamer

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
        inputs = tokenizer(rendering.render({"prompt": turns}), return_tensors="pt").to(device)
        reply = model.generate(
            **inputs,
            max_new_tokens=args.max_new_tokens,
            streamer=TextStreamer(tokenizer, skip_prompt=True),
            tokenizer=tokenizer,
            stop_strings=list(rendering.stop) or None,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.eos_token_id,
            **(sampled if args.temperature else {"do_sample": False, "temperature": None, "top_p": None}),
        )
        text = tokenizer.decode(reply[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for stop in rendering.stop:
            text = text.removesuffix(stop)
        turns.append({"role": "assistant", "content": text.strip()})


def main(args: Namespace) -> None:
    if args.interactive:
        chat(args)
    else:
        respond(args)


if __name__ == "__main__":
    run(parse_args, main)

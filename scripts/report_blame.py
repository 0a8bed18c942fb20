"""See what CUT would blame: one self-contained HTML page of responses, tokens coloured, their judgments beside.

    python scripts/report_blame.py --base_model saved_models/llama2-13b-chat-hf \\
        --data_path data/iter/train-alpaca-sample-iter1.json --output_file outputs/blame.html

Reads what finetune_unlikelihood.py reads and shows its flawed rows. Each token is coloured by
log p(y_t|x,j) - log p(y_t|x); a slider moves the threshold, a histogram shows all tokens of the page, and what the
judgment quotes of the response is underlined. With --peft_model_path it shows the model under that adapter.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, number, run
from alignment.judging.judgments import quoted_in, quoted_spans, read_judgments
from alignment.pages import page
from alignment.pretrained import check_model, load_pretrained, load_tokenizer, padding_id
from alignment.records import write_whole
from alignment.run_cards import claim
from alignment.templates import instruction_of

TEMPLATE = "blame_report.html"


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("--base_model", required=True, help="folder or hub name of a causal model")
    parser.add_argument("--peft_model_path", type=Path, help="an adapter of it (default: none)")
    parser.add_argument("--data_path", required=True, help="rows with judgments: .json, .jsonl, .parquet or hub")
    parser.add_argument("--output_file", type=Path, required=True, help="the .html to write")
    parser.add_argument(
        "--threshold", type=number(float, 0, above=True), default=1.1, help="where the slider starts (default: 1.1)"
    )
    parser.add_argument(
        "--calibrate_threshold",
        type=number(float, 0, 1, above=True),
        metavar="FRACTION",
        help="start it where this share of the tokens is blamed, and print that threshold",
    )
    parser.add_argument("--prompt_template_name", default="alpaca", help="default: alpaca")
    parser.add_argument("--cutoff_len", type=number(int, 8), default=2048, help="tokens a row (default: 2048)")
    parser.add_argument("--limit", type=number(int, 1), default=100, help="flawed rows to show (default: 100)")
    return parser.parse_args(argv)


def pieces_of(tokenizer, ids: list[int]) -> list[str]:
    """The text that each token adds. A character of several tokens is added by the last of them."""
    pieces, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        whole = text.rstrip("\ufffd") if end < len(ids) else text
        pieces.append(whole[len(before) :])
        before = whole if len(whole) > len(before) else before
    return pieces


def touched(pieces: list[str], spans: list[tuple[int, int]]) -> list[bool]:
    """Whether each piece has a character in any (start, end) of the joined text."""
    found, start = [], 0
    for piece in pieces:
        end = start + len(piece)
        found.append(any(low < end and start < high for low, high in spans))
        start = end
    return found


def page_row(tokenizer, row: dict, number_in_file: int, logps) -> dict:
    """One flawed row as the page reads it."""
    pieces = pieces_of(tokenizer, logps.ids.tolist())
    shown = "".join(pieces)
    return {
        "row": row.get("id", number_in_file),
        "instruction": instruction_of(row),
        "judgment": quoted_in(row["judgment"], shown),
        "tokens": pieces,
        "margins": [round(margin, 4) for margin in logps.margin.tolist()],
        "plain": [round(logp, 3) for logp in logps.plain.tolist()],
        "quoted": [int(hit) for hit in touched(pieces, quoted_spans(row["judgment"], shown))],
    }


def load(args: Namespace):
    import torch

    from alignment.training.logps import speak_logps

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = speak_logps(load_pretrained("AutoModelForCausalLM", args.base_model, dtype="auto").to(device).eval())
    if args.peft_model_path:
        from alignment.adapters import with_adapter

        model = with_adapter(model, args.peft_model_path)
    return model


def main(args: Namespace) -> None:
    check_model(args.base_model)
    if args.peft_model_path:
        from alignment.adapters import check_base

        check_base(args.peft_model_path, args.base_model)
    flawed = [row for row in read_judgments(args.data_path) if row["judgment"] is not None][: args.limit]
    if not flawed:
        raise UserError(f"data {args.data_path}: every judgment is null, so nothing is blamed")
    read = {"inputs": [args.data_path], "models": [args.base_model, args.peft_model_path]}
    with claim(args.output_file, args, script=__file__, **read) as held:
        if held.is_done():
            return print(held.already())
        data, counts = measured(flawed, args)
        html = page(TEMPLATE, data)
        held.begin()
        write_whole(args.output_file, [html])
        held.finish(counts)
    blamed = f"{counts['blamed_share']:.1%} of {counts['tokens']:,} tokens above --threshold {counts['threshold']:.6g}"
    print(f"{args.output_file}: {counts['rows']} rows, {blamed}")


def measured(flawed: list[dict], args: Namespace) -> tuple[dict, dict]:
    """The page's data and the card's counts."""
    import torch

    from alignment.training.cut_lines import calibrate, encode_rows, flawed_logps, load_templates

    tokenizer = load_tokenizer(args.base_model)
    encoded = encode_rows(flawed, "cut", load_templates(args.prompt_template_name, tokenizer), args.cutoff_len)
    found = flawed_logps(load(args), encoded, padding_id(tokenizer))
    margins = torch.cat([logps.margin for logps in found.values()])
    threshold = calibrate(margins, args.calibrate_threshold) if args.calibrate_threshold else args.threshold
    rows = [page_row(tokenizer, flawed[place], place, logps) for place, logps in found.items()]
    source = f"{Path(args.base_model).name}, {Path(args.data_path).name}, {len(rows)} flawed rows."
    share = (margins.exp() > threshold).float().mean().item()
    counts = {"rows": len(rows), "tokens": len(margins), "threshold": threshold, "blamed_share": share}
    return {"rows": rows, "threshold": threshold, "source": source}, counts


if __name__ == "__main__":
    run(parse_args, main)

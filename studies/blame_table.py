"""What training did to the tokens that judgments blame: log p of them and of the others, before and after.

    python studies/blame_table.py --base_model saved_models/SmolLM2-135M-Instruct --data_path iter3.json \\
        --adapters outputs/cut outputs/hindsight

Reads rows with judgments that no adapter was trained on. The base model decides which tokens of the flawed rows are
blamed (eq. 5 at --threshold). Prints, for the base and under each adapter, the mean log p(y_t|x) of blamed and of kept
tokens, and by how much the gap between them grew, with the 95% interval of a bootstrap over rows. With --versus NAMES
the same of each adapter's gap against those adapters', row by row.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np

from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.intervals import paired_bootstrap, with_interval
from alignment.judging.judgments import read_judgments
from alignment.pretrained import check_model, load_pretrained, load_tokenizer


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("--base_model", required=True, help="folder or hub name of a causal model")
    parser.add_argument("--data_path", required=True, help="rows with judgments: .json, .jsonl, .parquet or hub")
    parser.add_argument("--adapters", nargs="+", type=Path, default=[], help="folders of adapters of it; default none")
    shown = "names of the adapters to compare the others with; default the base alone"
    parser.add_argument("--versus", nargs="+", default=[], help=shown)
    parser.add_argument("--threshold", type=number(float, 0, above=True), default=1.1, help="lambda; default 1.1")
    parser.add_argument("--prompt_template_name", default="alpaca", help="default alpaca")
    parser.add_argument("--cutoff_len", type=number(int, 8), default=1024, help="tokens a row; default 1024")
    parser.add_argument("--limit", type=number(int, 1), default=100, help="flawed rows; default 100")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap; default 0")
    args = parser.parse_args(argv)
    for name in args.versus:
        if name not in {path.name for path in args.adapters}:
            parser.error(f"--versus {name} is none of --adapters")
    return args


def plain_logps(model, encoded, pad_id: int, max_tokens: int = 4096) -> dict:
    """log p(y_t|x) of every flawed row's response, (M,) each, by row number: without the judgment."""
    from alignment.training.batches import budgeted_batches
    from alignment.training.cut_lines import MISALIGN, collate_lines, evaluating, logps_by_kind

    lines, found = [item[0] for item in encoded.items], {}
    with evaluating(model):
        for numbers in budgeted_batches([len(line) for line in lines], max_tokens):
            part = [lines[number] for number in numbers]
            batch = {name: each.to(model.device) for name, each in collate_lines([(x,) for x in part], pad_id).items()}
            sizes = [len(line) - line.prompt_length for line in part]
            plain = logps_by_kind(model, batch)[1][MISALIGN].cpu().split(sizes)
            found |= {line.row: logps for line, logps in zip(part, plain, strict=True)}
    return dict(sorted(found.items()))


def row_sums(plain: dict, masks: dict) -> np.ndarray:
    """(rows, 4): the sum of log p(y_t|x) of blamed tokens and their number, and the same of kept ones."""
    found = [
        [logps[masks[row]].sum(), masks[row].sum(), logps[~masks[row]].sum(), (~masks[row]).sum()]
        for row, logps in plain.items()
    ]
    return np.array(found, dtype=np.float64)


def means(sums: np.ndarray) -> np.ndarray:
    """Mean log p of blamed and of kept tokens: (rows, 4) -> (2,). NaN where there are none."""
    with np.errstate(invalid="ignore"):
        return sums[:, [0, 2]].sum(0) / sums[:, [1, 3]].sum(0)


def gap(sums: np.ndarray) -> float:
    """Mean log p of kept tokens less that of blamed ones, (rows, 4)."""
    blamed, kept = means(sums)
    return kept - blamed


def difference(after: np.ndarray, before: np.ndarray, seed: int) -> str:
    """How much larger the gap of one than of the other is, with its interval over resampled rows."""
    return with_interval(gap(after) - gap(before), paired_bootstrap(after, before, gap, seed=seed), "+z.3f")


def main(args: Namespace) -> None:
    check_model(args.base_model)
    rows = [row for row in read_judgments(args.data_path) if row["judgment"] is not None][: args.limit]
    if not rows:
        raise UserError(f"data {args.data_path}: every judgment is null, so that no token is blamed")

    import torch

    from alignment.adapters import check_base, with_adapter
    from alignment.training.cut_lines import encode_rows, flawed_logps, load_templates
    from alignment.training.logps import speak_logps
    from alignment.training.losses import inappropriate_tokens

    for adapter in args.adapters:
        check_base(adapter, args.base_model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(args.base_model)
    encoded = encode_rows(rows, "cut", load_templates(args.prompt_template_name, tokenizer), args.cutoff_len)
    base = load_pretrained("AutoModelForCausalLM", args.base_model, dtype=torch.float32)
    model = speak_logps(base.to(device).eval())
    found = flawed_logps(model, encoded, tokenizer.eos_token_id)
    masks = {row: inappropriate_tokens(each.judged, each.plain, args.threshold) for row, each in found.items()}
    sums = {"base": row_sums({row: each.plain for row, each in found.items()}, masks)}
    for adapter in args.adapters:
        under = with_adapter(model, adapter).eval()
        sums[adapter.name] = row_sums(plain_logps(under, encoded, tokenizer.eos_token_id), masks)
        model = under.unload()

    others = ["base", *args.versus]
    shown = [("", "blamed", "kept", "gap", *(f"more than {other}" for other in others))]
    for name, each in sums.items():
        blamed, kept = means(each)
        compared = [difference(each, sums[other], args.seed) if name not in ("base", other) else "" for other in others]
        shown.append((name, f"{blamed:.3f}", f"{kept:.3f}", f"{gap(each):.3f}", *compared))
    tokens = sum(len(mask) for mask in masks.values())
    share = sum(int(mask.sum()) for mask in masks.values()) / tokens
    print(f"{len(rows)} flawed rows, {tokens:,} tokens, {share:.1%} blamed by the base at {args.threshold}")
    print(table(shown))


if __name__ == "__main__":
    run(parse_args, main)

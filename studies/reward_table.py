"""The reward models of a folder in one table: held-out and static HHH accuracy, beside "the longer one wins".

    python studies/reward_table.py outputs/reward_study

Reads <model>.pairs.json and <model>.hhh.json that eval/run_evaluation.py left there (studies/reward_study.sh).
"""

from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, run, table
from alignment.intervals import percent
from alignment.records import read_json


def parse_args(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the reward models")
    return parser.parse_args(argv)


def main(args) -> None:
    rows = [("reward model", "held out, % [95% interval]", "longer wins, %", "HHH, % [95% interval]")]
    for path in sorted(args.folder.glob("*.hhh.json")):
        name = path.name.removesuffix(".hhh.json")
        pairs, hhh = (read_json(file, "results") for file in (path.with_name(f"{name}.pairs.json"), path))
        held_out, static = (percent(found["accuracy"], found["interval"]) for found in (all_of(pairs), all_of(hhh)))
        rows.append((name, held_out, f"{100 * pairs['longer_wins']:.1f}", static))
    if len(rows) == 1:
        raise UserError(f"{args.folder} has no *.hhh.json: no reward model was evaluated there")
    print(table(rows))


def all_of(results: dict) -> dict:
    """Accuracy and interval over all types."""
    return results["results"]["all"]


if __name__ == "__main__":
    run(parse_args, main)

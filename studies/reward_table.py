"""The reward models of a folder in one table: held-out and static HHH accuracy, beside "the longer one wins".

    python studies/reward_table.py outputs/reward_study

Reads <model>.pairs.json and <model>.hhh.json that eval/run_evaluation.py left there (studies/reward_study.sh).
"""

from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, run, table
from alignment.records import read_json


def parse_args(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the reward models")
    return parser.parse_args(argv)


def main(args) -> None:
    rows = [("reward model", "held out", "95% interval", "longer wins", "HHH", "95% interval")]
    for path in sorted(args.folder.glob("*.hhh.json")):
        name = path.name.removesuffix(".hhh.json")
        pairs = read_json(path.with_name(f"{name}.pairs.json"), "results")
        cells = [name]
        for found in (pairs["results"]["all"], read_json(path, "results")["results"]["all"]):
            cells += [percent(found["accuracy"]), " - ".join(map(percent, found["interval"]))]
        rows.append((*cells[:3], percent(pairs["longer_wins"]), *cells[3:]))
    if len(rows) == 1:
        raise UserError(f"{args.folder} has no *.hhh.json: no reward model was evaluated there")
    print(table(rows))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    run(parse_args, main)

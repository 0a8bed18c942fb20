"""The reward models of a folder in one table: held-out and static HHH accuracy, beside "the longer one wins".

    python scripts/reward_table.py outputs/reward_study

Reads the run cards that train.py and the results that eval/run_evaluation.py left there (scripts/reward_study.sh).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the script's own folder is all that Python adds
from alignment.records import read_json  # noqa: E402
from alignment.runs import ArgumentParser, UserError, run, table, wilson  # noqa: E402


def parse_args(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the reward models")
    return parser.parse_args(argv)


def main(args) -> None:
    rows = [("reward model", "held out", "95% interval", "longer wins", "HHH", "95% interval")]
    for path in sorted(args.folder.glob("*.hhh.json")):
        card = read_json(path.with_name(path.name.replace(".hhh.json", ".run.json")), "run card")
        found, pairs = card["counts"]["evaluation"], card["counts"]["rows"]["eval"]["kept"]
        hhh = read_json(path, "results")["results"]["all"]
        accuracy, longer = found["eval_accuracy"], found["eval_longer_wins_accuracy"]
        rows.append((path.name.removesuffix(".hhh.json"), percent(accuracy), span(wilson(accuracy * pairs, pairs)),
                     percent(longer), percent(hhh["accuracy"]), span(hhh["interval"])))  # fmt: skip
    if len(rows) == 1:
        raise UserError(f"{args.folder} has no *.hhh.json: no reward model was evaluated there")
    print(table(rows))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def span(interval: tuple[float, float]) -> str:
    return " - ".join(map(percent, interval))


if __name__ == "__main__":
    run(parse_args, main)

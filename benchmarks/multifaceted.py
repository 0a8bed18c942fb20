"""`system_messages.py --mode ds` on a collection as large as the published one: seconds and memory.

Makes --num_rows rows of random words, three an instruction, of the published mean length (its card: 1,158,254,057 bytes
for 196,998 rows, 5,880 each), and a bench of 307 instructions with rubrics; runs ds in a process of its own; then times
its proof that the bench is unseen, and the leak rule on the system messages, each alone:

    python benchmarks/multifaceted.py --num_rows 200000
"""

import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from alignment.command_line import REPOSITORY, ArgumentParser, number, run
from alignment.janus.leaks import LeakRule
from alignment.janus.preferences import DIMENSIONS
from alignment.janus.rows import SCORES, STAGES, stage_rows
from alignment.janus.splits import prove_unseen
from alignment.records import json_list, write_whole

BENCH = 307  # instructions of the published bench
WORDS = {"prompt": 60, "description": 26, "system": 130, "output": 560}  # of a text on average


def parse_args(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--num_rows", type=number(int, 3), default=200_000, help="rows of training (default: 200000)")
    parser.add_argument("--work_dir", type=Path, help="where the files go, some GB (default: a temporary folder)")
    return parser.parse_args(argv)


def main(args) -> None:
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        measure(Path(folder), args.num_rows)


def measure(folder: Path, num_rows: int) -> None:
    bench = list(rows("bench", BENCH))
    path = folder / STAGES["gr"]
    write_whole(path, json_list(each for part in (bench, rows("train", num_rows // 3)) for each in part))
    rubric = {"criteria": "Is it so?", "score_descriptions": {score: f"Score {score}." for score in SCORES}}
    write_whole(folder / STAGES["rb"], json_list(row | {"rubrics": [rubric] * 4} for row in bench))
    size = path.stat().st_size
    print(f"{num_rows + len(bench):,} rows, {size / 1e9:.2f} GB, {size / (num_rows + len(bench)):,.0f} bytes a row")

    command = [sys.executable, REPOSITORY / "system_messages.py", "--mode", "ds", "--output_dir", folder]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"ds: {seconds:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of CPU), {used.ru_maxrss / 1e6:.2f} GB at most")

    with timed() as told:
        compared = prove_unseen(stage_rows(path, "gr"), bench)
        told.append(f"bench unseen, {compared:,} instructions")
    with timed() as told:
        rule = LeakRule({row["id"]: row["prompt"] for row in stage_rows(path, "gr")}.values())
        leaking = sum(bool(rule.leaks(row["system"], row["prompt"])) for row in stage_rows(path, "gr"))
        told.append(f"leak rule, {leaking:,} found")


@contextmanager
def timed():
    """Print what is added to the list that this gives, with the seconds since."""
    told, started, used = [], time.perf_counter(), time.process_time()
    yield told
    print(f"{''.join(told)}: {time.perf_counter() - started:.1f} s ({time.process_time() - used:.1f} s of CPU)")


def rows(split: str, instructions: int):
    """Three rows an instruction, of words whose frequency falls with their rank, as in a language."""
    draw = random.Random(f"multifaceted {split}")
    vocabulary = ["".join(draw.choices("aeioulnrstdmkpg", k=draw.randint(2, 8))) for _ in range(30_000)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(vocabulary))))

    def text(kind: str) -> str:
        count = max(4, round(WORDS[kind] * draw.uniform(0.4, 1.6)))
        return " ".join(draw.choices(vocabulary, cum_weights=weights, k=count)) + "."

    def preference(dimension: str) -> dict:
        names = {"subdimension": draw.choice(vocabulary), "preference": " ".join(draw.choices(vocabulary, k=3))}
        return {"dimension": dimension} | names | {"description": text("description")}

    for number_of in range(instructions):
        prompt = text("prompt")
        for number_of_set in range(3):
            yield {
                "id": f"{split}-{number_of}",
                "set": number_of_set,
                "split": split,
                "main_source": "made",
                "original_source": "made",
                "prompt": prompt,
                "preference_set": [preference(dimension) for dimension in DIMENSIONS],
                "system": text("system"),
                "output": text("output"),
            }


if __name__ == "__main__":
    run(parse_args, main)

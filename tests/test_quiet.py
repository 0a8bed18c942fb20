"""Off a terminal a run prints our lines only: of no library a word, a bar or a warning."""

import json
import os
import re
import subprocess
import sys

from alignment.command_line import REPOSITORY


def call(folder, script, words):
    hidden = {"HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"}
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, str(REPOSITORY / script), *words.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    not_ours = [line for line in done.stderr.splitlines() if not re.fullmatch(r"\w+: \d+/\d+ \[[^\]]*\]", line)]
    assert (done.returncode, not_ours) == (0, [])  # a bar's line every half minute is ours
    return done.stdout


def test_a_training_and_a_generation_say_what_is_ours(tmp_path, model_folder):
    rows = [{"instruction": f"Say {number}.", "input": "", "output": f"{number}."} for number in range(2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    said = call(tmp_path, "train.py", "--model_name_or_path tiny --data_path rows.json --output_dir out --max_steps 1")
    lines = [
        r"train: 2 rows, 2 kept",
        r"saved and loaded again in a fresh process: \{.*\"agrees\": true\}",
        r"out: 1 steps; loss \d+\.\d{4}",
    ]
    assert re.fullmatch("\n".join(lines) + "\n", said), said
    words = "--backend hf --model_name_or_path out --data_path rows.json --output_file replies.json --max_new_tokens 2"
    said = call(tmp_path, "generate.py", words)
    assert re.fullmatch(r"2 instructions -> 2 responses \(\{.*\}\): replies.json\n", said), said

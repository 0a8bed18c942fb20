#!/usr/bin/env bash
# From nothing to comparisons made by a real language model: environment, model, then ALMoST's pg, rg and cs.
# Hardware: 2 cores, 8 GB of memory, 6 GB of disk; no GPU, key or model hub. Time: 8 minutes, of which 2 set up.
# Result: a table of what was kept and dropped and why, and quickstart/comparison.json. A second run takes a second.
#     bash scripts/quickstart.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
set_up

OUT="$ROOT/quickstart"
NAME=$(basename "$MODEL" | tr '[:upper:]' '[:lower:]')
almost=("$VENV/bin/python" synthetic_feedback.py --output_dir "$OUT" --model_name_or_path "$MODEL")

"${almost[@]}" --mode pg --prompt_file_path assets/seed_prompts.txt --num_generation 48
"${almost[@]}" --mode rg --prompt_file_path assets/Faithful_prompt.txt assets/HHH_prompt.txt --n_shot 3
"${almost[@]}" --mode rg --prompt_file_path assets/HHH_prompt.txt --n_shot 1
"${almost[@]}" --mode cs --rubric "$NAME-Faithful-3shot" "$NAME-HHH-3shot" "$NAME-HHH-1shot"
"$VENV/bin/python" scripts/show.py "$OUT"

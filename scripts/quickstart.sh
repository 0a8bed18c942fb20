#!/usr/bin/env bash
# From nothing to aligned models, small: environment, model, ALMoST's pg, rg and cs on a real language model, a reward
# model of its comparisons, self-play that it guides, supervised training on that, PPO, then CUT, merged; and what the
# model answers before and after.
# Hardware: 2 cores, 8 GB of memory, 8 GB of disk; no GPU, key or model hub. Time: 15 minutes, 2 of them set-up; on one
# core 21.
# Result: tables of what was kept and dropped and why, answers side by side, and in quickstart/ all that was made. A
# second run takes seconds.
#     bash scripts/quickstart.sh
#     bash scripts/quickstart.sh MODEL    # another one, a folder or a hub name; makes quickstart-<its name>/
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
BASE=${1:-$MODEL}
[ ! -d "$BASE" ] || BASE=$(cd "$BASE" && pwd)
cd "$ROOT"
set_up

NAME=$(basename "$BASE" | tr '[:upper:]' '[:lower:]')
OUT="$ROOT/quickstart"
[ "$BASE" = "$MODEL" ] || OUT="$ROOT/quickstart-$NAME"
PYTHON="$VENV/bin/python"

# ALMoST: prompts, responses, comparisons. At the paper's temperature of 1.2 a model of 135 million parameters writes
# noise; at 0.7 its prompts can be read.
almost=("$PYTHON" synthetic_feedback.py --output_dir "$OUT" --model_name_or_path "$BASE")
"${almost[@]}" --mode pg --prompt_file_path assets/seed_prompts.txt --num_generation 48 --temperature 0.7
"${almost[@]}" --mode rg --prompt_file_path assets/Faithful_prompt.txt assets/HHH_prompt.txt --n_shot 3
"${almost[@]}" --mode rg --prompt_file_path assets/HHH_prompt.txt --n_shot 1
"${almost[@]}" --mode cs --rubric "$NAME-Faithful-3shot" "$NAME-HHH-3shot" "$NAME-HHH-1shot"

# A reward model of the comparisons, self-play on a few of the prompts, and a policy of that
train=("$PYTHON" train.py --model_name_or_path "$BASE" --per_device_train_batch_size 4 --bf16 True)
"${train[@]}" --objective reward --data_path "$OUT/comparison.json" --output_dir "$OUT/reward_model"
mkdir -p "$OUT/self_play" "$OUT/answers"
head -n 8 "$OUT/prompts.txt" > "$OUT/self_play/prompts.txt"
"$PYTHON" self_play.py --output_dir "$OUT/self_play" --model_name_or_path "$BASE" --max_new_tokens 256 \
  --prompt_file_path assets/Faithful_prompt.txt --reward_model "$OUT/reward_model"
"${train[@]}" --objective sft --data_path "$OUT/self_play/almost_train.json" --output_dir "$OUT/policy" \
  --num_train_epochs 1 --model_max_length 1024

# Ten steps of PPO, so few and small that they teach nothing yet
"$PYTHON" train_rl.py --model_name_or_path "$OUT/policy" --data_path "$OUT/prompts.txt" --reward "$OUT/reward_model" \
  --output_dir "$OUT/ppo" --max_steps 10 --rollout_batch_size 4 --mini_batch_size 4 --num_ppo_epochs 1 \
  --max_new_tokens 32 --lora_r 16 --learning_rate 1e-4 --value_model policy

# CUT: learn from judgments, merge
"$PYTHON" finetune_unlikelihood.py --base_model "$BASE" --data_path data/judgments.json --output_dir "$OUT/cut" \
  --micro_batch_size 8 --num_epochs 2 --warmup_steps 0
"$PYTHON" merge.py --base_model_name_or_path "$BASE" --peft_model_path "$OUT/cut" --output_dir "$OUT/cut-merged"

# What each answers to prompts that self-play has not seen
tail -n 3 "$OUT/prompts.txt" > "$OUT/answers/prompts.txt"
answer() { # name, model
  "$PYTHON" generate.py --base_model_name_or_path "$2" --data_path "$OUT/answers/prompts.txt" \
    --output_file "$OUT/answers/$1.json" --max_new_tokens 64 --backend hf
}
answer base "$BASE"
answer policy "$OUT/policy"
answer cut "$OUT/cut-merged"

"$PYTHON" scripts/show.py "$OUT"

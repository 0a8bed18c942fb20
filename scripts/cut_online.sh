#!/usr/bin/env bash
# CUT, online (section 4.2): the model answers, a judge says what is wrong, the model learns it, and again.
#
#   BASE=saved_models/llama2-13b-chat-hf INSTRUCTIONS=alpaca_data.json JUDGE="--model_name_or_path judge-70b" \
#     bash scripts/cut_online.sh
#
# Hardware   the paper's 8 GPUs for a 13B base in 8 bits (NPROC=8 FLAGS="--load_in_8bit True"); NPROC=1 runs anywhere
# Time       36 to 45 steps of 8 rows an iteration, beside 1,000 responses and 1,000 judgments
# Expected   the paper's table 6, LLaMA2-chat-13b on AlpacaEval: 81.09, then 89.75, 90.23, 91.04, 91.68, 90.68.
#            Not reproduced here.
#
# INSTRUCTIONS is rows of instruction (and input). Iteration i takes its i-th SIZE rows, so none is seen twice; it may
# have fewer, but where none is left the recipe stops. The same command goes on where it was stopped: each script finds
# what it has finished.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${BASE:?BASE is the model to start from, a folder or hub name}" "${INSTRUCTIONS:?INSTRUCTIONS is .json or .jsonl}"
: "${JUDGE:?JUDGE is flags of scripts/annotate_judgments.py: --model_name_or_path ... [--backend ...]}"
ITERATIONS=${ITERATIONS:-5}
SIZE=${SIZE:-1000}               # instructions an iteration
OUT=${OUT:-outputs/cut_online}   # iter1/, iter2/, ...: each responses, judgments, adapter and merged checkpoint
NPROC=${NPROC:-1}
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
FLAGS=${FLAGS:-}                 # more flags of finetune_unlikelihood.py
GENERATE=${GENERATE:-}           # more flags of generate.py: --backend hf --max_new_tokens 256

model=$BASE
for i in $(seq "$ITERATIONS"); do
  here=$OUT/iter$i
  # shellcheck disable=SC2086
  $PYTHON generate.py --base_model_name_or_path "$model" --data_path "$INSTRUCTIONS" \
    --skip $((i * SIZE - SIZE)) --limit "$SIZE" --output_file "$here/responses.json" $GENERATE
  # shellcheck disable=SC2086
  $PYTHON scripts/annotate_judgments.py --data_path "$here/responses.json" --output_file "$here/judgments.json" $JUDGE
  # The released flags. Warm-up is 100 steps there too, which such an iteration never leaves: docs/cut.md, C13.
  # shellcheck disable=SC2086
  $PYTHON -m torch.distributed.run --nproc_per_node="$NPROC" --master_port="${MASTER_PORT:-1233}" \
    finetune_unlikelihood.py --base_model "$model" --data_path "$here/judgments.json" --output_dir "$here/lora" \
    --batch_size 8 --micro_batch_size 1 --num_epochs 1 --learning_rate 0.0004 --cutoff_len 2048 \
    --lora_r 16 --lora_alpha 16 --lora_dropout 0.05 --lora_target_modules '[gate_proj, down_proj, up_proj]' \
    --prompt_template_name alpaca --lr_scheduler cosine --warmup_steps 100 \
    --weight_unlike 1 --threshold 1.1 --gamma 1 --downsample 0.25 --resume_from_checkpoint True $FLAGS
  $PYTHON merge.py --base_model_name_or_path "$model" --peft_model_path "$here/lora" --output_dir "$here/merged"
  model=$here/merged
done
echo "next: $PYTHON generate.py --base_model_name_or_path $model"

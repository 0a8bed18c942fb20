#!/usr/bin/env bash
# CUT, offline (section 4.1): judgments that others wrote of other models' responses -> adapter -> checkpoint -> responses.
#
#   BASE=saved_models/llama2-13b-hf DATA=human_data_for_model.jsonl bash scripts/cut_offline.sh
#
# Hardware   the paper's 8 GPUs for a 13B base in 8 bits (NPROC=8 FLAGS="--load_in_8bit True"); NPROC=1 runs anywhere
# Time       165 steps of 8 rows for Shepherd, about 1,354 for the summarisation critiques
# Expected   the paper's table 2, LLaMA2-13b on Shepherd: 61.06 on AlpacaEval (base 1.87), 49.33 on TruthfulQA (36.28).
#            Not reproduced here.
#
# DATA is Shepherd's human_data_for_model.jsonl or the critiques' train.jsonl.gz. The same command goes on where it was
# stopped: each script finds what it has finished.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${BASE:?BASE is the base model, a folder or hub name}" "${DATA:?DATA is Shepherd's or the critiques' file}"
OUT=${OUT:-outputs/cut_offline}  # converted rows, adapter, merged checkpoint
NPROC=${NPROC:-1}
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
FLAGS=${FLAGS:-}                 # more flags of finetune_unlikelihood.py
GENERATE=${GENERATE:-}           # more flags of generate.py: --backend hf --data_path FILE --limit 8

$PYTHON scripts/convert2alpaca.py "$DATA" "$OUT/train-alpaca.json"
# The threshold and weight are the released ones for offline data; gamma is the middle of the paper's grid.
# shellcheck disable=SC2086
$PYTHON -m torch.distributed.run --nproc_per_node="$NPROC" --master_port="${MASTER_PORT:-1233}" \
  finetune_unlikelihood.py --base_model "$BASE" --data_path "$OUT/train-alpaca.json" --output_dir "$OUT/lora" \
  --batch_size 8 --micro_batch_size 1 --num_epochs 1 --learning_rate 0.0004 --cutoff_len 2048 \
  --lora_r 16 --lora_alpha 16 --lora_dropout 0.05 --lora_target_modules '[gate_proj, down_proj, up_proj]' \
  --prompt_template_name alpaca --lr_scheduler cosine --warmup_steps 100 \
  --weight_unlike 0.5 --threshold 1.2 --gamma 1 --downsample 0.25 --resume_from_checkpoint True $FLAGS
$PYTHON merge.py --base_model_name_or_path "$BASE" --peft_model_path "$OUT/lora" --output_dir "$OUT/merged"
# shellcheck disable=SC2086
$PYTHON generate.py --base_model_name_or_path "$OUT/merged" --output_file "$OUT/alpaca_eval.json" $GENERATE
echo "next: alpaca_eval --model_outputs $OUT/alpaca_eval.json"

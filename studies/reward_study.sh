#!/usr/bin/env bash
# ALMoST's rule on real answers: comparisons of four models, reward models of them, and the controls beside.
#
#   ANSWERS=results HHH=hhh_eval.json DSP=helpful.test.json bash studies/reward_study.sh
#
# Hardware   2 cores and 12 GB for the embedded model; a GPU for any other
# Time       70 minutes on 2 cores for 99 prompts, 81 held out, two seeds
# Expected   the table in docs/results.md: accuracies with 95% intervals, beside those of "the longer one wins"
#
# ANSWERS holds <model>/model_outputs.json of AlpacaEval's published results, best model first in RUBRIC. Each seed is
# trained on the comparisons, and once more on pairs of which the longer wins (--control length); the first seed's model
# then goes on to general preferences (DSP), as Janus's does. The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${ANSWERS:?ANSWERS is the folder of <model>/model_outputs.json}" "${HHH:?HHH is static HHH}" "${DSP:?DSP is general preferences}"
MODEL=${MODEL:-saved_models/SmolLM2-135M-Instruct}
RUBRIC=${RUBRIC:-Qwen1.5-72B-Chat Qwen1.5-14B-Chat Qwen1.5-7B-Chat Qwen1.5-1.8B-Chat}
OUT=${OUT:-outputs/reward_study}
SEEDS=${SEEDS:-0 1}
PROMPTS=${PROMPTS:-180}          # of which 45% are held out
DSP_PAIRS=${DSP_PAIRS:-160}
FLAGS=${FLAGS:-}                 # more flags of train.py
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}

# shellcheck disable=SC2086
$PYTHON scripts/collect_answers.py --answers_dir "$ANSWERS" --models $RUBRIC --output_dir "$OUT" --held_out 0.45 --limit "$PROMPTS"
for part in "$OUT" "$OUT/held_out"; do
  # shellcheck disable=SC2086
  $PYTHON synthetic_feedback.py --mode cs --output_dir "$part" --rubric $RUBRIC
done

train() { # name, model, data, more flags
  local name=$1 model=$2 data=$3
  shift 3
  # shellcheck disable=SC2086
  $PYTHON train.py --objective reward --model_name_or_path "$model" --data_path "$data" \
    --output_dir "$OUT/$name" --bf16 True --model_max_length 512 \
    --per_device_train_batch_size 8 --learning_rate 4e-5 --warmup_ratio 0.1 "$@" $FLAGS
  $PYTHON eval/run_evaluation.py --benchmark_name hhh --data_path "$HHH" \
    --reward_model "$OUT/$name" --output_path "$OUT/$name.hhh.json"
  $PYTHON eval/run_evaluation.py --benchmark_name pairs --reward_model "$OUT/$name" \
    --data_path "$OUT/held_out/comparison.json" --output_path "$OUT/$name.pairs.json"
}

for seed in $SEEDS; do
  train "seed$seed" "$MODEL" "$OUT/comparison.json" --seed "$seed"
  train "length$seed" "$MODEL" "$OUT/comparison.json" --seed "$seed" --control length
done
train "seed${SEEDS%% *}-dsp" "$OUT/seed${SEEDS%% *}" "$DSP" --seed "${SEEDS%% *}" --limit "$DSP_PAIRS"
$PYTHON studies/reward_table.py "$OUT"

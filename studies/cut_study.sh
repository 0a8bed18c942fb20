#!/usr/bin/env bash
# What CUT does to blamed tokens, beside hindsight, MLE and controls, on judgments that nothing was trained on.
#
#   TRAIN=train-alpaca-sample-iter1.json HELD_OUT=train-alpaca-sample-iter3.json SHEPHERD=human_data_for_model.jsonl \
#     bash studies/cut_study.sh
#
# Hardware   2 cores and 8 GB for the embedded model; a GPU for any other
# Time       an hour on 2 cores for 400 rows and two seeds; minutes on an H200 with SIDE_BY_SIDE=True
# Expected   the tables in docs/cut.md, one a seed
#
# TRAIN and HELD_OUT are two of CUT's released iterations, SHEPHERD its offline data, which can be left out. Each method
# learns the same first ROWS rows, the satisfactory ones downsampled as in the paper (for MLE, which learns these alone,
# to as many as there are flawed ones). The controls are CUT on the same rows with another row's judgment (shuffled),
# and with a bare verdict (bare): what they do as well as CUT is not owed to what the judgments say. One adapter of CUT
# is then merged, and generates. The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${TRAIN:?TRAIN is rows with judgments}" "${HELD_OUT:?HELD_OUT is other rows}"
MODEL=${MODEL:-saved_models/SmolLM2-135M-Instruct}
OUT=${OUT:-outputs/cut_study}
SEEDS=${SEEDS:-0 1}
ROWS=${ROWS:-400}
SHEPHERD=${SHEPHERD:-}
SHEPHERD_ROWS=${SHEPHERD_ROWS:-100}
MEASURED=${MEASURED:-80}         # flawed rows of HELD_OUT
SIDE_BY_SIDE=${SIDE_BY_SIDE:-}   # True: all trainings at once, on one large GPU
FLAGS=${FLAGS:-}                 # more flags of finetune_unlikelihood.py
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}

running=
train() { # name, data, more flags: at once or in its turn
  local name=$1 data=$2
  shift 2
  # shellcheck disable=SC2086
  set -- $PYTHON finetune_unlikelihood.py --base_model "$MODEL" --data_path "$data" --output_dir "$OUT/$name" \
    --cutoff_len 512 --micro_batch_size 4 --warmup_steps 2 --resume_from_checkpoint True "$@" $FLAGS
  if [ "$SIDE_BY_SIDE" = True ]; then
    "$@" &
    running="$running $!"
  else
    "$@"
  fi
}

first=${SEEDS%% *}
shepherd=()
if [ -n "$SHEPHERD" ]; then
  $PYTHON scripts/convert2alpaca.py "$SHEPHERD" "$OUT/shepherd.json"
  train shepherd "$OUT/shepherd.json" --limit "$SHEPHERD_ROWS" --seed "$first" --threshold 1.2 --weight_unlike 0.5
  shepherd=("$OUT/shepherd")
fi
for seed in $SEEDS; do
  train "cut$seed" "$TRAIN" --limit "$ROWS" --seed "$seed" --method cut --downsample 0.25
  train "shuffled$seed" "$TRAIN" --limit "$ROWS" --seed "$seed" --method cut --downsample 0.25 --control shuffled
  train "bare$seed" "$TRAIN" --limit "$ROWS" --seed "$seed" --method cut --downsample 0.25 --control bare
  train "hindsight$seed" "$TRAIN" --limit "$ROWS" --seed "$seed" --method hindsight --downsample 0.25
  train "mle$seed" "$TRAIN" --limit "$ROWS" --seed "$seed" --method mle --downsample 1.25
done
for process in $running; do wait "$process"; done

for seed in $SEEDS; do
  $PYTHON studies/blame_table.py --base_model "$MODEL" --data_path "$HELD_OUT" --limit "$MEASURED" --cutoff_len 512 \
    --versus "hindsight$seed" "cut$seed" --adapters "$OUT/cut$seed" "$OUT/shuffled$seed" "$OUT/bare$seed" \
    "$OUT/hindsight$seed" "$OUT/mle$seed" "${shepherd[@]}"
  shepherd=()
done
$PYTHON merge.py --base_model_name_or_path "$MODEL" --peft_model_path "$OUT/cut$first" --output_dir "$OUT/merged"
$PYTHON generate.py --base_model_name_or_path "$OUT/merged" --data_path "$HELD_OUT" --limit 8 --max_new_tokens 128 \
  --use_hf True

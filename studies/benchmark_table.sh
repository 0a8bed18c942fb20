#!/usr/bin/env bash
# The papers' benchmarks of a policy, of reward models that ALMoST's rule makes of it, and of controls, in one table.
#
#   ANSWERS=results HHH=hhh_eval.json DSP=helpful.test.json TRUTHFUL=mc_task.json bash studies/benchmark_table.sh
#
# Hardware   one GPU; or 2 cores and 12 GB for the embedded model
# Time       about 4 minutes on an H200 with SIDE_BY_SIDE=True; hours on 2 cores
# Expected   the table in README.md and its picture: static HHH, TruthfulQA, DSP, held-out pairs and those of like length,
#            with 95% intervals, of MODEL, of its reward models, and of the longest response and a random one
#
# ANSWERS holds <model>/model_outputs.json of AlpacaEval's published results, best model first in RUBRIC. Each seed makes
# a reward model of their comparisons, and one more of pairs of which the longer wins (--control length). POLICIES and
# REWARD_MODELS are more folders to measure beside, as quickstart and the other studies leave them. The same command goes
# on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${ANSWERS:?ANSWERS is the folder of <model>/model_outputs.json}" "${HHH:?HHH is static HHH}"
: "${DSP:?DSP is general preferences}" "${TRUTHFUL:?TRUTHFUL is mc_task.json or TruthfulQA.csv}"
MODEL=${MODEL:-saved_models/SmolLM2-135M-Instruct}
RUBRIC=${RUBRIC:-Qwen1.5-72B-Chat Qwen1.5-14B-Chat Qwen1.5-7B-Chat Qwen1.5-1.8B-Chat}
OUT=${OUT:-outputs/benchmark_table}
SEEDS=${SEEDS-0 1}               # none: only what POLICIES and REWARD_MODELS name
PROMPTS=${PROMPTS:-805}          # at most, of which 45% are held out
POLICIES=${POLICIES:-}           # more policies
REWARD_MODELS=${REWARD_MODELS:-} # more reward models
SIDE_BY_SIDE=${SIDE_BY_SIDE:-}   # True: what does not wait for another at once, on one large GPU
FLAGS=${FLAGS:-}                 # more flags of train.py
LIMIT=${LIMIT:-}                 # items of each benchmark, for a trial
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
few=(${LIMIT:+--limit "$LIMIT"})

twice=$(for model in $MODEL $POLICIES $REWARD_MODELS; do basename "$model"; done | sort | uniq -d)
if [ -n "$twice" ]; then # results go by that name
  echo "two of MODEL, POLICIES and REWARD_MODELS are called $twice; give links of other names" >&2
  exit 2
fi

# shellcheck disable=SC2086
$PYTHON scripts/collect_answers.py --answers_dir "$ANSWERS" --models $RUBRIC --output_dir "$OUT" --held_out 0.45 \
  --limit "$PROMPTS"
for part in "$OUT" "$OUT/held_out"; do
  # shellcheck disable=SC2086
  $PYTHON synthetic_feedback.py --mode cs --output_dir "$part" --rubric $RUBRIC
done

running=
beside() { # a command, at once or in its turn
  if [ "$SIDE_BY_SIDE" = True ]; then
    "$@" &
    running="$running $!"
  else
    "$@"
  fi
}
finish() { # what runs beside
  for process in $running; do wait "$process"; done
  running=
}
train() { # name, more flags
  local name=$1
  shift
  # shellcheck disable=SC2086
  $PYTHON train.py --objective reward --model_name_or_path "$MODEL" --data_path "$OUT/comparison.json" \
    --output_dir "$OUT/$name" --bf16 True --model_max_length 512 --per_device_train_batch_size 8 \
    --learning_rate 4e-5 --warmup_ratio 0.1 "$@" $FLAGS
}
policy() { # benchmark, its rows, a policy
  $PYTHON eval/run_evaluation.py --benchmark_name "$1" --data_path "$2" --model_name_or_path "$3" \
    --output_dir "$OUT/eval" "${few[@]}"
}
choices() { # name, rows
  # shellcheck disable=SC2086
  $PYTHON eval/reward_model.py --data_path "$2" --reward_model $rewards --output_file "$OUT/eval/$1.json" "${few[@]}"
}
truthful() { # a reward model
  $PYTHON eval/run_evaluation.py --benchmark_name truthful --data_path "$TRUTHFUL" --reward_model "$1" \
    --output_dir "$OUT/eval" "${few[@]}"
}

rewards=
for seed in $SEEDS; do
  beside train "seed$seed" --seed "$seed"
  beside train "length$seed" --seed "$seed" --control length
  rewards="$rewards $OUT/seed$seed $OUT/length$seed"
done
for model in $MODEL $POLICIES; do
  beside policy hhh "$HHH" "$model"
  beside policy truthful "$TRUTHFUL" "$model"
done
finish
rewards="$rewards $REWARD_MODELS"
beside choices hhh "$HHH"
beside choices dsp "$DSP"
beside choices pairs "$OUT/held_out/comparison.json"
for model in $rewards; do beside truthful "$model"; done
finish
$PYTHON studies/benchmark_table.py "$OUT/eval" --base "$(basename "$MODEL")"

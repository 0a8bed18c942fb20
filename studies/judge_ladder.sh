#!/usr/bin/env bash
# What a judge's bias does to a ladder of models, and what is left when length is all that a judge sees.
#
#   ANSWERS="alpaca_eval/Qwen1.5-72B-Chat/model_outputs.json alpaca_eval/text_davinci_003/model_outputs.json" \
#       bash studies/judge_ladder.sh
#
# ANSWERS: three files or more with answers of models to the same questions, as AlpacaEval's leaderboard stores them.
# Each question and every two models are compared in both orders by: a simulated judge without a bias; one that gives a
# point to the answer that is shown first, 0.3 for each doubling of the length, and noise; the longer answer; and a
# reward model, where REWARD_MODEL names one.
#
# Hardware   a CPU; REWARD_MODEL as it needs
# Time       8 minutes for five models' 805 answers
# Result     $OUT/<judge>.json and .log. The biased judge's lean is its knob within the interval, and the ranks of the
#            other's ladder lie within those of its own; by the longer answer every length-controlled rate is near 50%.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-outputs/judge_ladder}
PYTHON=${PYTHON:-python}
mkdir -p "$OUT"

compare() { # name, flags of the judge
    local name=$1; shift
    "$PYTHON" eval/pairwise.py --answers $ANSWERS --output_file "$OUT/$name.json" "$@" 2>&1 | tee "$OUT/$name.log"
}

compare sound --backend simulated --model_name_or_path judge --scores
compare biased --backend simulated --model_name_or_path "judge?position=1&length=0.3&noise=0.5" --scores
compare longest --judge longest
[ -z "${REWARD_MODEL:-}" ] || compare reward --reward_model "$REWARD_MODEL"

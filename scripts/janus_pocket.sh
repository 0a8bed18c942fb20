#!/usr/bin/env bash
# Janus, the whole chain at pocket scale: a collection, SFT on one, two and three messages an instruction, DPO, reward
# model, best of n; then the bench by a simulated and by a real judge, and how much each model heeds its system message.
#
#   ANSWERS=results bash scripts/janus_pocket.sh    # results/<model>/model_outputs.json, as AlpacaEval publishes them
#
# Hardware   2 cores and 8 GB
# Time       about an hour on one core of two, of which the real judge a quarter
# Expected   the paper: DPO above SFT on the bench (4.24 and 4.17 of 5), three messages better than two and one. Here a
#            model of 135 million parameters learns from some 200 responses: what it can show is whether it heeds the
#            message more than before.
#
# The responses are answers of other models, each matched with a message that it keeps to (scripts/tree_collection.py):
# this model cannot write any that do. Every part finds what it has finished: the same command goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${ANSWERS:?ANSWERS is the folder of AlpacaEval results, <model>/model_outputs.json}"
MODELS=${MODELS:-Qwen1.5-72B-Chat Qwen1.5-14B-Chat Qwen1.5-7B-Chat Qwen1.5-1.8B-Chat text_davinci_003}
TREE=${TREE:-assets/janus/preferences.json}
LONGEST=${LONGEST:-600}   # characters of a response
BASE=${BASE:-saved_models/SmolLM2-135M-Instruct}
OUT=${OUT:-outputs/janus_pocket}
EPOCHS=${EPOCHS:-2}       # of supervised training
TOKENS=${TOKENS:-192}     # of an answer
CANDIDATES=${CANDIDATES:-4}
JUDGE=${JUDGE:-$BASE}     # the real judge; empty: none
ENGINE=${ENGINE:-}        # engine flags of answers and real judge: --backend hf
FLAGS=${FLAGS:-"--bf16 True"} # more flags of train.py
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
export PYTHON NPROC=1

# 1. The collection: with three, two and one messages an instruction
all=$OUT/collection
# shellcheck disable=SC2086
$PYTHON scripts/tree_collection.py --answers_dir "$ANSWERS" --models $MODELS --preference_tree "$TREE" \
  --longest "$LONGEST" --output_dir "$all"
$PYTHON system_messages.py --mode ds --output_dir "$all"
$PYTHON - "$all" <<'CODE'
import json, random, sys
from itertools import groupby
from pathlib import Path

folder = Path(sys.argv[1])
rows = json.loads((folder / "multifaceted_sft.json").read_text("utf-8"))
draw = random.Random(42)
two = [row for _, own in groupby(rows, key=lambda row: row["prompt"]) for row in draw.sample(list(own), 2)]
(folder / "multifaceted_two.json").write_text(json.dumps(two, ensure_ascii=False, indent=0), "utf-8")
CODE

# 2. Training: the recipes of the paper, smaller
supervised() { # part of the collection, name
  COLLECTION=$all BASE=$BASE PART=$1 OUT=$OUT/$2 EPOCHS=$EPOCHS RATE=5e-5 LENGTH=512 BATCH=1 ACCUMULATION=2 \
    FLAGS=$FLAGS bash scripts/janus_sft.sh
}
supervised small sft_one
supervised two sft_two
supervised sft sft
COLLECTION=$all SFT=$OUT/sft_one OUT=$OUT/dpo RATE=5e-6 LENGTH=512 FLAGS=$FLAGS bash scripts/janus_dpo.sh
$PYTHON train.py --objective reward --template mistral --model_name_or_path "$OUT/sft_one" \
  --data_path "$all/multifaceted_rm.json" --eval_data_path "$all/multifaceted_rm_test.json" \
  --output_dir "$OUT/reward" --model_max_length 512 --per_device_train_batch_size 4 --learning_rate 2e-5 \
  --resume_from_checkpoint True --save_strategy steps --save_total_limit 1 $FLAGS

# 3. Answers to the bench, by the paper's sampling; of the supervised model also the best of n
bench=$all/multifaceted_bench.json
answer() { # name, model, more flags
  local name=$1 model=$2
  shift 2
  # shellcheck disable=SC2086
  $PYTHON generate.py --base_model_name_or_path "$model" --data_path "$bench" --output_file "$OUT/answers/$name.json" \
    --recipe janus --max_new_tokens "$TOKENS" $ENGINE "$@"
}
answer base "$BASE" --template chat
answer sft "$OUT/sft"
answer dpo "$OUT/dpo"
answer best "$OUT/sft" --n "$CANDIDATES" --reward_model "$OUT/reward"

# 4. The bench, and how much each model heeds its message
grade() { # name, flags of the judge
  local name=$1
  shift
  $PYTHON eval/multifaceted_bench.py --bench "$bench" --output_file "$OUT/grades/$name.json" \
    --compare "$OUT"/answers/{base,sft,dpo,best}.json "$@"
}
grade unbiased --backend simulated --model_name_or_path 'judge?noise=0.3'
grade likes_length --backend simulated --model_name_or_path 'judge?noise=0.3&length=0.5'
if [ -n "$JUDGE" ]; then
  # shellcheck disable=SC2086
  grade real --model_name_or_path "$JUDGE" --as_json --max_new_tokens 192 $ENGINE
fi
$PYTHON eval/multifaceted_bench.py --bench "$bench" --output_file "$OUT/grades/ablation.json" \
  --ablate true empty shuffled opposite --policy_max_new_tokens 0 \
  --policy "$BASE" "$OUT/sft_one" "$OUT/sft_two" "$OUT/sft" "$OUT/dpo"

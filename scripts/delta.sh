#!/usr/bin/env bash
# ALMoST's rule without a reward model (delta learning, arXiv 2507.06187): comparisons of a larger and a smaller model
# straight into length-normalised DPO; beside it the control, supervised training on the chosen answers alone.
#
#   BASE=saved_models/tulu-3-8b-sft DATA=outputs/qwen/comparison.json HHH=hhh_eval.json bash scripts/delta.sh
#
# Hardware   8 GPUs of 80 GB for an 8B base (NPROC=8 FLAGS="--bf16 True --gradient_checkpointing True --fsdp
#            full_shard"); NPROC=1 runs anywhere
# Time       4,688 steps of 32 pairs for the paper's 150,000, and as many of 32 answers
# Expected   the paper: DPO makes the base better than the answers that it learns from, and the control makes it worse.
#            Not run here at full size.
#
# DATA is comparison.json of --mode cs. The paper's answers are greedy, of at most 2,048 tokens, by Qwen2.5-3B-Instruct
# over Qwen2.5-1.5B-Instruct, each under its own chat template. HHH is static HHH: base, DPO and control are asked.
# A small run needs a larger LEARNING_RATE: a few steps of 5e-8 are lost when weights are rounded to bf16, to be saved.
# The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${BASE:?BASE is the model to train, a folder or hub name}" "${DATA:?DATA is comparison.json of --mode cs}"
OUT=${OUT:-outputs/delta}                    # dpo/ and sft/, and each one's .hhh.json
HHH=${HHH:-}                                 # static HHH's rows; without it nothing is evaluated
TEMPLATE=${TEMPLATE:-chat}                   # almost for a base without a chat template
LEARNING_RATE=${LEARNING_RATE:-5e-8}         # of DPO
SFT_LEARNING_RATE=${SFT_LEARNING_RATE:-2e-5} # of the control: ALMoST's, as the default of --objective sft
NPROC=${NPROC:-1}
ACCUMULATION=${ACCUMULATION:-$((32 / NPROC))} # one pair a micro-batch; 32 a step where NPROC divides it
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
FLAGS=${FLAGS:-}                             # more flags of train.py, for both: --limit 64 --bf16 True

learn() { # name, more flags
  local name=$1
  shift
  # shellcheck disable=SC2086
  $PYTHON -m torch.distributed.run --nproc_per_node="$NPROC" --master_port="${MASTER_PORT:-1233}" \
    train.py --model_name_or_path "$BASE" --data_path "$DATA" --output_dir "$OUT/$name" --template "$TEMPLATE" \
    --per_device_train_batch_size 1 --gradient_accumulation_steps "$ACCUMULATION" --num_train_epochs 1 \
    --model_max_length 2048 --lr_scheduler_type cosine --warmup_ratio 0.03 --save_strategy steps --save_total_limit 1 \
    --resume_from_checkpoint True "$@" $FLAGS
}

ask() { # name, model
  $PYTHON eval/run_evaluation.py --benchmark_name hhh --data_path "$HHH" --model_name_or_path "$2" \
    --output_path "$OUT/$1.hhh.json"
}

learn dpo --objective dpo --length_normalized --beta 5 --learning_rate "$LEARNING_RATE"
learn sft --objective sft --output_key chosen --learning_rate "$SFT_LEARNING_RATE"
if [ -n "$HHH" ]; then
  ask base "$BASE"
  ask dpo "$OUT/dpo"
  ask sft "$OUT/sft"
fi

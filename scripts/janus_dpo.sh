#!/usr/bin/env bash
# Janus + DPO: the response under a system message over one written under another message of the same instruction.
#
#   COLLECTION=outputs/collection SFT=outputs/janus_small bash scripts/janus_dpo.sh
#   COLLECTION=outputs/collection SFT=outputs/pocket/sft NPROC=1 RATE=5e-6 LENGTH=1024 FLAGS="--limit 96" \
#     OUT=outputs/pocket/dpo bash scripts/janus_dpo.sh                                           # pocket scale
#
# Hardware   4 GPUs of 80 GB for a 7B model; pocket scale 2 cores and 6 GB
# Time       8,144 steps of 16 pairs, the paper's 1 to 2 days. Pocket scale: docs/results.md
# Expected   the paper, Multifaceted Bench: Janus+DPO 4.24 of 5, Janus 4.17. Not run here at full size.
#
# SFT is Janus*, of janus_sft.sh with PART=small, as in the paper. torch's AdamW stands for 8-bit Adam, which steps no
# weights that FSDP shards. The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${COLLECTION:?COLLECTION is the folder of multifaceted_dpo.json}" "${SFT:?SFT is what janus_sft.sh made, PART=small}"
OUT=${OUT:-outputs/janus_dpo}
RATE=${RATE:-5e-7}
LENGTH=${LENGTH:-2048}           # tokens of a prompt and its response
NPROC=${NPROC:-4}
ACCUMULATION=${ACCUMULATION:-4}  # micro-batches of one pair a step and process: 16 pairs a step in all
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
FLAGS=${FLAGS:-"--bf16 True --gradient_checkpointing True --fsdp full_shard"} # more flags of train.py

# shellcheck disable=SC2086
$PYTHON -m torch.distributed.run --nproc_per_node="$NPROC" --master_port="${MASTER_PORT:-1233}" \
  train.py --objective dpo --template mistral --model_name_or_path "$SFT" \
  --data_path "$COLLECTION/multifaceted_dpo.json" --output_dir "$OUT" --beta 0.1 --model_max_length "$LENGTH" \
  --per_device_train_batch_size 1 --gradient_accumulation_steps "$ACCUMULATION" --num_train_epochs 2 \
  --learning_rate "$RATE" --lr_scheduler_type cosine --warmup_steps 10 --weight_decay 0 \
  --save_strategy steps --save_total_limit 1 --resume_from_checkpoint True $FLAGS

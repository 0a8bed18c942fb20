#!/usr/bin/env bash
# Janus + ORPO: supervised training and preferences in one, from the base, in ChatML.
#
#   COLLECTION=outputs/collection bash scripts/janus_orpo.sh
#   COLLECTION=outputs/collection BASE=saved_models/SmolLM2-135M-Instruct NPROC=1 RATE=5e-5 LENGTH=1024 \
#     FLAGS="--limit 96" OUT=outputs/pocket/orpo bash scripts/janus_orpo.sh                      # pocket scale
#
# Hardware   4 GPUs of 80 GB for a 7B base; pocket scale 2 cores and 6 GB
# Time       8,082 steps of 16 pairs, the paper's 1 to 2 days. Pocket scale: docs/results.md
# Expected   the paper, Multifaceted Bench: Janus+ORPO 4.18 of 5, Janus 4.17. Not run here at full size.
#
# A base without <|im_start|> and <|im_end|> gets them. What is saved names its template, and generate.py asks in that;
# the released inference code asked in [INST] (J11). torch's AdamW stands for 8-bit Adam, which steps no weights that
# FSDP shards. The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${COLLECTION:?COLLECTION is the folder of multifaceted_orpo.json}"
BASE=${BASE:-mistral-community/Mistral-7B-v0.2}
TEMPLATE=${TEMPLATE:-chatml}     # mistral, as the other models have it
OUT=${OUT:-outputs/janus_orpo}
RATE=${RATE:-5e-6}
LENGTH=${LENGTH:-4096}           # tokens of a prompt and its response
NPROC=${NPROC:-4}
ACCUMULATION=${ACCUMULATION:-4}  # micro-batches of one pair a step and process: 16 pairs a step in all
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
FLAGS=${FLAGS:-"--bf16 True --gradient_checkpointing True --fsdp full_shard"} # more flags of train.py

# shellcheck disable=SC2086
$PYTHON -m torch.distributed.run --nproc_per_node="$NPROC" --master_port="${MASTER_PORT:-1233}" \
  train.py --objective orpo --template "$TEMPLATE" --model_name_or_path "$BASE" \
  --data_path "$COLLECTION/multifaceted_orpo.json" --output_dir "$OUT" --orpo_alpha 0.1 --model_max_length "$LENGTH" \
  --per_device_train_batch_size 1 --gradient_accumulation_steps "$ACCUMULATION" --num_train_epochs 2 \
  --learning_rate "$RATE" --lr_scheduler_type cosine --warmup_steps 10 --weight_decay 0 \
  --save_strategy steps --save_total_limit 1 --resume_from_checkpoint True $FLAGS

#!/usr/bin/env bash
# Janus, supervised: gold responses under their system messages, packed, loss on the responses alone.
#
#   COLLECTION=outputs/collection bash scripts/janus_sft.sh                                      # Janus
#   COLLECTION=outputs/collection PART=small bash scripts/janus_sft.sh                           # Janus*, of a third
#   COLLECTION=outputs/collection EPOCHS=1 OUT=outputs/janus_once bash scripts/janus_sft.sh      # for the reward model
#   COLLECTION=outputs/collection BASE=saved_models/SmolLM2-135M-Instruct NPROC=1 LENGTH=1024 BATCH=1 ACCUMULATION=4 \
#     EPOCHS=2 RATE=5e-5 FLAGS="--limit 240" OUT=outputs/pocket/sft bash scripts/janus_sft.sh    # pocket scale
#
# Hardware   4 GPUs of 80 GB for a 7B base; pocket scale 2 cores and 6 GB
# Time       the paper: 3,004 steps of 32 lines of 8,192 tokens, 1 to 2 days. Pocket scale: docs/results.md
# Expected   the paper, Multifaceted Bench: Janus 4.17 of 5, Mistral 7B Instruct v0.2 3.93. Not run here at full size.
#
# COLLECTION is the folder that system_messages.py --mode import (the published one) or --mode ds (yours) wrote.
# The paper steps with 8-bit Adam on DeepSpeed's shards. No optimiser of bitsandbytes steps weights that FSDP shards, so
# it is torch's AdamW here; where one GPU holds all: NPROC=1 FLAGS="--bf16 True --optim adamw_bnb_8bit".
# The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${COLLECTION:?COLLECTION is the folder of multifaceted_sft.json}"
BASE=${BASE:-mistral-community/Mistral-7B-v0.2}
PART=${PART:-sft}                # small: one of an instruction's three variants
OUT=${OUT:-outputs/janus_$PART}
EPOCHS=${EPOCHS:-4}
RATE=${RATE:-5e-6}
LENGTH=${LENGTH:-8192}           # tokens of a packed line
NPROC=${NPROC:-4}
BATCH=${BATCH:-2}                # lines a micro-batch
ACCUMULATION=${ACCUMULATION:-4}  # micro-batches a step and process: 32 lines a step in all
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
FLAGS=${FLAGS:-"--bf16 True --gradient_checkpointing True --fsdp full_shard"} # more flags of train.py

# shellcheck disable=SC2086
$PYTHON -m torch.distributed.run --nproc_per_node="$NPROC" --master_port="${MASTER_PORT:-1233}" \
  train.py --objective sft --template mistral --model_name_or_path "$BASE" \
  --data_path "$COLLECTION/multifaceted_$PART.json" --output_dir "$OUT" --packing True --model_max_length "$LENGTH" \
  --per_device_train_batch_size "$BATCH" --gradient_accumulation_steps "$ACCUMULATION" --num_train_epochs "$EPOCHS" \
  --learning_rate "$RATE" --lr_scheduler_type cosine --warmup_steps 10 --weight_decay 0 \
  --save_strategy steps --save_total_limit 1 --resume_from_checkpoint True $FLAGS
echo "next: generate.py --base_model_name_or_path $OUT --data_path $COLLECTION/multifaceted_bench.json --recipe janus"

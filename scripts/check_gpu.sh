#!/usr/bin/env bash
# What CPUs cannot prove of training: FSDP over NCCL, flash attention, 8-bit Adam, memory and utilisation at 7B.
#
#   bash scripts/check_gpu.sh [MODEL]          # default saved_models/SmolLM2-135M-Instruct
#
# Hardware: one CUDA GPU or more; the 7B lines need 80 GB, and are left out on less. Time: about 10 minutes.
# Expected: every line "ok", and at the end the ratios beside their targets. Stops at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
MODEL=${1:-saved_models/SmolLM2-135M-Instruct}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
GPUS=$($PYTHON -c "import torch; print(torch.cuda.device_count())")
[ "$GPUS" -ge 1 ] || { echo "check_gpu.sh: error: no CUDA device is visible" >&2; exit 2; }
$PYTHON -c "import torch, transformers as t; print(torch.cuda.get_device_name(), torch.__version__, t.__version__)"

$PYTHON scripts/made_up_rows.py "$WORK"

# Each run ends with its own proof: the saved model is loaded by a fresh process and gives the trained model's values.
SHARED="--model_name_or_path $MODEL --bf16 True --tf32 True --gradient_checkpointing True --max_steps 10"
train() {  # name, processes, flags
    local name=$1 processes=$2; shift 2
    $PYTHON -m torch.distributed.run --nproc_per_node="$processes" --master_port=$((20000 + RANDOM)) train.py $SHARED \
        --output_dir "$WORK/$name" --per_device_train_batch_size 4 --gradient_accumulation_steps 2 "$@" \
        > "$WORK/$name.log" 2>&1 || { tail -20 "$WORK/$name.log"; exit 1; }
    grep -q '"agrees": true' "$WORK/$name.log" && echo "ok  $name: $(tail -1 "$WORK/$name.log")"
}

train reward 1 --train_reward_model True --data_path "$WORK/pairs.json"
train sft 1 --objective sft --data_path "$WORK/sft.json" --optim adamw_torch_fused
train packed 1 --objective sft --data_path "$WORK/sft.json" --packing True --model_max_length 2048
train dpo 1 --objective dpo --data_path "$WORK/pairs.json"
train orpo 1 --objective orpo --data_path "$WORK/pairs.json"
train lora 1 --objective dpo --data_path "$WORK/pairs.json" --lora_r 8
if $PYTHON -c "import bitsandbytes" 2> /dev/null; then
    train adam8bit 1 --objective sft --data_path "$WORK/sft.json" --optim adamw_bnb_8bit
    train lora8bit 1 --objective sft --data_path "$WORK/sft.json" --lora_r 8 --load_in_8bit True
    train lora4bit 1 --objective reward --data_path "$WORK/pairs.json" --lora_r 8 --load_in_4bit True
else
    echo "left out: bitsandbytes is not installed"
fi
if $PYTHON -c "import flash_attn" 2> /dev/null; then
    train flash 1 --objective sft --data_path "$WORK/sft.json" --packing True --attn_implementation flash_attention_2
else
    echo "left out: flash_attn is not installed"
fi

# Sharded: as many processes as GPUs, at most four; the losses of one GPU, and a checkpoint of plain transformers.
if [ "$GPUS" -ge 2 ]; then
    RANKS=$((GPUS < 4 ? GPUS : 4))
    FSDP=(--fsdp "full_shard auto_wrap" --fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer)
    train fsdp_reward "$RANKS" --train_reward_model True --data_path "$WORK/pairs.json" "${FSDP[@]}"
    train fsdp_sft "$RANKS" --objective sft --data_path "$WORK/sft.json" "${FSDP[@]}"
    train fsdp_dpo "$RANKS" --objective dpo --data_path "$WORK/pairs.json" "${FSDP[@]}"
    train fsdp_resume "$RANKS" --objective sft --data_path "$WORK/sft.json" "${FSDP[@]}" --save_strategy steps --save_steps 5
    rm -f "$WORK/fsdp_resume.run.json"
    train fsdp_resume "$RANKS" --objective sft --data_path "$WORK/sft.json" "${FSDP[@]}" --save_strategy steps \
        --save_steps 5 --resume_from_checkpoint "$WORK/fsdp_resume/checkpoint-5"
else
    echo "left out: one GPU, so nothing to shard over"
fi

# Speed: each prints its ratio and its target.
$PYTHON benchmarks/reward_model.py --model_name_or_path "$MODEL" --pairs 128 --dtype bfloat16
$PYTHON benchmarks/sft_memory.py --model_name_or_path "$MODEL" --dtype bfloat16 --batch_size 8
$PYTHON benchmarks/hhh.py --model_name_or_path "$MODEL" --data_path "$WORK/hhh.json" --limit 221 --dtype bfloat16
$PYTHON benchmarks/cut_step.py --base_model "$MODEL" --data_path "$WORK/judged.json"
MEMORY=$($PYTHON -c "import torch; print(torch.cuda.get_device_properties(0).total_memory >> 30)")
if [ "$MEMORY" -ge 75 ]; then
    $PYTHON benchmarks/reward_model.py --shape 7b --dtype bfloat16 --flat 1024 --pairs 16 --batch_size 4
    $PYTHON benchmarks/sft_memory.py --shape 8b --dtype bfloat16 --batch_size 8
    $PYTHON benchmarks/cut_step.py --llama_7b_shapes --base_model "$MODEL" --data_path "$WORK/judged.json"
else
    echo "left out: 7B shapes need 80 GB"
fi

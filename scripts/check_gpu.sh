#!/usr/bin/env bash
# What a CPU cannot prove: attention in one kernel, every trainer in bf16 and TF32, FSDP over NCCL, speed and memory at 7B.
#
#     bash scripts/check_gpu.sh train        # right: each run's saved model gives a fresh process the trained one's values
#     bash scripts/check_gpu.sh speed        # fast: figures beside their targets
#     bash scripts/check_gpu.sh train dry    # no GPU: that the lines themselves run, on a CPU
#
# Hardware: one GPU of 80 GB. Needs torch, transformers, peft and accelerate, and makes its own models and rows. Time: at
# most six minutes each. Expected: "ok" before every line. A line that fails says why, and the next one runs; full logs
# are in $LOGS, or else in a temporary folder that is named at the end. ONLY="reward sft ppo" runs these lines alone.
set -uo pipefail
cd "$(dirname "$0")/.."

WHAT=${1:-} DRY=${2:-}
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
LOGS=${LOGS:-$(mktemp -d)} BUDGET=${BUDGET:-360} ONLY=${ONLY:-}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} XDG_CACHE_HOME=$WORK/cache
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
case "$WHAT $DRY" in
    "train " | "speed ")
        GPUS=$("$PYTHON" -c "import torch; print(torch.cuda.device_count())")
        [ "$GPUS" -ge 1 ] || { echo "check_gpu.sh: error: no CUDA device is visible; add dry to try it without" >&2; exit 2; }
        "$PYTHON" -c "import torch as t, transformers as h
print(t.cuda.get_device_name(), t.cuda.get_device_properties(0).total_memory >> 30, 'GiB, torch', t.__version__,
      'transformers', h.__version__, 'cuDNN', t.backends.cudnn.version(), 'NCCL', t.cuda.nccl.version())"
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
        ROWS=64 STEPS=8 AT_ONCE=5 LENGTH=1024 WORDS=160
        ;;
    "train dry" | "speed dry")
        export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
        ROWS=40 STEPS=2 AT_ONCE=1 LENGTH=128 WORDS=15 BUDGET=3600 LIMIT=900
        ;;
    *)
        echo "check_gpu.sh: error: say train or speed, and dry after it to try it without a GPU" >&2
        exit 2
        ;;
esac

# line NAME COMMAND...: run it, unless the time is up, and say whether it succeeded, its seconds, and what it said last
line() {
    local name=$1 log=$LOGS/$WHAT-$1.log started=$SECONDS state=ok left=$((BUDGET - SECONDS)) limit=${LIMIT:-150}
    [[ -z $ONLY || " $ONLY " == *" $name "* ]] || return 0
    [ $left -gt 15 ] || { echo "left out, for want of time: $name" && echo "$name" >> "$WORK/failed" && return; }
    shift
    echo "\$ $*" > "$log"
    timeout -k 5 $((limit < left ? limit : left)) "$@" >> "$log" 2>&1 || state=FAIL
    [ $state = ok ] || echo "$name" >> "$WORK/failed"
    printf '%-4s %4ss  %-14s %s\n' $state $((SECONDS - started)) "$name" "$(said $state "$log")"
}

said() { # state, log: of a failure what Python says last, of a benchmark its table, of a run its differences
    if [ "$1" = FAIL ]; then
        grep -E '^[A-Za-z_.]*(Error|Exception)|error:' "$2" | grep -v ChildFailedError | tail -n 1 | cut -c1-300
    elif [ $WHAT = speed ]; then
        echo && tail -n +2 "$2" | grep -v '|' | tail -n 8 | sed 's/^/        /'
    else
        grep -oE '"(single|padded|bf16|tolerance)": [0-9.e-]+' "$2" | tail -n 4 | tr -d '"' | paste -sd, | tr '\n' ' '
        tail -n 1 "$2" | cut -c1-200
    fi
}

side() { # the same beside others, AT_ONCE of them
    while [ "$(jobs -rp | wc -l)" -ge $AT_ONCE ]; do wait -n; done
    line "$@" &
}

"$PYTHON" scripts/made_up_rows.py "$WORK" --num_rows $ROWS --words $WORDS --models llama mistral > "$LOGS/made_up.log" 2>&1
ATTENTION=("$PYTHON" benchmarks/attention.py --dtype bfloat16) SHARED=(--shared 256)
if [ -n "$DRY" ]; then
    ATTENTION=("$PYTHON" benchmarks/attention.py --rows 3 --length 64 --heads 4 --kv_heads 4 --head_size 16)
    SHARED=(--shared 16)
fi

if [ "$WHAT" = train ]; then
    # Three attentions: all heads alike, grouped ones behind a window, rows that share a beginning
    side attention "${ATTENTION[@]}" --repeats 3
    side window "${ATTENTION[@]}" --kv_heads 4 --window 128 --repeats 3
    side shared "${ATTENTION[@]}" --kv_heads 4 "${SHARED[@]}" --repeats 3

    RUN=(--model_name_or_path "$WORK/llama" --max_steps $STEPS --model_max_length $LENGTH --gradient_accumulation_steps 2)
    RUN+=(--per_device_train_batch_size 4 --learning_rate 1e-4)
    HALF=("${RUN[@]}" --bf16 True --tf32 True --gradient_checkpointing True)
    TORCHRUN=("$PYTHON" -m torch.distributed.run --nproc_per_node=1)
    SHARDED=("${HALF[@]}" --fsdp "full_shard auto_wrap")
    side reward "$PYTHON" train.py "${HALF[@]}" --objective reward --data_path "$WORK/pairs.json" --output_dir "$WORK/reward"
    side sft "$PYTHON" train.py "${HALF[@]}" --objective sft --data_path "$WORK/sft.json" --output_dir "$WORK/sft"
    side fsdp_sft "${TORCHRUN[@]}" --master_port=21001 train.py "${SHARDED[@]}" --objective sft \
        --data_path "$WORK/sft.json" --output_dir "$WORK/fsdp_sft"
    side dpo "$PYTHON" train.py "${HALF[@]}" --objective dpo --data_path "$WORK/pairs.json" --output_dir "$WORK/dpo"
    side cut "$PYTHON" finetune_unlikelihood.py --base_model "$WORK/llama" --data_path "$WORK/judged.json" \
        --output_dir "$WORK/cut" --warmup_steps 0 --micro_batch_size 4 --cutoff_len "$LENGTH"
    side fsdp_reward "${TORCHRUN[@]}" --master_port=21002 train.py "${SHARDED[@]}" --objective reward \
        --data_path "$WORK/pairs.json" --output_dir "$WORK/fsdp_reward"
    side fsdp_save "${TORCHRUN[@]}" --master_port=21003 train.py "${SHARDED[@]}" --objective sft \
        --data_path "$WORK/sft.json" --output_dir "$WORK/fsdp_save" --save_strategy steps --save_steps 2
    side fsdp_dpo "${TORCHRUN[@]}" --master_port=21004 train.py "${SHARDED[@]}" --objective dpo \
        --data_path "$WORK/pairs.json" --output_dir "$WORK/fsdp_dpo"
    side fsdp_offload "${TORCHRUN[@]}" --master_port=21005 train.py "${HALF[@]}" --fsdp "full_shard auto_wrap offload" \
        --objective sft --data_path "$WORK/sft.json" --output_dir "$WORK/fsdp_offload"
    side packed "$PYTHON" train.py "${HALF[@]}" --objective sft --data_path "$WORK/sft.json" --packing True \
        --output_dir "$WORK/packed"
    side window_sft "$PYTHON" train.py "${HALF[@]}" --model_name_or_path "$WORK/mistral" --objective sft \
        --data_path "$WORK/sft.json" --output_dir "$WORK/window_sft"
    side orpo "$PYTHON" train.py "${HALF[@]}" --objective orpo --data_path "$WORK/pairs.json" --output_dir "$WORK/orpo"
    side lora "$PYTHON" train.py "${HALF[@]}" --objective dpo --data_path "$WORK/pairs.json" --lora_r 8 \
        --output_dir "$WORK/lora"
    side tf32 "$PYTHON" train.py "${RUN[@]}" --tf32 True --objective reward --data_path "$WORK/pairs.json" \
        --output_dir "$WORK/tf32"
    side fp16 "$PYTHON" train.py "${RUN[@]}" --fp16 True --objective sft --data_path "$WORK/sft.json" \
        --output_dir "$WORK/fp16"
    side segments env PYTORCH_ALLOC_CONF=expandable_segments:True "$PYTHON" train.py "${HALF[@]}" --objective sft \
        --data_path "$WORK/sft.json" --output_dir "$WORK/segments"
    side save "$PYTHON" train.py "${HALF[@]}" --objective sft --data_path "$WORK/sft.json" --save_strategy steps \
        --save_steps 2 --output_dir "$WORK/save"
    wait

    # What goes on from these: a run that is resumed ends as the one that was not stopped
    resumed() { # name, command: from its second step, once its card is gone
        local name=$1
        shift
        rm -f "$WORK/$name.run.json"
        side "${name}_resumed" "$@" --resume_from_checkpoint "$WORK/$name/checkpoint-2"
    }
    resumed save "$PYTHON" train.py "${HALF[@]}" --objective sft --data_path "$WORK/sft.json" --save_strategy steps \
        --save_steps 2 --output_dir "$WORK/save"
    resumed fsdp_save "${TORCHRUN[@]}" --master_port=21006 train.py "${SHARDED[@]}" --objective sft \
        --data_path "$WORK/sft.json" --output_dir "$WORK/fsdp_save" --save_strategy steps --save_steps 2
    DEVICE=$([ -n "$DRY" ] && echo cpu || echo cuda)
    side merge "$PYTHON" merge.py --base_model_name_or_path "$WORK/llama" --peft_model_path "$WORK/cut" \
        --output_dir "$WORK/merged" --device "$DEVICE"
    side hhh "$PYTHON" eval/run_evaluation.py --benchmark_name hhh --data_path "$WORK/hhh.json" --limit 16 \
        --reward_model "$WORK/reward" --output_path "$WORK/hhh_of_reward.json"
    side answers "$PYTHON" generate.py --base_model_name_or_path "$WORK/sft" --data_path "$WORK/judged.json" --limit 8 \
        --max_new_tokens 32 --backend hf
    RL=(--model_name_or_path "$WORK/sft" --data_path "$WORK/pairs.json" --reward "$WORK/reward" --max_steps $STEPS)
    RL+=(--rollout_batch_size 32 --mini_batch_size 16 --max_new_tokens 64 --bf16 True)
    side ppo "$PYTHON" train_rl.py "${RL[@]}" --algorithm ppo --output_dir "$WORK/ppo"
    side grpo "$PYTHON" train_rl.py "${RL[@]}" --algorithm grpo --lora_r 8 --output_dir "$WORK/grpo"
    if [ -z "$DRY" ]; then
        LIMIT=200 line made_7b "$PYTHON" scripts/made_up_rows.py "$WORK/large" --num_rows $ROWS --words $WORDS --models 7b
        LIMIT=240 line lora_7b "$PYTHON" train.py --model_name_or_path "$WORK/large/7b" --objective sft --lora_r 16 \
            --data_path "$WORK/sft.json" --output_dir "$WORK/lora_7b" --bf16 True --tf32 True \
            --gradient_checkpointing True --per_device_train_batch_size 4 --max_steps 2 --model_max_length 1024
    fi
    wait
else
    BASE=(--model_name_or_path "$WORK/llama")
    SHAPE=(--shape 7b --dtype bfloat16) LARGE=(--shape 8b --dtype bfloat16) REPLIES=32
    CUT=(--llama_7b_shapes True --cutoff_len 768)
    [ -n "$DRY" ] && SHAPE=("${BASE[@]}") && LARGE=("${BASE[@]}") && REPLIES=8 && CUT=(--cutoff_len 128)
    line reward_7b "$PYTHON" benchmarks/reward_model.py "${SHAPE[@]}" --flat "$LENGTH" --pairs 8 --batch_size 2
    line sft_7b "$PYTHON" benchmarks/sft_memory.py "${SHAPE[@]}" --length "$LENGTH" --batch_size 4 --way ours \
        --gradient_checkpointing False
    line cut_7b "$PYTHON" benchmarks/cut_step.py "${CUT[@]}" --base_model "$WORK/llama" --data_path "$WORK/judged.json" \
        --micro_batch_size 2 --steps 2
    line attention "${ATTENTION[@]}"
    line shared "${ATTENTION[@]}" --kv_heads 4 "${SHARED[@]}"
    line rl_7b "$PYTHON" benchmarks/rl.py "${SHAPE[@]}" "${BASE[@]}" --lora_r 16 --algorithm grpo --replies "$REPLIES"
    line sft_8b "$PYTHON" benchmarks/sft_memory.py "${LARGE[@]}" --length "$LENGTH" --batch_size 4 --steps 2
    line reward_mixed "$PYTHON" benchmarks/reward_model.py "${SHAPE[@]}" --pairs 16 --batch_size 2 \
        --model_max_length "$LENGTH"
    line hhh "$PYTHON" benchmarks/hhh.py "${BASE[@]}" --data_path "$WORK/hhh.json" --limit 32
fi

echo "logs: $LOGS"
if [ -s "$WORK/failed" ]; then
    echo "failed: $(paste -sd' ' "$WORK/failed")"
    exit 1
fi
echo "all ok"

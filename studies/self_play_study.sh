#!/usr/bin/env bash
# What reward-guided self-play gains, and PPO after it, and how much of that is length: three ways to choose an answer,
# a policy of each, and the first of them reinforced.
#
#   ANSWERS=results bash studies/self_play_study.sh
#
# Hardware   one GPU; or 2 cores and 12 GB for the embedded model
# Time       about 6 minutes on an H200 with BACKEND=hf SIDE_BY_SIDE=True BATCH_SIZE=1024; hours on 2 cores at these sizes
# Expected   the table in docs/results.md: reward and length on held-out prompts, before and after, with 95% intervals
#
# ANSWERS holds <model>/model_outputs.json of AlpacaEval's published results, best model first in RUBRIC: they make the
# reward model. MODEL writes the prompts, talks to itself once for each way of WAYS, and is trained on what came of it.
# The first way's policy is reinforced on RL_PROMPTS others. Every policy, and MODEL as it was, then answers the same
# HELD_OUT prompts. The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${ANSWERS:?ANSWERS is the folder of <model>/model_outputs.json}"
MODEL=${MODEL:-saved_models/SmolLM2-135M-Instruct}
RUBRIC=${RUBRIC:-Qwen1.5-72B-Chat Qwen1.5-14B-Chat Qwen1.5-7B-Chat Qwen1.5-1.8B-Chat}
OUT=${OUT:-outputs/self_play_study}
WAYS=${WAYS:-"reward random longest"}
PROMPTS=${PROMPTS:-256}          # to talk about
RL_PROMPTS=${RL_PROMPTS:-256}    # to reinforce on
RL_STEPS=${RL_STEPS:-12}         # of 256 replies; 0 leaves PPO out
HELD_OUT=${HELD_OUT:-100}        # to be asked before and after
COMPARED=${COMPARED:-805}        # instructions that make the reward model
TOKENS=${TOKENS:-192}            # of an answer at most
BACKEND=${BACKEND:-vllm}
SEED=${SEED:-0}
SIDE_BY_SIDE=${SIDE_BY_SIDE:-}   # True: all ways at once, on one large GPU
FLAGS=${FLAGS:-}                 # more flags of train.py
RL_FLAGS=${RL_FLAGS:-}           # more flags of train_rl.py
BATCH_SIZE=${BATCH_SIZE:-256}    # of the hf engine
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
engine=(--model_name_or_path "$MODEL" --backend "$BACKEND" --batch_size "$BATCH_SIZE" --seed "$SEED")

# The reward model
# shellcheck disable=SC2086
$PYTHON scripts/collect_answers.py --answers_dir "$ANSWERS" --models $RUBRIC --output_dir "$OUT/answers" \
  --held_out 0.2 --limit "$COMPARED"
for part in "$OUT/answers" "$OUT/answers/held_out"; do
  # shellcheck disable=SC2086
  $PYTHON synthetic_feedback.py --mode cs --output_dir "$part" --rubric $RUBRIC
done
# shellcheck disable=SC2086
$PYTHON train.py --objective reward --model_name_or_path "$MODEL" --data_path "$OUT/answers/comparison.json" \
  --output_dir "$OUT/reward_model" --bf16 True --model_max_length 768 --per_device_train_batch_size 8 \
  --learning_rate 4e-5 --warmup_ratio 0.1 --seed "$SEED" $FLAGS
$PYTHON eval/run_evaluation.py --benchmark_name pairs --reward_model "$OUT/reward_model" \
  --data_path "$OUT/answers/held_out/comparison.json" --output_path "$OUT/reward_model.pairs.json"

# Prompts, the last of which are held out
$PYTHON synthetic_feedback.py --mode pg --output_dir "$OUT" --prompt_file_path assets/seed_prompts.txt \
  --num_generation $((PROMPTS + RL_PROMPTS + HELD_OUT)) "${engine[@]}"
tail -n "$HELD_OUT" "$OUT/prompts.txt" > "$OUT/held_out.txt"
sed -n "$((PROMPTS + 1)),$((PROMPTS + RL_PROMPTS))p" "$OUT/prompts.txt" > "$OUT/rl_prompts.txt"

# Self-play, a policy of it, and its answers
ask() { # name, model
  $PYTHON generate.py --model_name_or_path "$2" --data_path "$OUT/held_out.txt" --output_file "$OUT/$1.json" \
    --template almost --temperature 1 --top_p 0.9 --max_new_tokens "$TOKENS" --reward_model "$OUT/reward_model" \
    --backend "$BACKEND" --batch_size "$BATCH_SIZE" --seed "$SEED"
}
play() { # way
  mkdir -p "$OUT/$1"
  head -n "$PROMPTS" "$OUT/prompts.txt" > "$OUT/$1/prompts.txt"
  $PYTHON self_play.py --output_dir "$OUT/$1" --prompt_file_path assets/Faithful_prompt.txt \
    --reward_model "$OUT/reward_model" --choose "$1" --max_new_tokens "$TOKENS" "${engine[@]}"
  # shellcheck disable=SC2086
  $PYTHON train.py --objective sft --model_name_or_path "$MODEL" --data_path "$OUT/$1/almost_train.json" \
    --output_dir "$OUT/$1/policy" --bf16 True --model_max_length 1024 --per_device_train_batch_size 16 \
    --seed "$SEED" $FLAGS
  ask "$1" "$OUT/$1/policy"
}
reinforce() { # way
  # shellcheck disable=SC2086
  $PYTHON train_rl.py --model_name_or_path "$OUT/$1/policy" --data_path "$OUT/rl_prompts.txt" \
    --reward "$OUT/reward_model" --output_dir "$OUT/ppo/policy" --bf16 True --max_new_tokens "$TOKENS" \
    --max_steps "$RL_STEPS" --rollout_batch_size 256 --generation_batch_size 256 --mini_batch_size 64 \
    --learning_rate 5e-6 --save_steps 0 --seed "$SEED" $RL_FLAGS
  ask ppo "$OUT/ppo/policy"
}
finish() { # what runs beside
  for process in $running; do wait "$process"; done
  running=
}
ask before "$MODEL" &
running=$!
for way in $WAYS; do
  [ "$SIDE_BY_SIDE" = True ] || finish
  play "$way" &
  running="$running $!"
done
finish
first=${WAYS%% *}
if [ "$RL_STEPS" -gt 0 ]; then reinforce "$first"; fi
# shellcheck disable=SC2086
$PYTHON scripts/policy_table.py "$OUT" before $WAYS $([ "$RL_STEPS" -gt 0 ] && echo ppo) \
  --self_play "$OUT/$first/self_play.jsonl"

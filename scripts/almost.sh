#!/usr/bin/env bash
# ALMoST, the whole chain: prompts, ranked responses, comparisons, reward model, self-play, supervised policy, PPO. Then
# a table: reward of base, supervised and reinforced policy on held-out prompts, paired, length and HHH beside.
#
#   HHH=hhh_eval.json bash scripts/almost.sh                   # pocket scale: the embedded model in every part
#   BASE=meta-llama/Llama-2-7b-hf CONFIGS="meta-llama/Llama-2-70b-hf:Faithful:3 meta-llama/Llama-2-70b-hf:HHH:5 \
#     meta-llama/Llama-2-13b-hf:HHH:3 meta-llama/Llama-2-7b-hf:HHH:1" PROMPTS=10000 RL_PROMPTS=20000 HELD_OUT=200 \
#     SPOKEN=768 NPROC=8 RM_ACCUMULATION=4 RM_RATE=2e-5 SFT_EPOCHS=3 LORA_R=0 RL_BATCH=128 RL_STEPS=625 RL_RATE=1e-6 \
#     RL_EPOCHS=4 TOKENS=256 ENGINE="--n_gpu 4" FLAGS="--bf16 True --gradient_checkpointing True --fsdp full_shard" \
#     RL_FLAGS="--bf16 True --gradient_checkpointing True --fsdp full_shard" bash scripts/almost.sh    # paper scale
#
# Hardware   2 cores and 8 GB at pocket scale; 8 GPUs of 80 GB at paper scale
# Time       pocket: about 105 minutes on one core of two, of which PPO 40 and self-play 22. Paper scale: not timed
# Sizes      pocket: 96 prompts x 4 configurations, 96 dialogues of 2 turns with 4 candidates, 32 other prompts for 24
#            steps of 16 replies, 40 held out. Paper scale: the released commands' settings of reward model and
#            supervised policy; from memory 20,000 prompts and 80,000 replies of PPO, its lambda of 0.05, 4 epochs and
#            rate 1e-6, self-play's 4 candidates and 2 turns, and the ranks (30B, 30B, 13B, 7B of the first LLaMA, for
#            which Llama 2 stands here)
# Expected   the paper: self-play beats plain supervision, and PPO helps on top (from memory). Pocket scale shows that
#            the chain runs and what moves; a model of 135 million parameters stays a poor one.
#
# Every part finds what it has finished: the same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BASE=${BASE:-saved_models/SmolLM2-135M-Instruct} # of reward model and policy
CONFIGS=${CONFIGS:-"$BASE:Faithful:3 $BASE:HHH:5 $BASE:HHH:3 $BASE:HHH:1"} # model:demonstrations:shots, best first
WRITER=${WRITER:-${CONFIGS%%:*}} # writes prompts, and plays both parts of self-play
OUT=${OUT:-outputs/almost_chain} # step1/ (prompts.txt to almost_train.json), rl/, models, answers/
PROMPTS=${PROMPTS:-96}           # of comparisons and self-play
RL_PROMPTS=${RL_PROMPTS:-32}     # others of the same recipe, for PPO
HELD_OUT=${HELD_OUT:-40}         # others again, only answered
CANDIDATES=${CANDIDATES:-4}
TURNS=${TURNS:-2}
SPOKEN=${SPOKEN:-256}            # tokens of an answer in self-play
RM_ACCUMULATION=${RM_ACCUMULATION:-2}   # micro-batches of 4 pairs a step and process
RM_RATE=${RM_RATE:-4e-5}
SFT_ACCUMULATION=${SFT_ACCUMULATION:-4} # micro-batches of 2 rows a step and process
SFT_EPOCHS=${SFT_EPOCHS:-1}
LORA_R=${LORA_R:-16}             # of PPO; 0 trains all weights
RL_BATCH=${RL_BATCH:-16}         # replies a step, in 4 mini-batches
RL_STEPS=${RL_STEPS:-24}
RL_RATE=${RL_RATE:-1e-4}         # for LoRA
RL_EPOCHS=${RL_EPOCHS:-2}
TOKENS=${TOKENS:-96}             # of a policy's answer, in PPO and held out
HHH=${HHH:-}                     # static HHH's rows; without it HHH is left out
NPROC=${NPROC:-1}
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
ENGINE=${ENGINE:-}               # engine flags of pg, rg and self-play: --backend hf, --n_gpu 4
GENERATE=${GENERATE:-}           # engine flags of the held-out answers
FLAGS=${FLAGS:-"--bf16 True"}    # more flags of train.py
RL_FLAGS=${RL_FLAGS:-}           # more flags of train_rl.py

launch() { # a script and its flags
  $PYTHON -m torch.distributed.run --nproc_per_node="$NPROC" --master_port="${MASTER_PORT:-1233}" "$@"
}

# 1. Prompts, a part for each use; responses; comparisons; reward model
# shellcheck disable=SC2086
$PYTHON synthetic_feedback.py --mode pg --model_name_or_path "$WRITER" --output_dir "$OUT" \
  --prompt_file_path assets/seed_prompts.txt --num_generation $((PROMPTS + RL_PROMPTS + HELD_OUT)) $ENGINE
if [ "$(wc -l <"$OUT/prompts.txt")" -lt $((PROMPTS + RL_PROMPTS + HELD_OUT)) ]; then
  echo "almost.sh: error: pg brought $(wc -l <"$OUT/prompts.txt") prompts; lower PROMPTS, RL_PROMPTS or HELD_OUT" >&2
  exit 2
fi
mkdir -p "$OUT/step1" "$OUT/rl"
head -n "$PROMPTS" "$OUT/prompts.txt" >"$OUT/step1/prompts.txt"
sed -n "$((PROMPTS + 1)),$((PROMPTS + RL_PROMPTS))p" "$OUT/prompts.txt" >"$OUT/rl/prompts.txt"
tail -n "$HELD_OUT" "$OUT/prompts.txt" >"$OUT/held_out.txt"

rubric=()
for config in $CONFIGS; do
  IFS=: read -r model demonstrations shots <<<"$config"
  # shellcheck disable=SC2086
  $PYTHON synthetic_feedback.py --mode rg --model_name_or_path "$model" --output_dir "$OUT/step1" \
    --prompt_file_path "assets/${demonstrations}_prompt.txt" --n_shot "$shots" $ENGINE
  name=$(basename "${model%%\?*}" | tr '[:upper:]' '[:lower:]')
  rubric+=("$name-$demonstrations-${shots}shot")
done
$PYTHON synthetic_feedback.py --mode cs --output_dir "$OUT/step1" --rubric "${rubric[@]}"
# shellcheck disable=SC2086
launch train.py --objective reward --normalize_reward --model_name_or_path "$BASE" \
  --data_path "$OUT/step1/comparison.json" --output_dir "$OUT/reward_model" --learning_rate "$RM_RATE" \
  --per_device_train_batch_size 4 --gradient_accumulation_steps "$RM_ACCUMULATION" \
  --save_strategy steps --save_total_limit 1 --resume_from_checkpoint True $FLAGS

# 2. Self-play; supervised policy
# shellcheck disable=SC2086
$PYTHON self_play.py --model_name_or_path "$WRITER" --output_dir "$OUT/step1" --n_shot 3 \
  --prompt_file_path assets/Faithful_prompt.txt --reward_model "$OUT/reward_model" --num_candidates "$CANDIDATES" \
  --max_turns "$TURNS" --max_new_tokens "$SPOKEN" $ENGINE
# shellcheck disable=SC2086
launch train.py --objective sft --model_name_or_path "$BASE" --data_path "$OUT/step1/almost_train.json" \
  --output_dir "$OUT/sft" --num_train_epochs "$SFT_EPOCHS" \
  --per_device_train_batch_size 2 --gradient_accumulation_steps "$SFT_ACCUMULATION" \
  --save_strategy steps --save_total_limit 1 --resume_from_checkpoint True $FLAGS

# 3. PPO on the other prompts
# shellcheck disable=SC2086
launch train_rl.py --algorithm ppo --model_name_or_path "$OUT/sft" --data_path "$OUT/rl/prompts.txt" \
  --reward "$OUT/reward_model" --output_dir "$OUT/ppo" --kl_coef 0.05 --max_new_tokens "$TOKENS" \
  --rollout_batch_size "$RL_BATCH" --mini_batch_size $((RL_BATCH / 4)) --num_ppo_epochs "$RL_EPOCHS" \
  --max_steps "$RL_STEPS" --learning_rate "$RL_RATE" --lora_r "$LORA_R" --save_steps 5 $RL_FLAGS
reinforced=$OUT/ppo
if [ "$LORA_R" != 0 ]; then
  reinforced=$OUT/ppo-merged
  $PYTHON merge.py --base_model_name_or_path "$OUT/sft" --peft_model_path "$OUT/ppo" --output_dir "$reinforced"
fi

# What each step brought
answer() { # name, model
  # shellcheck disable=SC2086
  $PYTHON generate.py --base_model_name_or_path "$2" --template almost --temperature 1 --max_new_tokens "$TOKENS" \
    --data_path "$OUT/held_out.txt" --reward_model "$OUT/reward_model" --output_file "$OUT/answers/$1.json" $GENERATE
  if [ -n "$HHH" ]; then
    $PYTHON eval/run_evaluation.py --benchmark_name hhh --data_path "$HHH" --model_name_or_path "$2" \
      --output_path "$OUT/answers/$1.hhh.json"
  fi
}

answer base "$BASE"
answer sft "$OUT/sft"
answer ppo "$reinforced"
$PYTHON scripts/policy_table.py "$OUT/answers" base sft ppo --self_play "$OUT/step1/self_play.jsonl"

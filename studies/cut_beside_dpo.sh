#!/usr/bin/env bash
# CUT beside DPO on the same instructions and responses of UltraFeedback: judgments against scores.
#
#   TRAIN=ultrafeedback_train.jsonl HELD_OUT=ultrafeedback_eval.jsonl JUDGE=saved_models/judge-70b \
#     bash studies/cut_beside_dpo.sh
#
# Hardware   GPUs for a judge whose judgments are worth learning from; 2 cores for the embedded model and a dry run
# Time       two responses (of the published file four) times PROMPTS to judge, then two trainings of an hour at most
# Expected   the paper, with 1,000 instructions and GPT-4's judgments: CUT 23 (chat base) to 38 points over DPO on
#            AlpacaEval; DPO slightly better on ARC and HellaSwag. Not reproduced here.
#
# DPO learns every two responses of unequal score; CUT the same responses, each with what JUDGE finds wrong with it. The
# scores of UltraFeedback are no part of what CUT learns. Judgments are worth what the judge is: those of a small model
# show that this runs, and nothing of the method (JUDGE=judge JUDGE_FLAGS="--backend simulated" is a dry run). Then, of
# HELD_OUT: how likely each policy finds both responses of its pairs; and what each policy answers to its instructions,
# compared in both orders by JUDGE. The same command goes on where it was stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${TRAIN:?TRAIN is rows of UltraFeedback}" "${HELD_OUT:?HELD_OUT is other rows}" "${JUDGE:?JUDGE is a model that judges}"
MODEL=${MODEL:-saved_models/SmolLM2-135M-Instruct}
OUT=${OUT:-outputs/cut_beside_dpo}
PROMPTS=${PROMPTS:-1000}
MEASURED=${MEASURED:-200}        # instructions of HELD_OUT
COMPARED=${COMPARED:-80}         # of these, instructions that the policies answer and JUDGE compares
LENGTH=${LENGTH:-1024}           # tokens a row
SEED=${SEED:-42}
JUDGE_FLAGS=${JUDGE_FLAGS:-}     # more flags for the judge: --backend openai --api_base URL
GENERATE=${GENERATE:-}           # more flags of generate.py: --backend hf --max_new_tokens 128
CUT_FLAGS=${CUT_FLAGS:-}         # more flags of finetune_unlikelihood.py
DPO_FLAGS=${DPO_FLAGS:-}         # more flags of train.py
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}

$PYTHON studies/ultrafeedback_rows.py "$TRAIN" --output_dir "$OUT" --limit "$PROMPTS"
$PYTHON studies/ultrafeedback_rows.py "$HELD_OUT" --output_dir "$OUT/held_out" --limit "$MEASURED"
# shellcheck disable=SC2086
$PYTHON scripts/annotate_judgments.py --model_name_or_path "$JUDGE" --data_path "$OUT/responses.json" \
  --output_file "$OUT/judgments.json" $JUDGE_FLAGS

# Both train the same matrices of LoRA, 8 rows or pairs a step, one epoch: CUT at its released rate; the paper gives none
# for DPO.
# shellcheck disable=SC2086
$PYTHON finetune_unlikelihood.py --base_model "$MODEL" --data_path "$OUT/judgments.json" --output_dir "$OUT/cut" \
  --cutoff_len "$LENGTH" --micro_batch_size 4 --warmup_steps 10 --learning_rate 4e-4 --downsample 0.25 --seed "$SEED" \
  --resume_from_checkpoint True $CUT_FLAGS
# shellcheck disable=SC2086
$PYTHON train.py --objective dpo --model_name_or_path "$MODEL" --data_path "$OUT/pairs.json" --output_dir "$OUT/dpo" \
  --template alpaca --model_max_length "$LENGTH" --num_train_epochs 1 --per_device_train_batch_size 4 \
  --gradient_accumulation_steps 2 --learning_rate 5e-5 --warmup_steps 10 --lora_r 16 --lora_alpha 16 \
  --lora_dropout 0.05 --lora_target_modules gate_proj down_proj up_proj --seed "$SEED" \
  --resume_from_checkpoint True $DPO_FLAGS
$PYTHON studies/preference_table.py "$OUT/held_out/pairs.json" --models "$MODEL" "$OUT/cut" "$OUT/dpo" \
  --template alpaca --cutoff_len "$LENGTH"

for name in cut dpo; do
  $PYTHON merge.py --base_model_name_or_path "$MODEL" --peft_model_path "$OUT/$name" --output_dir "$OUT/$name-merged"
  # shellcheck disable=SC2086
  $PYTHON generate.py --base_model_name_or_path "$OUT/$name-merged" --data_path "$OUT/held_out/instructions.json" \
    --template alpaca --limit "$COMPARED" --output_file "$OUT/$name.json" $GENERATE
done
# shellcheck disable=SC2086
$PYTHON eval/pairwise.py --answers "$OUT/cut.json" "$OUT/dpo.json" --model_name_or_path "$JUDGE" \
  --output_file "$OUT/cut_or_dpo.json" $JUDGE_FLAGS

#!/usr/bin/env bash
# ARC, HellaSwag, MMLU and TruthfulQA of a checkpoint by the lm-evaluation-harness, with the shots of CUT's tables.
#
#   bash scripts/lm_eval.sh outputs/cut-merged
#   DATA=benchmarks PYTHON=harness/bin/python bash scripts/lm_eval.sh outputs/cut-merged --limit 100
#
# Hardware   a GPU that holds the model; 2 cores for the embedded one with a --limit
# Time       7B, everything: hours on one GPU; the embedded model with --limit 100: half an hour of one core
# Expected   a table like CUT's table 2: LLaMA2-13b-chat 58.0, 79.9, 54.5 and 45.4
#
# The harness is a package of its own: pip install lm_eval==0.4.13, here or in an environment whose Python PYTHON names.
# DATA is a folder of the benchmarks' files, as eval/lm_harness.py lists them; without, they come from the hub. What
# follows the checkpoint are flags of eval/lm_harness.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CHECKPOINT=${1:?usage: bash scripts/lm_eval.sh CHECKPOINT [flags]}
shift
PYTHON=${PYTHON:-$(source scripts/setup.sh && python_here)}
if [ -n "${DATA:-}" ]; then
  set -- --data_dir "$DATA" "$@"
fi
PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} $PYTHON eval/lm_harness.py --model_name_or_path "$CHECKPOINT" "$@"

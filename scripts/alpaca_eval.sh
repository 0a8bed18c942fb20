#!/usr/bin/env bash
# AlpacaEval by its own package, with a judge of one's own: generate.py's answers against a reference's.
#
#   vllm serve meta-llama/Llama-3.3-70B-Instruct --port 8000      # on whatever machine; any OpenAI-compatible server
#   ANSWERS=outputs/cut-merged/alpaca_eval.json REFERENCE=results/text_davinci_003/model_outputs.json \
#       JUDGE=meta-llama/Llama-3.3-70B-Instruct API_BASE=http://localhost:8000/v1 bash scripts/alpaca_eval.sh
#
# Hardware   a CPU, and what the server needs
# Time       805 requests
# Result     $OUT/leaderboard.csv and annotations.json, as the package writes them; eval/leaderboard.py reads these. What
#            it says meanwhile goes to $OUT/alpaca_eval.log.
#            The paper's numbers are of GPT-4 as the judge: another judge gives others.
#
# The package stands in an environment of its own, $VENV, as it wants an old setuptools. It asks each pair once, in an
# order drawn by chance, in the words of assets/judge/pair.txt, and leaves out what it cannot read; eval/pairwise.py asks
# both orders. The key is OPENAI_API_KEY, for a server that wants one. METRIC=get_length_controlled_winrate is
# AlpacaEval 2's, which takes files from the hub and is fitted to its 805 instructions.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"  # stop, find_python
cd "$ROOT"

[ -f "${ANSWERS:-}" ] || stop "ANSWERS=${ANSWERS:-} is no file; give what generate.py wrote"
[ -f "${REFERENCE:-}" ] || stop "REFERENCE=${REFERENCE:-} is no file; give the answers to compare with"
[ -n "${JUDGE:-}" ] || stop "JUDGE is missing; give the name under which the server has the judge"
[ -n "${API_BASE:-}" ] || stop "API_BASE is missing; give the server's address, http://host:port/v1"
OUT=${OUT:-$(dirname "$ANSWERS")/alpaca_eval}
VENV=${VENV:-.venv-alpaca_eval}
METRIC=${METRIC:-get_winrate}
TOKENS=${TOKENS:-1024}    # of a reply
AT_ONCE=${AT_ONCE:-64}    # requests in flight
FLAGS=${FLAGS:-}          # more flags of the package: --max_instances 20

if ! [ -x "$VENV/bin/alpaca_eval" ]; then
    PYTHON=$(find_python) || stop "no Python from 3.11 to 3.13 is here"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet "setuptools<80" alpaca_eval==0.6.6
fi

# The judge: our prompt with the package's slots, and what its reply says. 1 is the reference, which it calls the first
mkdir -p "$OUT/judge"
{
    printf '<|im_start|>system\n%s\n<|im_end|>\n<|im_start|>user\n' "$(cat assets/judge/pair.txt)"
    sed -e 's/{earlier}//; s/{reference}//; s/{again}//; s/{question}/{instruction}/' \
        -e 's/{answer_a}/{output_1}/; s/{answer_b}/{output_2}/' assets/judge/pair_user.txt
    printf '<|im_end|>\n'
} >"$OUT/judge/prompt.txt"
cat >"$OUT/judge/configs.yaml" <<END
"$(basename "$JUDGE")":
  prompt_template: "$(cd "$OUT" && pwd)/judge/prompt.txt"
  fn_completions: "openai_completions"
  completions_kwargs:
    model_name: "$JUDGE"
    max_tokens: $TOKENS
    temperature: 0
    requires_chatml: true
    price_per_token: 0
    num_procs: $AT_ONCE
  fn_completion_parser: "regex_parser"
  completion_parser_kwargs:
    outputs_to_match:
      1: '\[VERDICT\]\s*A\b'
      2: '\[VERDICT\]\s*B\b'
      1.5: '\[VERDICT\]\s*TIE\b'
  batch_size: 1
END

export OPENAI_API_BASE=$API_BASE OPENAI_API_KEY=${OPENAI_API_KEY:-EMPTY}
# shellcheck disable=SC2086
"$VENV/bin/alpaca_eval" evaluate --model_outputs "$ANSWERS" --reference_outputs "$REFERENCE" \
    --annotators_config "$(cd "$OUT" && pwd)/judge" --output_path "$OUT" --precomputed_leaderboard None \
    --fn_metric "$METRIC" --sort_by win_rate --is_overwrite_leaderboard True $FLAGS 2>"$OUT/alpaca_eval.log" ||
    stop "alpaca_eval failed: $(tail -n 1 "$OUT/alpaca_eval.log") ($OUT/alpaca_eval.log)"
echo "AlpacaEval by $JUDGE: $OUT/leaderboard.csv and annotations.json"

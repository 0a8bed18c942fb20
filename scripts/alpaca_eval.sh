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
# both orders. Taken out before, and counted, are a null for an answer, which it would show the judge as the word None,
# and a text that spells <|im_start|> or <|im_end|>, at which it would cut what the judge is asked. The key is
# OPENAI_API_KEY, for a server that wants one. METRIC=get_length_controlled_winrate is AlpacaEval 2's, which takes files
# from the hub and is fitted to its 805 instructions. It waits ten minutes for a reply: a slow server wants a small
# AT_ONCE.
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

PYTHON=$(find_python) || stop "no Python from 3.11 to 3.13 is here"
told=$("$PYTHON" - "$ANSWERS" "$REFERENCE" "$OUT/judge" <<'END'
import collections, json, os, sys

def stop(reason):
    print(reason)
    sys.exit(2)

def fault_of(row):
    if row["output"] is None:
        return "have no output"
    return "spell <|im_start|> or <|im_end|>" if "<|im_" in row["instruction"] + row["output"] else None

files, folder, kept = {"ANSWERS": sys.argv[1], "REFERENCE": sys.argv[2]}, sys.argv[3], {}
for name, path in files.items():
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = json.load(file)
        if not all(isinstance(row["instruction"], str) and isinstance(row["output"], str | None) for row in rows):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        stop(f"{name}={path} is no JSON list of rows with an instruction and an output, as generate.py writes")
    kept[name] = [row for row in rows if not fault_of(row)]
    for fault, count in collections.Counter(filter(None, map(fault_of, rows))).items():
        print(f"{count} of {len(rows)} rows of {name} {fault}, and are left out")
if not set.intersection(*({row["instruction"] for row in rows} for rows in kept.values())):
    stop("no instruction has an output in both ANSWERS and REFERENCE")
os.makedirs(folder, exist_ok=True)
for name, rows in kept.items():
    with open(f"{folder}/{name.lower()}.json", "w", encoding="utf-8") as file:
        json.dump(rows, file)
END
) || stop "$(tail -n 1 <<<"$told")"
[ -z "$told" ] || echo "$told"
if ! [ -x "$VENV/bin/alpaca_eval" ]; then
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet "setuptools<80" alpaca_eval==0.6.6
fi

# The judge: our prompt with the package's slots, and what its reply says. 1 is the reference, which it calls the first
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
"$VENV/bin/alpaca_eval" evaluate --model_outputs "$OUT/judge/answers.json" \
    --reference_outputs "$OUT/judge/reference.json" \
    --annotators_config "$(cd "$OUT" && pwd)/judge" --output_path "$OUT" --precomputed_leaderboard None \
    --fn_metric "$METRIC" --sort_by win_rate --is_overwrite_leaderboard True $FLAGS 2>"$OUT/alpaca_eval.log" ||
    stop "alpaca_eval failed: $(tail -n 1 "$OUT/alpaca_eval.log") ($OUT/alpaca_eval.log)"
lost=$({ grep -o '"preference": *null' "$OUT/annotations.json" || true; } 2>/dev/null | wc -l)
[ "$lost" -eq 0 ] || echo "pairs without a verdict that could be read, which are in no number: $lost"
echo "AlpacaEval by $JUDGE: $OUT/leaderboard.csv and annotations.json"

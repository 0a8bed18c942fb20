#!/usr/bin/env bash
# Set up what the tests need, then run ruff and all tests; arguments go to pytest. 15 minutes on 2 cores, of which 2 set
# up; no GPU.
#     bash scripts/test.sh
#     bash scripts/test.sh -m "not slow"     without the embedded model and real vLLM
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
set_up
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check --quiet .
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$VENV/bin/python" -m pytest -n 2 --dist loadgroup --no-loadscope-reorder "$@"

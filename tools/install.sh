#!/usr/bin/env bash
# Makes .venv and installs the locked packages and Rankloom into it. `make` runs this; `make PYTHON=python3.12` chooses.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
lock=requirements.lock

fail() {
    printf '\nrankloom: %s\n  what to do: %s\n' "$1" "$2" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python of at least 3.11" "name another one, e.g. make PYTHON=python3.11"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.11 python3.12 python3.13; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python of at least 3.11 was found ($(python3 --version 2>&1 || true))" \
        "install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) and run make again"
}

python=$(find_python)
if ! { [ -x $venv/bin/python ] && new_enough $venv/bin/python && $venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$("$python" --version) has no venv module" \
            "install it (Debian, Ubuntu: apt-get install python3-venv) and run make again"
    echo "== 1/4 environment: $("$python" --version) in $venv"
    rm -rf $venv
    "$python" -m venv $venv
else
    echo "== 1/4 environment: $venv is there"
fi

pip() {
    # a venv's bin/ scripts break when the folder moves, its python -m pip does not
    $venv/bin/python -m pip --disable-pip-version-check --no-input "$@"
}

# pip's own log is long; one line a package is what a person wants to see
brief() {
    awk '/^(Collecting|Processing) /{ n++; name = $2; sub(/.*\//, "", name); sub(/-(py|cp)[0-9].*/, "", name); printf "   %d %s\n", n, name; fflush() }'
}

torch=$(grep '^torch==' $lock)
hashed=$(mktemp)
trap 'rm -f "$hashed"' EXIT
grep -v '^torch==' $lock >"$hashed"

echo "== 2/4 libraries (about 300 MB to fetch)"
pip install --progress-bar off --require-hashes --no-deps --requirement "$hashed" | brief

echo "== 3/4 $torch (about 200 MB as CPU build)"
# by exact version, and after its own needs are there: a range would choose a CUDA build of several GB
if ! $venv/bin/python -c "import torch; raise SystemExit(torch.__version__.split('+')[0] != '${torch#torch==}')" 2>/dev/null; then
    # shellcheck disable=SC2086  # TORCH_PIP holds flags
    pip install --progress-bar off ${TORCH_PIP:-} "$torch" | brief
fi

echo "== 4/4 rankloom"
pip install --quiet --no-deps --no-build-isolation --editable .
$venv/bin/python -c 'import rankloom' || fail "rankloom was installed and cannot be imported" "remove $venv and run make again"
touch $venv/.installed
echo "Installed. Next: make demo   (or $venv/bin/rankloom --help)"

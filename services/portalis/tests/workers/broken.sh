#!/bin/sh
# Stands for a worker whose model cannot be loaded.
echo "portalis-gpu-worker: the model is broken" >&2
exit 1

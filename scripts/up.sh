#!/usr/bin/env bash
# make up: install what is missing, build in release mode, become the mesh. Arguments go to `portalis up`.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
scripts/setup.sh
cargo build --quiet --release --locked --package portalis --package gpu-worker --bins || {
  echo "error: the release build failed, see above; run it again with: cargo build --release --locked -p portalis -p gpu-worker --bins" >&2
  exit 1
}
target="${CARGO_TARGET_DIR:-$root/target}"
if [[ -n "${PORTALIS_DATA:-}" ]]; then set -- --data-dir "$PORTALIS_DATA" "$@"; fi
# exec: no shell stays between the terminal (or make) and the mesh, so a signal arrives once.
exec "$target/release/portalis" up "$@"

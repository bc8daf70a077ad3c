# Python packages of the tests. Sourced by scripts/setup.sh. Result: $data/venv/bin/python, ready to run.
# No ensurepip (Debian splits it off): the machine's own pip fills the environment.

install_python() {
  local venv="$data/venv" requirements="$root/scripts/requirements-test.txt" stamp log site
  stamp="$(python3 -c 'import sys; print(sys.version, sys.base_prefix)') $(cksum <"$requirements") $venv"
  [[ -x "$venv/bin/python" && -f "$venv/.ready" && "$(<"$venv/.ready")" == "$stamp" ]] && return 0

  need_pip "the installation of the tests' Python packages"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "the tests need Python 3.11 or newer, python3 here is $(python3 --version 2>&1)"
  note "installing the tests' Python packages into $venv"
  rm -rf "$venv"
  log="$data/.unpack.pip.log"
  if python3 -m venv --without-pip "$venv" >"$log" 2>&1; then
    site="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  else
    site="$(python_without_venv "$venv")"
  fi
  python3 -m pip install --quiet --disable-pip-version-check --no-warn-script-location --require-hashes --no-deps \
    --only-binary :all: --target "$site" --requirement "$requirements" >"$log" 2>&1 ||
    fail "pip could not install the tests' Python packages: $(grep -m 1 -i error "$log" || tail -n 1 "$log")"
  rm -f "$log"
  printf '%s\n' "$stamp" >"$venv/.ready"
}

# Where even the venv module is missing, a wrapper that adds the packages to the machine's Python.
python_without_venv() {
  rm -rf "$1"
  mkdir -p "$1/bin" "$1/packages"
  printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" "$@"\n' "$1/packages" "$(command -v python3)" >"$1/bin/python"
  chmod 755 "$1/bin/python"
  echo "$1/packages"
}

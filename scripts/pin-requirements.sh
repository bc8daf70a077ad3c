#!/usr/bin/env bash
# Writes scripts/requirements-test.txt from requirements-test.in: newest versions, with the sha256 of the wheels
# for the Pythons and platforms below. A maintainer's tool; setup only reads its result.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
pip() { python3 -m pip --quiet --disable-pip-version-check "$@"; }

# 1. Resolve once, here.
pip download --only-binary :all: --dest "$work/resolved" --requirement requirements-test.in
# name-version of every wheel that was chosen
for wheel in "$work"/resolved/*.whl; do
  IFS=- read -r name version _ <<<"$(basename "$wheel")"
  echo "${name//_/-}==$version"
done | LC_ALL=C sort >"$work/pins"

# 2. Fetch the same versions for the other Pythons and platforms; what does not exist there is left out.
mkdir "$work/all"
cp "$work"/resolved/*.whl "$work/all/"
while read -r pin; do
  IFS='=' read -r name _ <<<"$pin"
  compgen -G "$work/resolved/${name//-/_}-*-none-any.whl" >/dev/null && continue
  for python in 3.11 3.12 3.13 3.14; do
    for machine in "manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux_2_28_x86_64" \
      "manylinux_2_17_aarch64 manylinux2014_aarch64 manylinux_2_28_aarch64" "macosx_11_0_arm64"; do
      platforms=()
      for tag in $machine; do platforms+=(--platform "$tag"); done
      pip download --no-deps --only-binary :all: --python-version "$python" "${platforms[@]}" --dest "$work/all" "$pin" \
        2>/dev/null || echo "no wheel of $pin for Python $python on $machine" >&2
    done
  done
done <"$work/pins"

# 3. One entry per package, all its hashes below it.
{
  echo "# Written by scripts/pin-requirements.sh from requirements-test.in; do not edit."
  while read -r pin; do
    IFS='=' read -r name _ version <<<"$pin"
    printf '%s' "$pin"
    sha256sum "$work/all/${name//-/_}-$version"-*.whl | awk '{ print $1 }' | sort -u |
      while read -r sum; do printf ' \\\n    --hash=sha256:%s' "$sum"; done
    echo
  done <"$work/pins"
} >requirements-test.txt

#!/usr/bin/env bash
# Installs what the mesh needs into $PORTALIS_DATA (default: .portalis beside this folder).
# Nothing outside that folder changes. Run it as often as you like: when all is there it takes well under a second.
#
#   scripts/setup.sh               nats-server and the embedding model
#   scripts/setup.sh --tests       the same, and the Python packages of the tests
#   scripts/setup.sh --tools-only  only check that the compilers and tools are there
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
data="${PORTALIS_DATA:-$root/.portalis}"
# shellcheck source=setup/say.sh
source "$here/setup/say.sh"
# shellcheck source=setup/nats.sh
source "$here/setup/nats.sh"
# shellcheck source=setup/model.sh
source "$here/setup/model.sh"
# shellcheck source=setup/python.sh
source "$here/setup/python.sh"

with_tests=false
tools_only=false
case "${1:-}" in
"") ;;
--tests) with_tests=true ;;
--tools-only) tools_only=true ;;
*) fail "unknown option '$1'; use --tests, --tools-only or nothing" ;;
esac

need cargo "install a Rust toolchain with rustup, then open a new shell"
need cc "install a C compiler, for example: apt-get install gcc libc6-dev"
need git "install git, for example: apt-get install git"
need python3 "install Python 3.11 or newer, for example: apt-get install python3 python3-pip"
$tools_only && exit 0

mkdir -p "$data" 2>/dev/null || fail "cannot create $data; make its parent writable or set PORTALIS_DATA to another folder"
data="$(cd "$data" && pwd)"
# Two setups at once (make up and make test in two terminals) take turns; the lock ends with this process.
if has flock; then
  exec 9>"$data/.setup.lock"
  flock -w 900 9 || fail "another setup has been running for 15 minutes; stop it and try again"
fi
# What an interrupted setup left behind; the lock makes sure that nobody is using it.
rm -rf "$data"/.unpack.*

install_nats
install_model
if $with_tests; then install_python; fi

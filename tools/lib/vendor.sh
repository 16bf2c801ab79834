# shellcheck shell=bash disable=SC2034,SC2154
# The Rust core as Node carries it: its manifest without what only this repository has (tests, benchmarks, tools), and
# the crates that it is compiled with, from the releases that Cargo.lock names. Sourced after sandbox.sh.

# vendor_ready: afterwards vendor_dir has Cargo.toml, Cargo.lock and vendor/, the same whenever it is made.
vendor_ready() {
  vendor_key=$(cat "$repo"/Cargo.{toml,lock} "$repo"/tools/lib/vendor.{sh,py} | sha)
  vendor_dir=$cache/vendor-$vendor_key
  [[ ! -e $vendor_dir ]] || return 0
  lock "vendor-$vendor_key"
  if [[ ! -e $vendor_dir ]]; then
    # A sandbox is not made for this: any cargo will do.
    if [[ $sandbox_root && ! -e $sandbox_root ]] && ! command -v cargo python3 >/dev/null; then sandbox_ready; fi
    rm -rf "$vendor_dir.new"
    mkdir -p "$vendor_dir.new/rust"
    cp "$repo/Cargo.lock" "$repo/tools/lib/vendor.py" "$vendor_dir.new/"
    cp -r "$repo/rust/src" "$vendor_dir.new/rust/"
    vendor_manifest >"$vendor_dir.new/Cargo.toml"
    step 'Fetching the crates of the Rust core' vendor_fetch "$vendor_dir.new"
    rm -r "$vendor_dir.new"/{rust,vendor.py}
    mv "$vendor_dir.new" "$vendor_dir"
  fi
  unlock "vendor-$vendor_key"
}

vendor_manifest() {
  awk '/^\[/ { skip = /^\[\[(bin|test|bench)\]\]|^\[dev-dependencies|^\[profile\.dev/ }
    /^#/ { comment = comment $0 "\n"; next }
    !skip && !/^$/ { printf "%s%s\n", blank, comment $0; blank = "" }
    /^$/ && NR > 1 { blank = "\n" }
    { comment = "" }' "$repo/Cargo.toml"
}

# cargo drops from the lock file what the shorter manifest does not need.
vendor_fetch() {
  local run=
  [[ ! -e $sandbox_root ]] || run=sandbox_run
  cd "$1" || return
  $run cargo vendor --quiet vendor >/dev/null && $run python3 vendor.py vendor
  cd "$OLDPWD" || return
}

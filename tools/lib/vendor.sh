# shellcheck shell=bash disable=SC2034,SC2154
# The Rust core as Node carries it: its manifest without what only this repository has (tests, benchmarks, tools), and
# the crates that it is compiled with, from the releases that Cargo.lock names. Sourced after sandbox.sh.

# vendor_ready: afterwards vendor_dir has Cargo.toml, Cargo.lock and vendor/: what tools/vendor.sha256 says, or nothing.
# The first time takes the network.
vendor_ready() {
  local prune=$repo/node-patches/deps/tls_splice/vendor.py
  vendor_key=$(cat "$repo"/Cargo.{toml,lock} "$repo/tools/lib/vendor.sh" "$prune" | sha)
  vendor_dir=$cache/vendor-$vendor_key
  [[ ! -e $vendor_dir ]] || return 0
  lock "vendor-$vendor_key"
  if [[ ! -e $vendor_dir ]]; then
    vendor_tools
    rm -rf "$vendor_dir.new"
    mkdir -p "$vendor_dir.new/rust"
    cp "$repo/Cargo.lock" "$prune" "$vendor_dir.new/"
    cp -r "$repo/rust/src" "$vendor_dir.new/rust/"
    vendor_manifest >"$vendor_dir.new/Cargo.toml"
    step 'Fetching the crates of the Rust core' vendor_fetch "$vendor_dir.new"
    rm -r "$vendor_dir.new"/{rust,vendor.py}
    vendor_verify "$vendor_dir.new"
    mv "$vendor_dir.new" "$vendor_dir"
  fi
  unlock "vendor-$vendor_key"
}

# vendor_tools: sets vendor_run, which runs cargo and python3. Those of the host will do where there is no sandbox: the
# result is the same.
vendor_tools() {
  local version
  vendor_run=
  if [[ $sandbox_root && ! -e $sandbox_root ]]; then
    version=$(cargo --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+' | head -n 1) || :
    # Older ones do not know such a Cargo.lock.
    if [[ $version ]] && printf '1.78\n%s\n' "$version" | sort -CV && command -v python3 >/dev/null; then return; fi
    sandbox_ready
  fi
  vendor_run=sandbox_run
}

vendor_manifest() {
  # As a static library alone it is optimised as a whole.
  awk '/^\[/ { skip = /^\[\[(bin|test|bench)\]\]|^\[dev-dependencies|^\[profile\.dev/ }
    /^#/ { comment = comment $0 "\n"; next }
    !skip && !/^$/ { printf "%s%s\n", blank, comment $0; blank = "" }
    /^$/ && NR > 1 { blank = "\n" }
    { comment = "" }' "$repo/Cargo.toml" | sed 's/, "rlib"\]/]/'
}

# cargo drops from the lock file what the shorter manifest does not need, and compares what it downloads with it.
vendor_fetch() {
  local rc=0
  cd "$1" || return
  { $vendor_run cargo vendor --quiet vendor >/dev/null && $vendor_run python3 vendor.py vendor; } || rc=$?
  cd "$OLDPWD" || return
  return "$rc"
}

# vendor_verify FOLDER: a crate that had been in cargo's cache was not compared with anything.
vendor_verify() {
  local record=$repo/tools/vendor.sha256 sum
  sum=$(cd "$1" && find . -type f | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum)
  if [[ ${vendor_bless-} ]]; then
    echo "${sum%% *}" | put "$record"
  elif [[ $(<"$record") != "${sum%% *}" ]]; then
    die "the crates are not those of tools/vendor.sha256 (in $1); after a change of Cargo.lock: tools/check --fix patches"
  fi
}

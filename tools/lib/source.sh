# shellcheck shell=bash disable=SC2034,SC2154
# Node's own source, checked and made ready to build, in node_source. Sourced after sandbox.sh.

# source_ready: shared by all clones, never built in and never changed afterwards.
source_ready() {
  local short=${node_version%%+*}
  node_key=${short%%-*}-$(printf '%s\n' 2 "$node_version" "$sandbox_key" | sha)
  node_source=$cache/source-$node_key
  [[ ! -e $node_source ]] || return 0
  lock "source-$node_key"
  if [[ ! -e $node_source ]]; then
    source_verify
    rm -rf "$node_source.new"
    step "Unpacking Node ${short%%-*}" source_unpack "$node_source.new"
    mv "$node_source.new" "$node_source"
  fi
  unlock "source-$node_key"
}

# source_upstream: the same without Debian's patches, in upstream-$node_key. Nothing is built from it.
source_upstream() {
  local tree=$cache/upstream-$node_key
  lock "upstream-$node_key"
  if [[ ! -e $tree ]]; then
    rm -rf "$tree.new"
    # shellcheck disable=SC2016
    sandbox_run sh -c 'dpkg-source --no-check --no-copy --skip-patches -x "$1"/*.dsc "$2"' - "$sandbox_source" "$tree.new" || return
    mv "$tree.new" "$tree"
  fi
  unlock "upstream-$node_key"
}

# apt has checked the archive's signature. On top of that the version that this repository was tested with is on record.
source_verify() {
  local record=$repo/tools/node-source.sha256 dsc
  dsc=$(sed -n 's/^[0-9a-f]*  \(.*\.dsc\)$/\1/p' "$record")
  if [[ -e $sandbox_source/$dsc ]]; then
    (cd "$sandbox_source" && sha256sum --quiet --strict -c "$record" >&2) ||
      die "Node's source is not the one recorded in tools/node-source.sha256 (in $sandbox_source)"
  else
    say "note: the archive now has Node ${node_version%-*}, these patches were tested with ${dsc%.dsc}; going on with the archive's"
    [[ $node_version == 24.* ]] || die "the archive has moved on to Node $node_version, the patches are for Node 24"
  fi
}

# What Debian's packaging does before it builds: files that it takes from other packages.
source_unpack() {
  # shellcheck disable=SC2016
  sandbox_run sh -eu -c '
    dpkg-source --no-check --no-copy -x "$1"/*.dsc "$2"
    cd "$2"
    mkdir -p deps/openssl deps/minimatch
    : >deps/openssl/nodejs-openssl.cnf
    esbuild --log-level=warning --platform=node --bundle /usr/share/nodejs/minimatch/index.cjs --outfile=deps/minimatch/index.js
    # Debian has Node read these when it starts. In the binary, it can be carried to a machine that lacks them.
    install -D -m 644 /usr/share/nodejs/undici/undici-fetch.js deps/undici/undici.js
    for file in acorn/dist/acorn.js acorn-walk/dist/walk.js; do install -D -m 644 "/usr/share/nodejs/$file" "deps/acorn/$file"; done
    for module in acorn undici; do
      version=$(dpkg-query -f "\${source:Upstream-Version}" -W "node-$module" | grep -o "^[0-9]*\.[0-9]*\.[0-9]*")
      sed -i "s/[0-9][0-9]*\.[0-9][0-9]*\.[0-9][0-9]*/$version/" "src/${module}_version.h"
    done' - "$sandbox_source" "$1"
}

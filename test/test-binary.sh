#!/usr/bin/env bash
# out/node and out/node-stock are ordinary executables, and what runs in them is the Node that was compiled here, not the
# one in Debian's libnode, of which they use V8. usage: test/test-binary.sh (after tools/build)
set -euo pipefail
# shellcheck source=tools/lib/common.sh
. "$(dirname "$0")/../tools/lib/common.sh"
# shellcheck source=tools/lib/sandbox.sh
. "$repo/tools/lib/sandbox.sh"

passed=0
failed=0
# In the cache folder, which is at the same place in the sandbox, whose binutils and compiler are used below.
work=$(mktemp -d "$cache/test-binary.XXXXXX")
trap 'rm -rf "$work"' EXIT

check() {
  local title=$1
  shift
  if "$@" >"$work/output" 2>&1; then
    passed=$((passed + 1))
    echo "ok - $title"
  else
    failed=$((failed + 1))
    echo "not ok - $title"
    head -n 30 "$work/output" | sed 's/^/# /'
  fi
}

# equal EXPECTED COMMAND...
equal() {
  local expected=$1 found
  shift
  found=$("$@") || return
  [[ $found == "$expected" ]] || { echo "expected: $expected"; echo "found: $found"; return 1; }
}

# --- As an executable ---------------------------------------------------------------------------------------------

inspected() {
  local log=$work/inspect
  # It has the answer of the one before, until the next one has begun.
  : >"$log"
  "$1" --inspect=127.0.0.1:0 -e 'setTimeout(() => {}, 60000)' 2>"$log" &
  local pid=$! url='' _
  for _ in {1..100}; do
    url=$(sed -n 's,^Debugger listening on ws://\([^/]*\)/.*,http://\1/json/version,p' "$log")
    [[ ! $url ]] || break
    sleep 0.1
  done
  local rc=0
  "$1" -e "fetch('$url').then((r) => r.json()).then((v) => { if (!/^node/.test(v.Browser)) throw v; })" || rc=$?
  kill "$pid"
  wait "$pid" || :
  return "$rc"
}

# The start-up snapshot and the compiled built-ins that come with the executable are what it starts from.
# shellcheck disable=SC2016
snapshot='
  const { internalBinding } = require("internal/test/binding");
  const { compiledInSnapshot, compiledWithCache, compiledWithoutCache } = internalBinding("builtins").getCacheUsage();
  console.log(process.config.variables.node_use_node_snapshot, process.config.variables.node_use_node_code_cache,
              [...compiledInSnapshot].length > 50, [...compiledWithoutCache].filter((id) => !/internal\/(test|deps\/(acorn|undici))/.test(id)).length);'

as_executable() {
  local node=$1 name
  name=$(basename "$node")
  # From here on in another folder, with an empty environment.
  cd "$work"
  check "$name runs in any folder" equal "$node" env -i "$node" -p process.execPath
  check "$name runs by a relative path" equal "$node" env -i "$(realpath --relative-to=. "$node")" -p process.execPath
  check "$name runs through PATH" equal "$node" env -i PATH="$(dirname "$node")" "$name" -p process.execPath
  check "$name forks, fetches, runs Workers, TLS and the inspector" equal 'workload done' "$node" "$repo/test/binary/workload.js"
  check "$name --inspect" inspected "$node"
  check "$name starts from its snapshot" equal 'true true true 0' "$node" --expose-internals -e "$snapshot"
}

check 'both are the same version' equal "$("$repo/out/node-stock" -p process.version)" "$repo/out/node" -p process.version
check 'both have the same V8' equal "$("$repo/out/node-stock" -p process.versions.v8)" "$repo/out/node" -p process.versions.v8
as_executable "$repo/out/node"
as_executable "$repo/out/node-stock"

# sockets NAME: what out/NAME shows of its sockets, with the keys of its tree.
sockets() { "$repo/out/$1" "$repo/test/binary/sockets.js" "$repo/out/${1/#node/tree}"; }

same_sockets() {
  sockets node >"$work/sockets" && sockets node-stock >"$work/sockets-stock" || return
  (($(wc -l <"$work/sockets") > 30)) || { wc -l "$work/sockets"; return 1; }
  diff "$work/sockets-stock" "$work/sockets"
}
check 'sockets without a splice have the same properties and listeners in both' same_sockets

# --- Whose code runs ----------------------------------------------------------------------------------------------

# Names of libnode's that are Node's, not V8's: in namespace node and its helpers, and the C interface of addons.
nodes_names='_Z(T[hv][n0-9_]*)?Z?N[KVRO]*(4node|6nbytes|7ncrypto)|(napi_|node_api_|node_module_register|uvwasi_)'

libnode=$(echo "$sandbox_libdir"/libnode.so.*)

no_symbol_from_libnode() {
  sandbox_run nm -D --undefined-only "$1" | awk '{ print $NF }' | grep -E "^($nodes_names)" && return 1
  return 0
}

# Add-ons must find Node's C interface in the executable, before libnode's.
exports_what_addons_need() {
  diff <(sandbox_run nm -D --defined-only "$libnode" | awk '{ print $NF }' | grep -E '^(napi_|node_api_|node_module_register)' | sort) \
    <(sandbox_run nm -D --defined-only "$1" | awk '{ print $NF }' | grep -E '^(napi_|node_api_|node_module_register)' | sort)
}

spy=$work/libnode-spy.so
sandbox_run gcc -O1 -Wall -shared -fPIC -Wl,-z,initfirst -o "$spy" "$repo/test/binary/libnode-spy.c"
sandbox_run nm -D --defined-only "$libnode" | awk '$2 ~ /^[TtWw]$/ { print $1, $3 }' | grep -E "^[0-9a-f]+ ($nodes_names)" |
  sort -u -k 1,1 >"$work/functions"
cut -d' ' -f1 "$work/functions" >"$work/offsets"

spy_env=(env LD_PRELOAD="$spy" LIBNODE_SPY_FUNCTIONS="$work/offsets" LIBNODE_SPY_LOG="$work/log")

# spied COMMAND...: its run leaves in $work/entered the functions of libnode's Node that it entered in main().
spied() {
  rm -f "$work/log"
  "$@" || return
  sed -n 's/^run //p' "$work/log" | sort -u | while read -r offset; do
    grep "^0*$offset " "$work/functions"
  done >"$work/entered"
}

enters_none() {
  spied "${spy_env[@]}" "$@" || return
  [[ ! -s $work/entered ]] || { sandbox_run c++filt <"$work/entered"; return 1; }
}

# The spy itself: Debian's own node is little more than a call into libnode.
debians_node_enters_many() {
  spied sandbox_run "${spy_env[@]}" /usr/bin/node -p 1 || return
  (($(wc -l <"$work/entered") > 100)) || { wc -l "$work/entered"; return 1; }
}

whose_code_runs() {
  local node=$1 name
  name=$(basename "$node")
  check "$name takes no symbol of Node's from libnode" no_symbol_from_libnode "$node"
  check "$name exports what add-ons need" exports_what_addons_need "$node"
  check "$name never enters libnode's Node code: start and end" enters_none "$node" -p 1
  check "$name never enters libnode's Node code: without the snapshot" enters_none "$node" --no-node-snapshot -p 1
  check "$name never enters libnode's Node code: fork, fetch, Worker, TLS, inspector" \
    enters_none "$node" "$repo/test/binary/workload.js"
}

check "the spy sees Debian's node enter libnode's" debians_node_enters_many
whose_code_runs "$repo/out/node"
whose_code_runs "$repo/out/node-stock"

# The snapshot was taken by a program that never entered it either, and holds the JavaScript of the tree.
snapshot_again() {
  enters_none "$repo/out/tree/out/Release/node_mksnapshot" "$work/snapshot.cc" &&
    cmp "$work/snapshot.cc" "$repo/out/tree/out/Release/gen/node_snapshot.cc"
}
check "the snapshot of out/node was made without libnode's Node code" snapshot_again

# builtins NODE: each built-in module with a checksum of its text, but for the three that come with Debian's packages.
# shellcheck disable=SC2016
builtins='
  const { createHash } = require("crypto");
  const natives = require("internal/test/binding").internalBinding("builtins").natives;
  for (const id of Object.keys(natives).sort())
    if (id !== "config") console.log(createHash("sha256").update(natives[id]).digest("hex"), id);'

builtins_are_of_the_tree() {
  "$1" --expose-internals -e "$builtins" | grep -v ' internal/deps/' >"$work/builtins"
  (($(wc -l <"$work/builtins") > 200)) || { wc -l "$work/builtins"; return 1; }
  (cd "$2/lib" && sed 's/$/.js/; s/  */  /' "$work/builtins" | sha256sum --quiet -c)
}
check 'the built-ins of out/node are those of its tree' builtins_are_of_the_tree "$repo/out/node" "$repo/out/tree"
check 'the built-ins of out/node-stock are those of its tree' builtins_are_of_the_tree "$repo/out/node-stock" "$repo/out/tree-stock"

echo "$passed passed, $failed failed"
((failed == 0))

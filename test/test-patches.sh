#!/usr/bin/env bash
# tools/patches and tools/build --node-src, on a Node tree cut down to the files that matter.
# usage: test/test-patches.sh (after tools/build)
set -euo pipefail
# shellcheck source=tools/lib/common.sh
. "$(dirname "$0")/../tools/lib/common.sh"
# shellcheck source=tools/lib/sandbox.sh
. "$repo/tools/lib/sandbox.sh"
# shellcheck source=tools/lib/vendor.sh
. "$repo/tools/lib/vendor.sh"

passed=0
failed=0
# Where the sandbox sees it.
work=$(mktemp -d "$cache/test-patches.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The tools work on the repository that they are in: a copy of it may be edited.
mkdir "$work/repo"
for file in Cargo.lock Cargo.toml LICENSE include node-patches rust test/common test/parallel tools; do
  [[ ! -e $repo/$file ]] || { mkdir -p "$work/repo/$(dirname "$file")"; cp -r "$repo/$file" "$work/repo/$file"; }
done
patches=$work/repo/tools/patches
pristine=$(<"$repo/out/tree/deps/tls_splice/.applied/source")

# fresh TREE: unpatched.
fresh() {
  rm -rf "$1"
  mkdir "$1"
  # shellcheck disable=SC2046
  (cd "$pristine" && cp --parents LICENSE src/node_version.h src/node.cc \
    $(sed -n 's,^+++ b/,,p' "$work/repo/node-patches"/*.patch | sort -u) "$1")
}

check() {
  local title=$1
  shift
  # Not as a condition, in which bash would go on after a failed command.
  set +e
  (set -e; "$@") >"$work/output" 2>&1
  local rc=$?
  set -e
  if ((rc == 0)); then
    passed=$((passed + 1))
    echo "ok - $title"
  else
    failed=$((failed + 1))
    echo "not ok - $title"
    tail -n 30 "$work/output" | sed 's/^/# /'
  fi
}

# refused TREE WORDS COMMAND...: it fails, says so, and the tree is what it was.
refused() {
  local tree=$1 words=$2
  shift 2
  rm -rf "$work/before"
  cp -a "$tree" "$work/before"
  if "$@" >"$work/said" 2>&1; then echo 'it went through'; return 1; fi
  cat "$work/said"
  grep -q "$words" "$work/said" || return 1
  diff -r "$work/before" "$tree"
}

same() { diff -r --exclude=.applied "$1" "$2"; }

applies() {
  fresh "$work/tree"
  "$patches" apply "$work/tree"
  grep -q enable-tls-splice "$work/tree/configure.py"
  cmp "$repo/node-patches/deps/tls_splice/tls_splice.gyp" "$work/tree/deps/tls_splice/tls_splice.gyp"
  cmp "$repo/rust/src/lib.rs" "$work/tree/deps/tls_splice/rust/src/lib.rs"
  [[ -x $work/tree/configure.py && ! -x $work/tree/node.gyp ]]
}
check 'the series applies' applies

# An empty CARGO_HOME has neither crates nor settings.
builds_offline() {
  mkdir "$work/cargo"
  cp -r "$work/tree/deps/tls_splice" "$work/core"
  cd "$work/core"
  sandbox_run env CARGO_HOME="$work/cargo" OPENSSL_NO_VENDOR=1 cargo build --frozen --lib --target-dir "$work/core/target"
  [[ -e target/debug/libtls_splice.a ]]
}
check 'cargo builds the core with --frozen and no crates but those in vendor/' builds_offline

nothing_of_ours() {
  local file=$work/tree/deps/tls_splice
  if grep -E 'tun-exec|criterion|\[\[test' "$file/Cargo.toml"; then return 1; fi
  if grep -E '^name = "(cbindgen|criterion|proptest)"' "$file/Cargo.lock"; then return 1; fi
  [[ ! -e $file/rust/tests && ! -e $file/vendor/vcpkg/test-data ]]
}
check 'neither tests nor tools of this repository come with it' nothing_of_ours

again() {
  (cd "$work/tree" && find . -type f -printf '%P %T@\n' | sort) >"$work/times"
  "$patches" apply "$work/tree"
  (cd "$work/tree" && find . -type f -printf '%P %T@\n' | sort) | diff "$work/times" -
}
check 'applied again, not even a time changes' again

node_src() {
  fresh "$work/checkout"
  "$work/repo/tools/build" --node-src "$work/checkout" >"$work/lines"
  grep -qx './configure --enable-tls-splice' "$work/lines"
  grep -q '^make' "$work/lines"
  same "$work/tree" "$work/checkout"
}
check 'tools/build --node-src does the same and says how to build' node_src

shifted() {
  fresh "$work/shifted"
  sed -i '1i# a line more' "$work/shifted/node.gyp"
  "$patches" apply "$work/shifted"
  diff <(sed 1d "$work/shifted/node.gyp") "$work/tree/node.gyp"
}
check 'lines that have moved do not matter' shifted

other_hunk() {
  fresh "$work/other"
  sed -i "s/'node_use_openssl%': 'true'/'node_use_openssl%': 'maybe'/; s/'node_use_quic%'.*//; s/'node_use_v8_platform%'.*//" "$work/other/node.gyp"
  refused "$work/other" "node_use_tls_splice%" "$patches" apply "$work/other"
}
check 'a hunk that does not fit is shown, and nothing is touched' other_hunk

other_file() {
  fresh "$work/other"
  mkdir -p "$work/other/deps/tls_splice"
  echo other >"$work/other/deps/tls_splice/Cargo.toml"
  refused "$work/other" 'Cargo.toml differs' "$patches" apply "$work/other"
}
check 'a file of somebody else in the place of ours is left alone' other_file

edited() {
  cp -a "$work/tree" "$work/edited"
  sed -i 's/needs cargo/needs cargo!/' "$work/edited/configure.py"
  refused "$work/edited" 'tools/patches save' "$patches" apply "$work/edited"
}
check 'an edit that was not saved is left alone' edited

interrupted() {
  cp -a "$work/tree" "$work/halfway"
  cp "$pristine/node.gypi" "$work/halfway"
  rm "$work/halfway/deps/tls_splice/Cargo.toml"
  "$patches" apply "$work/halfway"
  same "$work/tree" "$work/halfway"
}
check 'what was left half-way is finished' interrupted

not_node() {
  mkdir "$work/empty"
  refused "$work/empty" 'not a Node source tree' "$patches" apply "$work/empty"
}
check 'a folder that is no Node tree is refused' not_node

saves() {
  sed -i 's/needs cargo/needs cargo!/' "$work/tree/configure.py"
  sed -i 's/--frozen/--locked/' "$work/tree/deps/tls_splice/cargo.py"
  "$patches" save "$work/tree"
  grep -q 'needs cargo!' "$work/repo/node-patches/build-add-enable-tls-splice.patch"
  grep -q locked "$work/repo/node-patches/deps/tls_splice/cargo.py"
  fresh "$work/checkout"
  "$patches" apply "$work/checkout"
  same "$work/tree" "$work/checkout"
}
check 'edits are saved to the patch and to the plain files' saves

saves_nothing() {
  cp -a "$work/repo" "$work/repo.before"
  "$patches" save "$work/tree"
  diff -r "$work/repo.before" "$work/repo"
}
check 'without an edit, saving gives the same bytes' saves_nothing

saves_older() {
  local script=node-patches/deps/tls_splice/cargo.py
  echo '# newer' >>"$work/repo/$script"
  "$patches" save "$work/tree"
  tail -n 1 "$work/repo/$script" | grep -qx '# newer'
  echo '# other' >>"$work/tree/deps/tls_splice/cargo.py"
  refused "$work/tree" 'edited in both' "$patches" save "$work/tree"
  tail -n 1 "$work/repo/$script" | grep -qx '# newer'
  cp "$work/repo/$script" "$work/tree/deps/tls_splice/cargo.py"
  "$patches" save "$work/tree"
}
check 'a file that is newer here is not overwritten' saves_older

saves_more() {
  fresh "$work/git"
  (cd "$work/git" && git init -q . && git add -A && git -c user.name=t -c user.email=t@localhost commit -q -m base)
  printf 'Subject: [PATCH] src: say more\n\nBecause.\n\n' >"$work/repo/node-patches/src-say-more.patch"
  echo src-say-more.patch >>"$work/repo/node-patches/series"
  "$patches" apply "$work/git"
  sed -i '1i// more' "$work/git/src/node.cc"
  "$patches" save "$work/git" src-say-more.patch src/node.cc
  grep -qx '+// more' "$work/repo/node-patches/src-say-more.patch"
  "$patches" apply "$work/git"
  diff <(echo '// more'; cat "$pristine/src/node.cc") "$work/git/src/node.cc"
}
check 'a file that no patch changes yet is added to one' saves_more

dropped() {
  rm "$work/repo/node-patches/src-say-more.patch"
  sed -i '/src-say-more/d' "$work/repo/node-patches/series"
  "$patches" apply "$work/git"
  cmp "$work/git/src/node.cc" "$pristine/src/node.cc"
}
check 'what left the series is taken back' dropped

check 'the series is consistent, and git am takes what is exported' "$repo/tools/patches" check "$pristine"

names_conflicts() {
  fresh "$work/other"
  sed -i 's/TLSWrap::ReadStop/TLSWrap::StopRead/' "$work/other/src/crypto/crypto_tls.cc"
  sed -i "s/'node_use_sqlite%'/'node_use_sql%'/" "$work/other/node.gyp"
  rm "$work/other/lib/net.js"
  refused "$work/other" 'conflict: src/crypto/crypto_tls.cc, in src-let-' "$repo/tools/patches" check "$work/other"
  grep -q 'conflict: node.gyp, in build-' "$work/said"
  grep -q 'conflict: there is no lib/net.js' "$work/said"
  [[ $(grep -c '^conflict: ' "$work/said") == 3 ]]
}
check 'tools/patches check names each conflict with a tree' names_conflicts

applied_already() {
  fresh "$work/checkout"
  "$repo/tools/patches" apply "$work/checkout"
  "$repo/tools/patches" check "$work/checkout"
}
check '  and takes a tree that has the series already' applied_already

exports_same() {
  "$repo/tools/patches" export "$work/one"
  (cd / && LC_ALL=C "$repo/tools/patches" export "$work/two")
  diff -r "$work/one" "$work/two"
}
check 'exporting twice gives the same bytes' exports_same

exports_same_for_all() {
  mkdir -p "$work/config/git"
  printf '*.rs -diff\n*.md binary\n' >"$work/config/git/attributes"
  printf '[diff]\n\tcontext = 9\n\tnoprefix = true\n' >"$work/config/git/config"
  (
    umask 077
    export XDG_CONFIG_HOME=$work/config GIT_EXTERNAL_DIFF=/bin/true TZ=Asia/Kolkata
    # The cache is where it was.
    XDG_CACHE_HOME=${cache%/tls-splice} "$repo/tools/patches" export "$work/three"
  )
  diff -r "$work/one" "$work/three"
}
check '  whatever the settings of the user are' exports_same_for_all

left_out() {
  fresh "$work/first"
  cd "$work/first"
  git init -q .
  git add -A
  git -c user.name=t -c user.email=t@localhost commit -q -m base
  find "$work/one" -name '*.patch' ! -name '*-tls-splice-*' | sort |
    xargs git -c user.name=t -c user.email=t@localhost am -q --whitespace=nowarn
  [[ -e deps/tls_splice/rust/src/inbound.rs && ! -e deps/tls_splice/rust/src/packets.rs ]]
  if grep -r 'mod packets\|JoinedEndpoint\|EVNETHDR' deps/tls_splice/rust src/crypto; then return 1; fi
}
check 'what the last commits add is not in the tree before them' left_out

slices_follow() {
  cp -a "$work/repo" "$work/repo.kept"
  fresh "$work/other"
  sed -i '1i// more' "$work/repo/rust/src/inbound.rs"
  refused "$work/other" 'slices/tls-splice-.*.patch is not as' "$patches" check "$work/other"
  "$patches" apply "$work/tree"
  "$patches" save "$work/tree"
  "$patches" check "$work/other"
}
check 'what they change moves with the lines around it' slices_follow

slices_conflict() {
  sed -i 's/^pub mod packets;/pub mod packages;/' "$work/repo/rust/src/lib.rs"
  refused "$work/other" 'slices/tls-splice-offload.patch does cannot be taken back' "$patches" check "$work/other"
  rm -r "$work/repo"
  mv "$work/repo.kept" "$work/repo"
}
check '  and is named where it does not fit any more' slices_conflict

# With another cache folder, a cargo that does what it is told, and no sandbox.
vendors() {
  local from
  # Those of this tree: the cache may have others, for other clones.
  vendor_ready
  from=$vendor_dir
  mkdir "$work/bin" "$work/cache"
  cat >"$work/bin/cargo" <<SH
#!/bin/sh
[ "\$1" != --version ] || { echo cargo 1.90.0; exit; }
case \$(cat "$work/cargo-does") in
  fail) echo 'no network here' >&2; exit 101 ;;
  alter) cp -r "$from/vendor" . && cp "$from/Cargo.lock" . && echo '// more' >>vendor/libc/src/lib.rs ;;
  vendor) cp -r "$from/vendor" . && cp "$from/Cargo.lock" . ;;
esac
SH
  chmod +x "$work/bin/cargo"
  cd /
  echo fail >"$work/cargo-does"
  if PATH="$work/bin:$PATH" XDG_CACHE_HOME=$work/cache "$repo/tools/patches" export "$work/four" 2>"$work/said"; then return 1; fi
  grep -q 'no network here' "$work/said"
  grep -q 'Fetching the crates of the Rust core failed' "$work/said"
  [[ ! -e $work/four ]]
  echo alter >"$work/cargo-does"
  if PATH="$work/bin:$PATH" XDG_CACHE_HOME=$work/cache "$repo/tools/patches" export "$work/four" 2>"$work/said"; then return 1; fi
  grep -q 'the crates are not those of tools/vendor.sha256' "$work/said"
  echo vendor >"$work/cargo-does"
  PATH="$work/bin:$PATH" XDG_CACHE_HOME=$work/cache "$repo/tools/patches" export "$work/four"
  diff -r "$work/one" "$work/four"
}
[[ ! $sandbox_root ]] || check 'crates that cannot be fetched, or are others, are an error, and no longer when they can' vendors

# --- The next release ------------------------------------------------------------------------------------------------

# The newest Node 24 of the archive, if that has moved on since the sandbox was made.
later_release() {
  local newest
  # shellcheck disable=SC2016
  newest=$(sandbox_run sh -c 'apt-get -qq update && apt-cache showsrc nodejs | sed -n "s/^Version: //p"' | grep '^24\.' | sort -V | tail -n 1)
  [[ $newest ]] && dpkg --compare-versions "$newest" gt "$node_version" && echo "$newest"
}

applies_to_release() {
  mkdir "$work/release"
  cd "$work/release"
  sandbox_run apt-get -q source --download-only "nodejs=$1"
  sandbox_run sh -c 'dpkg-source --no-check --no-copy -x ./*.dsc tree'
  "$repo/tools/patches" check "$work/release/tree"
}
sandbox_ready
if later=$(later_release); then
  check "the series applies to Node $later, which is in the archive by now" applies_to_release "$later"
else
  echo "ok - the series applies to a later Node 24 # skip the archive has none"
  skipped=1
fi

echo "$passed passed, $failed failed${skipped:+, $skipped skipped}"
((failed == 0))

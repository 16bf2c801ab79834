# shellcheck shell=bash disable=SC2034,SC2154
# Configures and compiles a Node tree, against the sandbox's libnode, which lends it V8, or with the V8 in the tree.
# Sourced after source.sh.

# Debian's own flags (its debian/rules) less --shared and --shared-builtin-*: what V8's headers and ABI depend on must
# agree with its libnode. The tree has no other copies of the libraries that they name.
node_flags() {
  printf '%s\n' --ninja \
    --v8-enable-private-mapping-fork-optimization --without-npm --without-corepack --without-amaro \
    --shared-ada --shared-ada-libname=ada-url0 --shared-zlib --shared-zstd --shared-cares --shared-http-parser \
    --shared-ngtcp2 --shared-nghttp3 --shared-nghttp2 --shared-brotli --shared-simdjson --shared-sqlite \
    --shared-simdutf --shared-hdr-histogram --shared-gtest --shared-libuv --shared-openssl --openssl-use-def-ca-store \
    --with-intl=system-icu --prefix=/usr --arch-triplet="$triplet" \
    --node-relative-path="lib/$triplet/nodejs:share/nodejs" --dest-os=linux
}

# node_environment FLAG...
node_environment() {
  local cxx='' ld='-fuse-ld=mold'
  if [[ " $* " == *' --without-bundled-v8 '* ]]; then
    # Hidden, or this executable's node:: globals would replace libnode's and be destroyed twice at exit.
    cxx='-I../../deps/v8/include -fvisibility=hidden'
    ld+=' -Wl,--no-as-needed'
  fi
  # To run outside of the sandbox, with its libraries, and theirs: DT_RPATH counts for those too, DT_RUNPATH does not.
  [[ -z $sandbox_root ]] ||
    ld+=" -Wl,--dynamic-linker=$sandbox_libdir/$ld_so -Wl,--disable-new-dtags -Wl,-rpath,$sandbox_libdir"
  if [[ " $* " == *' --enable-asan '* ]]; then
    # Less optimisation compiles in half the time, and reports show more of the stack.
    cxx+=' -O1'
    ld+=" $cache/asan-options.o"
  fi
  printf '%s\n' CC='ccache gcc' CXX='ccache g++' CXXFLAGS="$cxx" LDFLAGS="$ld"
}

# node_configure TREE FLAG...: when something that it depends on has changed since the last time.
node_configure() {
  local tree=$1 key flags environment
  shift
  mapfile -t flags < <(node_flags)
  # configure takes no choice of OpenSSL together with --without-ssl.
  [[ " $* " != *' --without-ssl '* ]] || mapfile -t flags < <(node_flags | grep -vxE -- '--shared-openssl|--openssl-.*')
  flags+=("$@")
  mapfile -t environment < <(node_environment "$@")
  key=$(cd "$tree" && {
    printf '%s\n' "${flags[@]}" "${environment[@]}"
    # Lists of sources are made when gyp runs.
    find lib deps/tls_splice -name '*.js' -o -name '*.rs' 2>/dev/null | LC_ALL=C sort || :
    cat configure.py common.gypi node.gyp node.gypi deps/tls_splice/*.gyp "$repo/tools/lib/node.sh" 2>/dev/null || :
  } | sha)
  [[ ! -e $tree/out/configured || $(<"$tree/out/configured") != "$key" ]] || return 0
  rm -f "$tree/out/configured"
  # js2c depends on config.gypi: without a change in it there is no need to compile the JavaScript again.
  cp -p "$tree/config.gypi" "$tree/config.gypi.old" 2>/dev/null || :
  cd "$tree" || exit
  sandbox_run env "${environment[@]}" python3 configure.py "${flags[@]}" >/dev/null || die "configuring $tree failed"
  cd "$OLDPWD" || exit
  ! cmp -s "$tree/config.gypi" "$tree/config.gypi.old" || mv "$tree/config.gypi.old" "$tree/config.gypi"
  [[ " $* " != *' --without-bundled-v8 '* ]] || node_finish_without_v8 "$tree"
  node_precompile_headers "$tree"
  echo "$key" | put "$tree/out/configured"
}

node_asan_options() {
  cp "$repo/tools/lib/asan-options.c" "$cache/asan-options.c"
  cd "$cache" || exit
  sandbox_run gcc -c -o asan-options.o.new asan-options.c
  mv asan-options.o.new asan-options.o
  cd "$OLDPWD" || exit
}

# What --without-bundled-v8 leaves undone.
node_finish_without_v8() {
  local obj=$1/out/Release/obj
  # Node's link line names these archives all the same.
  mkdir -p "$obj/tools/v8_gypfiles"
  for archive in v8_base_without_compiler v8_snapshot; do
    printf '!<arch>\n' >"$obj/tools/v8_gypfiles/lib$archive.a"
  done
  # libnode comes after Node's own archives. Before them (in LDFLAGS) it would lend node_mksnapshot all of Node, and node
  # the start-up snapshot: both of the unpatched one.
  sed -i 's,^libs =,& -lnode,' "$obj"/{node,node_mksnapshot,cctest,embedtest}.ninja
  # Abseil is V8's alone: libnode has it, and it takes a fifth of the time to compile.
  sed -i 's,obj/tools/v8_gypfiles/libabseil\.a,,' "$obj"/{node,node_mksnapshot,cctest,embedtest}.ninja
}

# Half of the time to compile one of Node's sources goes into reading env-inl.h and V8's headers under it: do it once.
# Everything that is compiled depends on the result (the compiler does not name the headers in it as dependencies), and
# through it on what gyp has it wait for.
node_precompile_headers() {
  local obj=$1/out/Release/obj
  # Only worth it, so a gyp that names things differently is no reason to stop.
  grep -q '^    obj/node_base.actions_rules_copies.stamp$' "$obj/node_base.ninja" || return 0
  echo '#include "env-inl.h"' | put "$obj/node_headers.h"
  sed -i '/^build .*\.o: cxx /,/[^$]$/{ s,||,|,; s,obj/node_base.actions_rules_copies.stamp$,obj/node_headers.h.gch,; }' "$obj/node_base.ninja"
  cat >>"$obj/node_base.ninja" <<'NINJA'

rule headers
  command = $
    CCACHE_DISABLE=1 $cxx -MMD -MF $out.d $defines $includes $cflags $cflags_cc -x c++-header -c $in -o $out && $
    CCACHE_DISABLE=1 $cxx $defines $includes $cflags $cflags_cc -x c++-header -E $in | sha256sum >$out.sum
  description = CXX $out
  depfile = $out.d
  deps = gcc
build obj/node_headers.h.gch: headers obj/node_headers.h || obj/node_base.actions_rules_copies.stamp
cflags_pch_cc = -include obj/node_headers.h
NINJA
}

# node_tree NAME: its own copy of the source, of which only what differs is ever written again.
node_tree() {
  local tree=$1
  [[ ! -e $tree ]] || return 0
  rm -rf "$tree.new"
  cp -a "$node_source" "$tree.new"
  mv "$tree.new" "$tree"
}

# node_compile TREE [TARGET...]: Node, unless something else is named.
node_compile() {
  local tree=$1 log=$cache/log/$$-ninja.log rc=0
  shift
  cd "$tree" || exit
  sandbox_run ninja -C out/Release "${@:-node}" > >(node_progress "$log") 2>&1 </dev/null || rc=$?
  wait $! || :
  cd "$OLDPWD" || exit
  if ((rc)); then
    # From the first failure on: what went before is only warnings.
    sed -n '/^FAILED: /,$p' "$log" | head -n 80 >&2
    die "compiling failed (all of the output: $log)"
  fi
  rm -f "$log"
}

# Ninja's own progress, as one line that counts on a terminal, and a line every 20 s elsewhere.
node_progress() {
  local log=$1 line start=$SECONDS shown=$SECONDS
  while IFS= read -r line; do
    printf '%s\n' "$line" >&3
    [[ $line =~ ^\[([0-9]+/[0-9]+)\] ]] || continue
    if [[ -t 2 ]]; then
      printf '\r   [%s] %s s ' "${BASH_REMATCH[1]}" $((SECONDS - start)) >&2
    elif ((SECONDS - shown >= 20)); then
      shown=$SECONDS
      say "   [${BASH_REMATCH[1]}] $((SECONDS - start)) s"
    fi
  done 3>"$log"
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

# node_install TREE FILE: a copy, so that a program that is running keeps its binary. Whole or not at all.
node_install() {
  mkdir -p "$(dirname "$2")"
  cmp -s "$1/out/Release/node" "$2" || {
    cp "$1/out/Release/node" "$2.new"
    mv "$2.new" "$2"
  }
}

# node_build TITLE TREE FILE FLAG...
node_build() {
  local title=$1 tree=$2 file=$3 start=$SECONDS
  shift 3
  say "== $title"
  node_configure "$tree" "$@"
  node_compile "$tree"
  node_install "$tree" "$file"
  say "   $((SECONDS - start)) s"
}

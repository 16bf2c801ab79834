# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by every tool: where things are, messages, timed steps, locks.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/tls-splice
mkdir -p "$cache/log"
cache=$(cd "$cache" && pwd -P)
triplet=$(uname -m)-linux-gnu

# Logs are left behind by failures only.
find "$cache/log" -type f -mtime +7 -delete

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

case $(uname -sm) in
  'Linux x86_64') ld_so=ld-linux-x86-64.so.2 ;;
  'Linux aarch64') ld_so=ld-linux-aarch64.so.1 ;;
  *) die "only Linux on x86_64 or aarch64 is supported, this is $(uname -sm)" ;;
esac

# The shell has no mounts, spaces or quotes to spare for such paths: gyp, make and the linker would each split them.
case $repo$cache in
  *[[:space:]\'\"\$\\]*) die "neither the clone nor the cache folder may have spaces or quotes in its path" ;;
esac

# step TITLE COMMAND...: the command's output goes to a log, whose end is shown when the command fails. A line every
# 20 s tells a terminal and a CI log alike that it is still going. The command is a child of this very shell, not of
# a subshell: what enters the sandbox dies with its parent (see sandbox.sh), also when that is killed.
step() {
  local title=$1 log start=$SECONDS ticker rc=0
  shift
  log=$cache/log/$$-${title//[^A-Za-z0-9]/-}.log
  say "== $title"
  ticker $$ "$start" & ticker=$!
  "$@" >"$log" 2>&1 </dev/null || rc=$?
  kill "$ticker" 2>/dev/null || :
  wait "$ticker" 2>/dev/null || :
  if ((rc)); then
    tail -n 25 "$log" >&2
    die "$title failed (all of its output: $log)"
  fi
  rm -f "$log"
  say "   $((SECONDS - start)) s"
}

# host_need COMMAND PACKAGE: a command on the host itself.
host_need() {
  ! command -v "$1" >/dev/null || return 0
  ((EUID == 0)) || die "$1 is missing: install the package $2, or run this as root"
  command -v apt-get >/dev/null || die "$1 is missing, and this is not a Debian or Ubuntu where it could be installed"
  step "Installing $2" sh -c "apt-get -qq update && apt-get -qq -y install --no-install-recommends $2"
}

ticker() {
  local n
  while sleep 1; do
    kill -0 "$1" 2>/dev/null || return
    n=$((SECONDS - $2))
    ((n % 20)) || say "   ... $n s"
  done
}

# lock NAME: until unlock NAME or the end of this process. Nothing else inherits it for long: what enters the sandbox
# dies with this process.
declare -A locks=()
lock() {
  local fd
  exec {fd}>"$cache/$1.lock"
  locks[$1]=$fd
  flock -n "$fd" && return
  say "waiting for another run to release $cache/$1.lock"
  flock "$fd"
}

unlock() {
  local fd=${locks[$1]}
  exec {fd}>&-
}

# put FILE: stdin becomes FILE, unless it has that content already; whole or not at all.
put() {
  local tmp=$1.new.$$
  cat >"$tmp"
  if cmp -s "$tmp" "$1"; then rm -f "$tmp"; else mv -f "$tmp" "$1"; fi
}

# The first characters of a checksum: enough for names.
sha() { sha256sum | cut -c1-12; }
repo_key=$(printf %s "$repo" | sha)

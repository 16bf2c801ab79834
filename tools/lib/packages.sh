# shellcheck shell=bash disable=SC2034,SC2154
# Packages of npm and PyPI, in the cache folder. Sourced after sandbox.sh.

# npm_ready NAME FOLDER: what its package-lock.json names, with checksums, in npm_dir.
npm_ready() {
  local key rc=0
  key=$(sha <"$2/package-lock.json")
  npm_dir=$cache/$1-$key
  [[ ! -e $npm_dir/ready ]] || return 0
  sandbox_need npm && mkdir -p "$npm_dir" && cp "$2"/package*.json "$npm_dir/" && cd "$npm_dir" || return
  sandbox_run env NODE_EXTRA_CA_CERTS="$cache/ca-certificates.crt" \
    npm ci --ignore-scripts --no-audit --no-fund --cache "$cache/npm" && touch ready || rc=$?
  cd "$repo" || return
  return "$rc"
}

# python_ready REQUIREMENTS: what that file names, with checksums, in python_dir.
python_ready() {
  local from=$1 key cert=()
  key=$({ cat "$from"; echo "$sandbox_key"; } | sha)
  python_dir=$cache/python-$key
  [[ ! -e $python_dir/ready ]] || return 0
  [[ ! -e $cache/ca-certificates.crt ]] || cert=(--cert "$cache/ca-certificates.crt")
  sandbox_need python3-venv && rm -rf "$python_dir" && sandbox_run python3 -m venv "$python_dir" &&
    sandbox_run "$python_dir/bin/pip" "${cert[@]}" --disable-pip-version-check \
      install --quiet --require-hashes --only-binary :all: -r "$from" && touch "$python_dir/ready"
}

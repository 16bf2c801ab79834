# shellcheck shell=bash disable=SC2034,SC2154
# A Debian forky tree in the cache folder: its compilers, its libnode with V8, its libraries. Sourced after common.sh.
# On a host that is forky or sid itself there is none: sandbox_root is empty and everything runs on the host.

sandbox_suite=forky
sandbox_packages=(
  build-essential ca-certificates ccache esbuild git libnode-dev mold ninja-build nodejs patch python3 rustc cargo
)

# shellcheck disable=SC1091
if (. /etc/os-release && [[ $ID == debian && ( ${VERSION_CODENAME:-} == forky || ${VERSION_CODENAME:-sid} == sid ) ]]); then
  sandbox_root=
  sandbox_key=host
else
  sandbox_key=$sandbox_suite-$(printf '%s\n' 1 "$triplet" "${sandbox_packages[@]}" | sha)
  sandbox_root=$cache/sandbox-$sandbox_key
fi
sandbox_libdir=$sandbox_root/usr/lib/$triplet

# What a command in the sandbox sees of the environment: nothing of the host's but what reaching the network takes.
sandbox_env=(
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  LANG=C.UTF-8 HOME="$HOME" TERM="${TERM:-dumb}" DEBIAN_FRONTEND=noninteractive
  CARGO_HOME="$cache/cargo" CCACHE_DIR="$cache/ccache"
  # For precompiled headers, which count by a checksum of what went into them.
  CCACHE_SLOPPINESS="pch_defines,time_macros" CCACHE_PCH_EXTSUM=1
)
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
  [[ -z ${!name-} ]] || sandbox_env+=("$name=${!name}")
done
# The host's certificates, since an administrator may have added one that downloads need.
if [[ -r /etc/ssl/certs/ca-certificates.crt ]]; then
  sandbox_env+=(CARGO_HTTP_CAINFO="$cache/ca-certificates.crt")
fi

# in_namespaces COMMAND...: as root in mount and pid namespaces of its own. When this shell dies, however it dies,
# the kernel kills unshare, and with it everything in the pid namespace.
in_namespaces() {
  local ns=(--mount --pid --fork --kill-child)
  ((EUID == 0)) || ns+=(--user --map-root-user --map-auto)
  setpriv --pdeathsig KILL unshare "${ns[@]}" -- "$@"
}

# sandbox_in ROOT COMMAND...: like sandbox_run, in a tree that need not be the finished one.
sandbox_in() {
  local root=$1 dir=$PWD
  shift
  case $dir/ in "$repo"/* | "$cache"/*) ;; *) dir=/ ;; esac
  in_namespaces "$repo/tools/lib/sandbox-enter.sh" "$root" "$dir" "$repo" "$cache" -- \
    env -i "${sandbox_env[@]}" "$@"
}

# sandbox_run COMMAND...: in the sandbox, in the current directory if that is in the clone or the cache.
sandbox_run() {
  if [[ $sandbox_root ]]; then
    sandbox_in "$sandbox_root" "$@"
  else
    setpriv --pdeathsig KILL env -i "${sandbox_env[@]}" "$@"
  fi
}

# apt_in ROOT ARGUMENT...
apt_in() {
  local root=$1
  shift
  if [[ $root ]]; then sandbox_in "$root" apt-get -qq -y "$@"; else host_apt "$@"; fi
}

# host_apt ARGUMENT...: with the host's archives, and their sources too, which a fresh machine does not list. What its
# administrator has set up stays as it is.
host_apt() {
  local own=$cache/apt file
  mkdir -p "$own/sources.list.d" "$own/lists/partial"
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ ! -e $file ]] || sed -n 'p; s/^deb /deb-src /p' "$file" | put "$own/${file#/etc/apt/}"
  done
  for file in /etc/apt/sources.list.d/*.sources; do
    [[ ! -e $file ]] || sed 's/^Types:.*/Types: deb deb-src/' "$file" | put "$own/${file#/etc/apt/}"
  done
  [[ -e $own/sources.list ]] || : >"$own/sources.list"
  env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o APT::Install-Recommends=false \
    -o Dir::Etc::SourceList="$own/sources.list" -o Dir::Etc::SourceParts="$own/sources.list.d" -o Dir::State::Lists="$own/lists" "$@"
}

# Asked of dpkg's file rather than of dpkg, which would take entering the sandbox.
sandbox_installed() {
  grep -A 2 -xF "Package: $1" "$sandbox_root/var/lib/dpkg/status" | grep -qx 'Status: .* ok installed'
}

# sandbox_need PACKAGE...: installs what is missing, and costs nothing when nothing is.
sandbox_need() {
  local package missing=()
  for package; do sandbox_installed "$package" || missing+=("$package"); done
  ((${#missing[@]})) || return 0
  [[ $sandbox_root ]] || ((EUID == 0)) || die "these packages are missing: ${missing[*]} (install them, or run this as root)"
  lock "sandbox-$sandbox_key"
  step "Installing ${missing[*]}${sandbox_root:+ in the sandbox}" sandbox_install "${missing[@]}"
  unlock "sandbox-$sandbox_key"
}

sandbox_install() {
  # A run that was killed in the middle of dpkg leaves half-configured packages behind.
  [[ -z $sandbox_root ]] || sandbox_run dpkg --configure -a
  apt_in "$sandbox_root" install "$@" || { apt_in "$sandbox_root" update && apt_in "$sandbox_root" install "$@"; }
}

# sandbox_ready: afterwards the sandbox, or the host in its place, has all that the build needs, and node_version is
# the version of its Node package, whose source is in sandbox_source.
sandbox_ready() {
  mkdir -p "$cache/ccache" "$cache/cargo"
  [[ ! -r /etc/ssl/certs/ca-certificates.crt ]] ||
    put "$cache/ca-certificates.crt" </etc/ssl/certs/ca-certificates.crt
  if [[ -z $sandbox_root ]]; then
    sandbox_source=$cache/source-host
    host_ready
  else
    sandbox_source=$sandbox_root/src
    if ! in_namespaces true 2>/dev/null; then
      ((EUID == 0)) || die 'without root this needs user namespaces (and the package uidmap), which this machine lacks or denies: run it as root'
      die 'root may not make mount and pid namespaces here: give this container the capability SYS_ADMIN'
    fi
    if [[ ! -e $sandbox_root ]]; then
      lock "sandbox-$sandbox_key"
      [[ -e $sandbox_root ]] || sandbox_make
      unlock "sandbox-$sandbox_key"
    fi
  fi
  [[ -e $sandbox_source/version ]] || die "$sandbox_source has no version file: delete that folder and try again"
  node_version=$(<"$sandbox_source/version")
}

sandbox_make() {
  host_need mmdebstrap mmdebstrap
  [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || {
    ((EUID == 0)) || die "Debian's keys are missing: install the package debian-archive-keyring, or run this as root"
    step "Installing debian-archive-keyring" sh -c 'apt-get -qq update && apt-get -qq -y install debian-archive-keyring'
  }
  # Into another name first: a folder with the final name is a finished sandbox.
  local new=$sandbox_root.new
  remove_tree "$new"
  step "Making a Debian $sandbox_suite sandbox" sandbox_bootstrap "$new" '' "${sandbox_packages[@]}"
  step "Installing build dependencies and Node's source in it" sandbox_fill "$new"
  mv "$new" "$sandbox_root"
}

# The archive's Release file may be past its date on mirrors that are seldom synchronised: signatures still count.
sandbox_apt=('Acquire::Check-Valid-Until "false"' 'APT::Install-Recommends "false"' 'APT::Sandbox::User "root"')

# sandbox_bootstrap ROOT ARCHITECTURE PACKAGE...: a new system, which has these beside apt. Those of the second
# architecture, if one is named, are written as package:architecture.
sandbox_bootstrap() {
  local root=$1 architecture=$2 include option options=()
  shift 2
  [[ ! $architecture ]] || options+=(--architectures="$(dpkg --print-architecture),$architecture")
  include=$(IFS=,; echo "$*")
  for option in "${sandbox_apt[@]}"; do options+=("--aptopt=$option"); done
  options+=(--variant=apt --include="$include")
  if ((EUID == 0)); then
    in_namespaces mmdebstrap --mode=root "${options[@]}" "$sandbox_suite" "$root"
  else
    # Through an archive, so that the files belong to the user, whom in_namespaces maps to root.
    mkdir "$root"
    mmdebstrap --mode=unshare --format=tar "${options[@]}" "$sandbox_suite" "$root.tar"
    in_namespaces tar -x -f "$root.tar" --exclude='./dev/*' -C "$root"
    rm "$root.tar"
  fi
}

# Binaries and source come from the same look at the archive, so they stay the same version when it moves on.
sandbox_fill() {
  local root=$1
  # shellcheck disable=SC2016
  sandbox_in "$root" sh -eu -c '
    sed -n "s/^deb /deb-src /p" /etc/apt/sources.list >/etc/apt/sources.list.d/source.list
    apt-get -q update
    apt-get -q -y build-dep -P nocheck nodejs
    # Packages that are installed later must not bring another Node along.
    apt-mark hold nodejs libnode-dev
    apt-get clean
    mkdir /src
    cd /src
    version=$(dpkg-query -f "\${Version}" -W libnode-dev)
    apt-get -q source --download-only "nodejs=$version"
    echo "$version" >version'
}

host_fill() {
  host_apt update && host_apt install "$@" && host_apt build-dep -P nocheck nodejs
}

host_source() {
  host_apt update && host_apt source --download-only "nodejs=$1"
}

host_ready() {
  local package missing=() version
  for package in "${sandbox_packages[@]}"; do sandbox_installed "$package" || missing+=("$package"); done
  if ((${#missing[@]})) || ! dpkg-checkbuilddeps -P nocheck "$sandbox_source/control" 2>/dev/null; then
    ((EUID == 0)) || die "on this machine packages are missing: ${missing[*]} and nodejs's build dependencies; run this as root"
    step "Installing Node's build dependencies" host_fill "${missing[@]}"
  fi
  version=$(dpkg-query -f '${Version}' -W libnode-dev)
  [[ -e $sandbox_source/version && $(<"$sandbox_source/version") == "$version" ]] && return
  rm -rf "$sandbox_source.new" "$sandbox_source"
  mkdir "$sandbox_source.new"
  cd "$sandbox_source.new" || exit
  step "Fetching Node's source" host_source "$version"
  cd "$OLDPWD" || exit
  tar -xJf "$sandbox_source.new"/*.debian.tar.xz -C "$sandbox_source.new" --strip-components=1 debian/control
  echo "$version" >"$sandbox_source.new/version"
  mv "$sandbox_source.new" "$sandbox_source"
}

# remove_tree DIR: a sandbox has files that only its own root may delete.
remove_tree() {
  [[ ! -e $1 ]] || in_namespaces rm -rf --one-file-system -- "$1"
}

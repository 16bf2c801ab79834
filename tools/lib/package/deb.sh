# shellcheck shell=bash disable=SC2034,SC2154
# The Debian package of out/node. Sourced after vendor.sh by tools/package, which sets work and epoch.

package_name=nodejs-tls-splice
# Sources that Node takes from other packages, and that are compiled into it (see source.sh).
deb_bundled=(node-undici node-acorn node-minimatch)

# package_deb: sets deb, the file.
package_deb() {
  local root=$work/deb arch version
  sandbox_need patchelf
  arch=$(sandbox_run dpkg --print-architecture)
  version=$(package_version)
  deb=$repo/out/package/${package_name}_${version}_$arch.deb
  step 'Installing what goes into the package' deb_fill "$root"
  step "Packing $(basename "$deb")" deb_pack "$root" "$arch" "$version"
  echo "$deb"
}

package_version() {
  printf '%s+splice%s\n' "${node_version%%+*}" "$(sed -n 's/^version = "\(.*\)"$/\1/p' "$repo/Cargo.toml" | head -n 1)"
}

deb_fill() {
  local root=$1 node=$1/usr/bin/node-tls-splice doc=$1/usr/share/doc/$package_name package
  install -D -m 755 "$repo/out/node" "$node"
  # The build ID depends on where the sandbox was.
  sandbox_run strip --strip-unneeded -R .comment -R .note.gnu.build-id "$node" || return
  deb_relocate "$node" || return
  deb_headers "$root" || return
  mkdir -p "$doc" "$root/usr/share/man/man1"
  gzip -9n <"$repo/tools/lib/package/node-tls-splice.1" >"$root/usr/share/man/man1/node-tls-splice.1.gz"
  deb_changelog | gzip -9n >"$doc/changelog.gz"
  deb_copyright >"$doc/copyright"
  for package in "${deb_bundled[@]}"; do cp "$sandbox_root/usr/share/doc/$package/copyright" "$doc/copyright.$package"; done
  # The license lets every copy of the core be used, if it comes with it.
  cp "$repo/LICENSE" "$doc/LICENSE.tls-splice"
  deb_depends "$root" >"$work/depends" || return
  deb_contents >"$doc/$package_name.spdx.json" || return
  chmod -R u=rwX,go=rX "$root"
}

# deb_relocate PROGRAM: its libraries are where every program looks for them, and no longer those of the sandbox. To remove
# a path leaves its text behind, so it is overwritten before.
deb_relocate() {
  # shellcheck disable=SC2016
  sandbox_run sh -euc 'patchelf --set-rpath / "$1"; patchelf --remove-rpath "$1"
    patchelf --set-interpreter "$(patchelf --print-interpreter /usr/bin/node)" "$1"' - "$1"
}

# In include/node of a folder, as node-gyp --nodedir wants them.
deb_headers() {
  cd "$repo/out/tree" || return
  sandbox_run python3 tools/install.py install --silent --headers-only --dest-dir "$1" --prefix /usr/lib/node-tls-splice
  cd "$OLDPWD" || return
}

deb_changelog() {
  printf '%s (%s) %s; urgency=medium\n\n' "$package_name" "$(package_version)" "$sandbox_suite"
  printf '  * Built from Node.js %s with the patch series of tls-splice %s.\n' "$node_version" "$(package_commit)"
  printf '\n -- The tls-splice authors <tls-splice@localhost>  %s\n' "$(date -u -R -d "@$epoch")"
}

package_commit() {
  git -C "$repo" rev-parse --short=12 HEAD 2>/dev/null || echo unknown
}

# That of Debian's nodejs, with what the series adds.
deb_copyright() {
  local crate
  cat "$node_source/debian/copyright"
  deb_stanza 'deps/tls_splice/* src/crypto/crypto_tls_splice* lib/internal/tls/splice*' tls-splice "$repo/LICENSE"
  for crate in "$vendor_dir"/vendor/*/; do
    crate=$(basename "$crate")
    deb_stanza "deps/tls_splice/vendor/$crate/*" "$crate" "$vendor_dir/vendor/$crate/LICENSE-MIT"
  done
}

# deb_stanza FILES NAME LICENSE
deb_stanza() {
  printf '\nFiles: %s\nCopyright: %s\nLicense: Expat-%s\n' "$1" \
    "$(sed -n 's/^ *Copyright (c) //p' "$3" | head -n 1 | grep . || echo "the authors of $2")" "$2"
  sed 's/^ *$/./; s/^/ /' "$3"
}

# deb_depends ROOT: exactly the libnode that out/node was compiled with, whose V8 has no stable interface.
deb_depends() {
  local dir=$work/shlibs libnode
  mkdir -p "$dir/debian"
  printf 'Source: %s\n\nPackage: %s\nArchitecture: any\n' "$package_name" "$package_name" >"$dir/debian/control"
  # shellcheck disable=SC2016
  libnode=$(sandbox_run sh -c 'dpkg-query -S "$(readlink -f /usr/lib/*/libnode.so.*)"' | cut -d: -f1 | head -n 1)
  cd "$dir" || return
  sandbox_run dpkg-shlibdeps --warnings=0 -O "$1/usr/bin/node-tls-splice" 2>/dev/null |
    sed -n 's/^shlibs:Depends=//p' | sed "s/$libnode ([^)]*)/$libnode (= $node_version)/"
  cd "$OLDPWD" || return
}

# deb_contents: the list of what is in the package.
deb_contents() {
  local packages
  packages=$(sed 's/([^)]*)//g; s/,/ /g; s/|[^ ]*//g' "$work/depends")
  # shellcheck disable=SC2016,SC2086
  sandbox_run dpkg-query -W -f '${Package} ${Version}\n' $packages "${deb_bundled[@]}" libstd-rust-dev |
    "$repo/out/node" "$repo/tools/lib/package/sbom.mjs" "$vendor_dir" "$package_name" "$(package_version)" "$node_version" \
      "$(package_commit)" "$epoch" "${deb_bundled[@]}" libstd-rust-dev
}

# deb_pack ROOT ARCH VERSION
deb_pack() {
  local root=$1 arch=$2 version=$3
  mkdir "$root/DEBIAN"
  cat >"$root/DEBIAN/control" <<TEXT
Package: $package_name
Version: $version
Architecture: $arch
Maintainer: The tls-splice authors <tls-splice@localhost>
Installed-Size: $(du -k -s --apparent-size --exclude=DEBIAN "$root" | cut -f1)
Depends: $(<"$work/depends")
Recommends: ca-certificates
Suggests: node-gyp
Section: javascript
Priority: optional
Description: Node.js whose TLS sockets can be joined to other endpoints natively
 This is Node.js ${node_version%%+*} with tlsSocket.spliceTo(), which joins a TLSSocket to a
 file descriptor, a net.Socket or another TLSSocket, and moves the cleartext
 between them in native code. It is installed as node-tls-splice, beside the
 node of the package nodejs.
TEXT
  (cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
  chmod 755 "$root/DEBIAN"
  sandbox_run env SOURCE_DATE_EPOCH="$epoch" dpkg-deb --build --root-owner-group -Zxz "$root" "$deb.new" || return
  mv "$deb.new" "$deb"
}

# shellcheck shell=bash disable=SC2034,SC2154
# The container image. Sourced after deb.sh by tools/package, which sets work and epoch.

# package_oci: an image layout in a tar archive.
package_oci() {
  local layout=$work/layout file
  package_deb >/dev/null
  file=${deb%.deb}.oci.tar
  host_need mmdebstrap mmdebstrap
  step 'Installing the package and what it depends on' oci_layer "$work/layer.tar"
  step "Packing $(basename "$file")" oci_pack "$work/layer.tar" "$layout" "$file"
  echo "$file"
}

# oci_layer FILE: the files of packages alone. Neither dpkg nor a shell is in the image, nor anything that they would set
# up; image-root.sh does what Node needs of that.
oci_layer() {
  local include option options=() mode=root
  include=$(sed 's/([^)]*)//g; s/|[^,]*//g; s/ //g' "$work/depends"),base-files,ca-certificates,netbase,tzdata
  for option in "${sandbox_apt[@]}"; do options+=("--aptopt=$option"); done
  ((EUID == 0)) || mode=unshare
  mmdebstrap --mode="$mode" "${options[@]}" --variant=extract --format=tar --include="$include" "$sandbox_suite" "$work/base.tar" &&
    in_namespaces "$repo/tools/lib/package/image-root.sh" "$work/base.tar" "$work/image" "$deb" "$epoch" "$1"
}

# oci_pack LAYER LAYOUT FILE
oci_pack() {
  "$repo/out/node" "$repo/tools/lib/package/oci.mjs" "$1" "$2" "$package_name" "$(package_version)" "$epoch" || return
  tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -C "$2" -c -f "$3.new" . || return
  mv "$3.new" "$3"
}

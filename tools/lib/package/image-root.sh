#!/bin/sh
# Run by oci.sh as root of new namespaces: unpacks what mmdebstrap has made and the package of this repository, sets up
# what packages would set up if they were configured, and packs it again: the same order and dates each time.
# usage: image-root.sh BASE ROOT DEB EPOCH LAYER
set -eu
base=$1 root=$2 deb=$3 epoch=$4 layer=$5
mkdir "$root"
tar -x -p --numeric-owner --exclude='./dev/*' -f "$base" -C "$root"
dpkg-deb -x "$deb" "$root"
cd "$root"

# No program but this one, under the name that scripts know as well. libnode brings Debian's own node along, and modules
# for its own copy of Node, which nothing enters.
find usr/bin usr/sbin ! -type d ! -name node-tls-splice -delete
rm -rf usr/share/nodejs usr/share/node_modules
ln -s node-tls-splice usr/bin/node
cat >etc/passwd <<'TEXT'
root:x:0:0:root:/root:/usr/sbin/nologin
node:x:1000:1000:node:/home/node:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
TEXT
cat >etc/group <<'TEXT'
root:x:0:
node:x:1000:
nogroup:x:65534:
TEXT
install -d -o 1000 -g 1000 home/node
install -d -m 700 root
install -d -m 1777 tmp
mkdir -p dev proc sys
mkdir -p etc/ssl/certs
find usr/share/ca-certificates/mozilla -name '*.crt' | LC_ALL=C sort | xargs cat >etc/ssl/certs/ca-certificates.crt

# Nobody reads manuals in a container, but licenses come with what they are of.
find usr/share/doc -type f ! -name 'copyright*' ! -name 'LICENSE*' ! -name '*.spdx.json' -delete
find usr/share/doc -type l ! -name 'copyright*' -delete
find usr/share/doc -mindepth 1 -type d -empty -delete
rm -rf usr/share/man usr/share/locale usr/share/info usr/share/lintian usr/share/bug usr/lib/node-tls-splice \
  var/lib/apt var/lib/dpkg var/cache/apt etc/apt

tar -c --sort=name --format=gnu --numeric-owner --mtime="@$epoch" --clamp-mtime -f "$layer" .

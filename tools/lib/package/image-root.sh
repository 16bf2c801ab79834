#!/bin/sh
# Run by mmdebstrap for oci.sh when all packages are unpacked: the package of this repository, and what packages would set
# up if they were configured.
# usage: image-root.sh ROOT DEB
set -eu
cd "$1"
dpkg-deb -x "$2" .

# As the name by which programs start it.
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
mkdir -p etc/ssl/certs
find usr/share/ca-certificates/mozilla -name '*.crt' | LC_ALL=C sort | xargs cat >etc/ssl/certs/ca-certificates.crt

# Nobody reads manuals in a container, but licenses come with what they are of.
find usr/share/doc -type f ! -name 'copyright*' ! -name 'LICENSE*' ! -name '*.spdx.json' -delete
find usr/share/doc -type l ! -name 'copyright*' -delete
find usr/share/doc -mindepth 1 -type d -empty -delete
rm -rf usr/share/man usr/share/locale usr/share/info usr/share/lintian usr/share/bug usr/lib/node-tls-splice \
  var/lib/apt var/lib/dpkg var/cache/apt etc/apt

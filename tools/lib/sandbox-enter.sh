#!/bin/sh
# Run by sandbox.sh as root of new mount and pid namespaces: mounts what the sandbox needs, which nobody else sees and
# which goes away with the last process, then runs the command there.
# usage: sandbox-enter.sh ROOT DIRECTORY BIND... -- COMMAND...
set -eu
PATH=$PATH:/usr/sbin:/sbin  # Not in everybody's.
root=$1
dir=$2
shift 2

mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
for file in /etc/resolv.conf /etc/hosts; do
  [ ! -e "$file" ] || { : >>"$root$file"; mount --bind "$file" "$root$file"; }
done
# The same paths inside and outside, so that what the build writes down is valid in both places.
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount --bind "$1" "$root$1"
  shift
done
shift
# shellcheck disable=SC2016
exec chroot "$root" /bin/sh -c 'cd "$0" && exec "$@"' "$dir" "$@"

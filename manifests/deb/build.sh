#!/bin/sh
# Puts a Debian package together. The same inputs give the same bytes: times are those of $SOURCE_DATE_EPOCH, by default the last commit's.
# Usage: build.sh KVMLET GUEST VERSION FOLDER. KVMLET: the program, with kvmlet-machine beside it; GUEST: the folder of guest/build.sh. The last line of stdout is the package.
# $DEB_LEVEL: how hard xz tries, 0 to 9 (6).
set -eu
umask 022
export LC_ALL=C.UTF-8 TZ=UTC

[ $# -eq 4 ] || { echo "usage: $0 KVMLET GUEST VERSION FOLDER" >&2; exit 2; }
kvmlet=$1 guest=$2 version=$3 folder=$4
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
top=$here/../..
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
doc=$root/usr/share/doc/kvmlet
install -D -m 0755 -t "$root/usr/bin" "$kvmlet" "$(dirname -- "$kvmlet")/kvmlet-machine"
install -D -m 0644 -t "$root/usr/lib/kvmlet" "$guest/vmlinux" "$guest/initramfs.cpio"
install -D -m 0644 -t "$root/lib/systemd/system" "$top/manifests/systemd/kvmlet.service"
install -D -m 0644 -t "$root/etc/kvmlet" "$top/manifests/systemd/config.yaml.example"
install -D -m 0644 -t "$doc" "$top/README.md" "$top/CHANGELOG.md" "$top/docs"/*.md "$here/copyright"
python3 "$here/licences.py" "$top" >"$doc/licences-of-crates.txt"
cp -r "$top/manifests/examples" "$doc/examples"

# What the program is linked with, as Debian's own tool says it.
mkdir -p "$work/debian" "$root/DEBIAN"
printf 'Source: kvmlet\n\nPackage: kvmlet\nArchitecture: amd64\n' >"$work/debian/control"
libraries=$(cd "$work" && dpkg-shlibdeps -O "$root/usr/bin/kvmlet" "$root/usr/bin/kvmlet-machine" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$libraries" ] || { echo "deb: dpkg-shlibdeps says nothing of $kvmlet" >&2; exit 1; }
size=$(find "$root" -type f ! -path '*/DEBIAN/*' -printf '%s\n' | awk '{ sum += int(($1 + 1023) / 1024) } END { print sum }')
sed -e "s/@VERSION@/$version/" -e "s/@LIBRARIES@/$libraries/" -e "s/@SIZE@/$size/" "$here/control" >"$root/DEBIAN/control"
echo /etc/kvmlet/config.yaml.example >"$root/DEBIAN/conffiles"
install -m 0755 -t "$root/DEBIAN" "$here/preinst" "$here/postinst" "$here/prerm" "$here/postrm"
(cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\n' | sort | xargs -d '\n' md5sum) >"$root/DEBIAN/md5sums"

find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
find "$root" -type d -exec chmod 0755 {} +
find "$doc" -type f -exec chmod 0644 {} +
mkdir -p "$folder"
package=$folder/kvmlet_${version}_amd64.deb
# One thread: how many there are would show in the bytes.
dpkg-deb --root-owner-group -Zxz -z"${DEB_LEVEL:-6}" --threads-max=1 --build "$root" "$package" >&2
echo "$package"

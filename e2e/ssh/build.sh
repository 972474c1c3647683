#!/bin/sh
# Builds the initramfs of the guest that the bench reaches by ssh, into the cache, by hash of its inputs: Debian's dropbear with its libraries, busybox
# and `init`. Out of their packages, none of which is installed. What is of one run (key, addresses) is appended to it then.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=ssh
. "$here/../cached.sh"
packages="dropbear-bin libtomcrypt1 libtommath1 libgmp10 zlib1g libcrypt1 libc6 busybox-static"

begin "$({ cat "$here/build.sh" "$here/init" /etc/debian_version; dpkg --print-architecture; } | digest)"
cd "$partial"
# As _apt, which may not write here, apt warns and does it as root.
# shellcheck disable=SC2086 # one argument a package
fetch() { apt-get -q -o APT::Sandbox::User=root download $packages >&2; }
# The package lists may be old or absent.
fetch || { apt-get -q update >&2 && fetch; }
for package in *.deb; do
    dpkg-deb -x "$package" all
done
loader=/lib64/ld-linux-x86-64.so.2
server=/usr/sbin/dropbear

mkdir -p root/bin root/dev root/etc/dropbear root/proc root/sys root/root root/usr/sbin
# Where the loader looks by itself; it fails when one is missing.
libraries=$(chroot all "$loader" --list "$server")
for file in $(echo "$libraries" | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do
    mkdir -p "root$(dirname "$file")"
    cp -L "all$file" "root$file"
done
cp "all$server" "root$server"
cp all/bin/busybox root/bin/busybox
ln -s busybox root/bin/sh
install -m 0755 "$here/init" root/init
# Without a password, and nobody may come in by one.
echo 'root:*:0:0:root:/root:/bin/sh' >root/etc/passwd
chmod 0700 root/root
version=$(chroot root "$server" -V 2>&1)
(cd root && find . | cpio --quiet -o -H newc -R 0:0) >ssh.cpio
rm -r all root ./*.deb
finish "$version"

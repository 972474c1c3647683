#!/bin/sh
# Builds what an emulated KVM host boots: Debian's kernel, an initramfs that
# mounts the root disk, and the root disk itself (an ext4 image that hosts open
# copy-on-write), into the cache, by hash of its inputs.
# Usage: build.sh [systemd]. With it the root has systemd, logind and D-Bus, and rig-init ends by becoming systemd.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
variant=${1:-}
kind=host${variant:+-$variant}
. "$here/../cached.sh"
export LC_ALL=C.UTF-8

# What kvmlet itself needs on a host, then what the tests and the bench run there.
packages=iproute2,nftables,iptables,conntrack,kmod,e2fsprogs,containernetworking-plugins,ca-certificates
packages=$packages,busybox-static,curl,iputils-ping,procps,psmisc,util-linux,erofs-utils,attr,openssl,qemu-system-x86,strace,tcpdump,time
[ "$variant" != systemd ] || packages=$packages,systemd,systemd-sysv,dbus
# Subtrees of the kernel's modules that no emulated host can use.
unused="sound drivers/gpu drivers/media drivers/infiniband drivers/staging drivers/net/ethernet drivers/net/wireless
drivers/net/usb drivers/net/can drivers/net/phy drivers/usb drivers/scsi drivers/ata drivers/iio drivers/hid drivers/input
drivers/hwmon drivers/mtd drivers/bluetooth drivers/isdn drivers/platform drivers/edac drivers/leds drivers/power drivers/rtc
drivers/comedi drivers/mfd drivers/i2c drivers/mmc drivers/nvme drivers/target drivers/thunderbolt drivers/firewire drivers/accel
net/bluetooth net/wireless net/mac80211 net/sctp net/ceph net/nfc net/tipc net/can net/mac802154 net/ieee802154
fs/xfs fs/btrfs fs/ocfs2 fs/gfs2 fs/nfs fs/nfsd fs/ceph fs/smb fs/jfs fs/f2fs fs/bcachefs fs/reiserfs fs/udf fs/ubifs fs/orangefs"
# What the initramfs loads to reach the root disk.
early="virtio_pci virtio_blk ext4"

inputs="$here/build.sh $here/rig-init $here/initramfs-init"
[ "$variant" != systemd ] || inputs="$inputs $here/systemd-units"
# shellcheck disable=SC2086 # one argument a file
begin "$(cat $inputs | digest)"
work=$partial
mkdir -p "$work/kernel" "$work/initramfs/bin"

newest_kernel() {
    apt-cache pkgnames linux-image-6.12 | grep -E '^linux-image-6\.12\.[0-9]+\+deb12-amd64$' | sort -V | tail -n 1
}
kernel=$(newest_kernel)
if [ -z "$kernel" ]; then
    apt-get update -q -o DPkg::Lock::Timeout=300 >&2
    kernel=$(newest_kernel)
fi
[ -n "$kernel" ] || { say "Debian 12's archive offers no linux-image-6.12.*+deb12-amd64; are its security updates in the package sources?"; exit 1; }
release=${kernel#linux-image-}

say "fetching $kernel"
(cd "$work/kernel" && apt-get download -q -o APT::Sandbox::User=root "$kernel" >&2)
dpkg-deb -x "$work"/kernel/*.deb "$work/kernel/tree"
modules=$work/kernel/tree/lib/modules/$release
[ -d "$modules" ] || modules=$work/kernel/tree/usr/lib/modules/$release
for folder in $unused; do
    rm -rf "${modules:?}/kernel/$folder"
done

# The machine's own Debian sources: whatever mirror it is set to use.
sources=
for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ -s "$file" ] && sources="$sources $file"
done
say "installing Debian packages into the root ($packages)"
# shellcheck disable=SC2086 # one argument a file
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    bookworm "$work/root" $sources >&2

mkdir -p "$work/root/lib/modules" "$work/root/etc/kvmlet" "$work/root/opt/rig" "$work/root/data"
mv "$modules" "$work/root/lib/modules/$release"
depmod -b "$work/root" "$release"
install -m 0755 "$here/rig-init" "$work/root/sbin/rig-init"
rm -f "$work/root/etc/resolv.conf" "$work/root/etc/hostname"
[ "$variant" != systemd ] || "$here/systemd-units" "$work/root"
mv "$work"/kernel/tree/boot/vmlinuz-* "$work/vmlinuz"

say "writing the initramfs and the root disk"
install -m 0755 "$work/root/bin/busybox" "$work/initramfs/bin/busybox"
install -m 0755 "$here/initramfs-init" "$work/initramfs/init"
mkdir "$work/initramfs/modules" "$work/initramfs/proc" "$work/initramfs/dev" "$work/initramfs/root"
# One file a line, dependencies first, in the order to load them.
for module in $early; do
    modprobe -d "$work/root" -S "$release" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/early"
while read -r file; do
    case $file in
    *.xz) xz -dc "$file" >"$work/initramfs/modules/$(basename "$file" .xz)" ;; # the kernel itself unpacks none
    *) cp "$file" "$work/initramfs/modules/" ;;
    esac
    basename "$file" .xz
done <"$work/early" >"$work/initramfs/modules/order"
(cd "$work/initramfs" && find . | cpio --quiet -o -H newc) >"$work/initramfs.cpio"

truncate -s 12G "$work/root.ext4"
mkfs.ext4 -q -F -O verity -E lazy_itable_init=1,lazy_journal_init=1 -m 0 -d "$work/root" "$work/root.ext4"
rm -rf "$work/root" "$work/kernel" "$work/initramfs" "$work/early"
finish "kernel $release"

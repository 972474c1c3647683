#!/bin/sh
# Builds the QEMU that the host that counts runs on (`-icount`), into the cache, by hash of its inputs: the source of the
# installed Debian package, with one mend.
#
# What an interrupt injected by VMRUN leaves behind: QEMU delivers it at once, but keeps its vector as the exception to be
# delivered next (helper_vmrun, SVM_EVTINJ_TYPE_INTR). Most often something else takes that place before it is looked at.
# Where the processor leaves its loop first, as it does whenever `-icount` has counted down to a timer, the guest gets the
# interrupt a second time, whether it takes interrupts then or not: in a handler that holds a lock it waits for ever.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=qemu
. "$here/../../cached.sh"
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive

packages="gcc make ninja-build pkg-config python3-venv libglib2.0-dev libfdt-dev libattr1-dev libcap-ng-dev zlib1g-dev xz-utils"
helper=target/i386/tcg/system/svm_helper.c

# shellcheck disable=SC2016 # dpkg's own variables
version=$(dpkg-query -W -f '${source:Upstream-Version}' qemu-system-x86)
begin "$({ echo "$version"; cat "$here/build.sh"; } | digest)"

missing=$(for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || echo "$package"; done)
# shellcheck disable=SC2086 # one argument a package
[ -z "$missing" ] || {
    apt-get -q update >&2
    apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 install $missing >&2
}

mkdir "$partial/source"
cd "$partial/source"
say "fetching the source of QEMU $version"
# shellcheck disable=SC2016 # apt's own variables
apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
    awk '$2 !~ /-/ { print $1, $2; exit }' |
    { read -r mirror release
      echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release-backports main"
    } >sources.list
from="-o Dir::Etc::sourcelist=$PWD/sources.list"
# shellcheck disable=SC2086 # two words
apt-get $from -o APT::Get::List-Cleanup=0 -q update >&2
# Without Debian's own changes: none of them is of what is built here.
# shellcheck disable=SC2086 # two words
apt-get $from -o APT::Sandbox::User=root -q --download-only --tar-only source "qemu" >&2
tar xf qemu_"$version".orig.tar.xz --strip-components=1

sed -i 's/do_interrupt_x86_hardirq(env, vector, 1);/&\n            cs->exception_index = -1;/' "$helper"
grep -q 'exception_index = -1;' "$helper" || { say "$helper is not as expected"; exit 1; }
# Firmware that no x86 host needs, and that Debian's source lacks.
sed -i 's/^if unpack_edk2_blobs/if false/' pc-bios/meson.build

say "building"
python3 -m venv tools
tools/bin/pip -q install meson==1.12.1 pycotap==1.3.1 >&2
mkdir build
(
    cd build
    PATH=$PWD/../tools/bin:$PATH ../configure --target-list=x86_64-softmmu --without-default-features --enable-system --enable-tcg \
        --enable-virtfs --enable-attr --enable-cap-ng --disable-docs --disable-install-blobs \
        --firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu >configure.log 2>&1 || { tail -n 20 configure.log >&2; exit 1; }
    ninja qemu-system-x86_64 >ninja.log 2>&1 || { tail -n 20 ninja.log >&2; exit 1; }
)
strip -o "$partial/qemu-system-x86_64" build/qemu-system-x86_64
cd "$partial"
rm -r source
finish

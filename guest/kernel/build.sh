#!/bin/bash
# Builds the guest kernel from Debian's linux-source and keeps it by the hash of its inputs. No arguments.
# Last line of stdout: the directory with vmlinux (stripped ELF with a PVH entry), bzImage and config. All else: stderr.
set -euo pipefail

source_package=linux-source-6.12
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${KVMLET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvmlet}

say() { printf 'kernel: %s\n' "$*" >&2; }

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

# What a build of an earlier package release left in the cache stays usable: only a missing package is installed.
need() {
    local missing=() package
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    ((${#missing[@]} == 0)) && return
    say "installing ${missing[*]}"
    local install=(apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}")
    DEBIAN_FRONTEND=noninteractive "${install[@]}" >&2 || {
        apt-get update >&2
        DEBIAN_FRONTEND=noninteractive "${install[@]}" >&2
    }
}

build() {
    local work=$1 result=$2
    need flex bison libelf-dev libssl-dev bc gcc make xz-utils cpio rsync python3 perl
    say "unpacking $source_package $version"
    mkdir -p "$work/source" "$work/build" "$result"
    tar -xf "/usr/src/$source_package.tar.xz" -C "$work/source" --strip-components=1

    # The same inputs give the same bytes.
    export KBUILD_BUILD_USER=kvmlet KBUILD_BUILD_HOST=kvmlet KBUILD_BUILD_VERSION=1
    KBUILD_BUILD_TIMESTAMP=$(TZ=UTC date -d "@$(stat -c %Y "/usr/src/$source_package.tar.xz")" -u)
    export KBUILD_BUILD_TIMESTAMP

    local make=(make -s -C "$work/source" "O=$work/build")
    "${make[@]}" "KCONFIG_ALLCONFIG=$here/config" allnoconfig >&2
    python3 "$here/check-config.py" "$here/config" "$work/build/.config" >&2 || {
        say "these wishes of guest/kernel/config do not stand in the final .config"
        exit 1
    }

    say "compiling (several minutes on two cores)"
    "${make[@]}" -j"$(nproc)" vmlinux bzImage >"$work/log" 2>&1 || {
        tail -n 40 "$work/log" >&2
        exit 1
    }
    strip -s -o "$result/vmlinux" "$work/build/vmlinux"
    # Owner Xen, type 18: the 32-bit PVH entry.
    LC_ALL=C readelf -nW "$result/vmlinux" | grep -Eq 'Xen.*0x00000012' || {
        say "the stripped vmlinux has no PVH note"
        exit 1
    }
    cp "$work/build/arch/x86/boot/bzImage" "$work/build/.config" "$result/"
    mv "$result/.config" "$result/config"
}

need "$source_package"
version=$(dpkg-query -W -f '${Version}' "$source_package")
hash=$({ cat "$here/config" "$here/build.sh" "$here/check-config.py" && echo "$version"; } | sha256sum | cut -c1-16)
directory=$cache/kernel-$hash

if [[ ! -e $directory/vmlinux ]]; then
    mkdir -p "$cache"
    # Two builds at once would only be slower; the second finds the first one's result.
    exec 9>"$cache/kernel.lock"
    flock 9
    if [[ ! -e $directory/vmlinux ]]; then
        work=$(mktemp -d "$cache/kernel-build.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        started=$SECONDS
        build "$work" "$work/result"
        rm -rf "$directory"
        mv "$work/result" "$directory"
        say "built in $((SECONDS - started)) s, vmlinux $(stat -c %s "$directory/vmlinux") bytes"
    fi
fi
echo "$directory"

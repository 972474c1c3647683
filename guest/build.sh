#!/bin/bash
# Puts together what a machine boots: the kernel of guest/kernel/build.sh and an initramfs around a static agent.
# Usage: build.sh AGENT_BINARY [OUTDIR]. Last line of stdout: the directory with vmlinux and initramfs.cpio (OUTDIR when
# given, else one in the cache by the hash of both). All else: stderr.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${KVMLET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvmlet}

if (($# < 1 || $# > 2)); then
    echo "usage: $0 AGENT_BINARY [OUTDIR]" >&2
    exit 2
fi
agent=$1

# PID 1 finds no interpreter and no library in the initramfs.
if LC_ALL=C readelf -lW "$agent" | grep -q INTERP; then
    echo "guest: $agent is not static: build it with RUSTFLAGS='-C target-feature=+crt-static'" >&2
    exit 1
fi

kernel=$("$here/kernel/build.sh" | tail -n 1)
hash=$({ basename "$kernel" && cat "$here/initramfs.py" "$agent"; } | sha256sum | cut -c1-16)
directory=${2:-$cache/guest-$hash}

# Whoever builds the same at once writes the same bytes, and each rename is whole.
mkdir -p "$directory"
for file in vmlinux initramfs.cpio; do
    [[ $# -eq 1 && -e $directory/$file ]] && continue
    new=$(mktemp "$directory/.$file.XXXXXX")
    case $file in
        vmlinux) cp --reflink=auto "$kernel/vmlinux" "$new" ;;
        initramfs.cpio) python3 "$here/initramfs.py" "$agent" "$new" ;;
    esac
    chmod 0644 "$new"
    mv "$new" "$directory/$file"
done
echo "guest: vmlinux $(stat -c %s "$directory/vmlinux") bytes, initramfs $(stat -c %s "$directory/initramfs.cpio") bytes" >&2
realpath "$directory"

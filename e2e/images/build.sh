#!/bin/sh
# Makes the test images and the registry's storage into the cache, by hash of
# the files of this folder and of the programs in images of Kubernetes' own, which
# are in the folder that controlplane/specs/build.sh made, the argument. Progress goes to stderr; the last line of stdout is
# the folder of the result:
#   layout/<repository>/   an OCI image layout each, for skopeo, umoci, benches
#   public/ private/       storage folders, served by registry.sh
#   docker-registry        the registry program of Debian's package
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${KVMLET_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kvmlet}

say() { printf 'images: %s\n' "$*" >&2; }

programs=${1:?name the folder with agnhost, pause and nnp}
cd "$here"
inputs=$({ dpkg --print-architecture; cat ./*.py build.sh; (cd "$programs" && cat agnhost localhost.* pause nnp); } | sha256sum | cut -c1-16)
out=$cache/images-$inputs
if [ -e "$out/.complete" ]; then
    say "cached"
    echo "$out"
    exit 0
fi
for tool in python3 zstd dpkg-deb apt-get; do
    command -v "$tool" >/dev/null || { say "no '$tool' found: install the packages named in $here/packages"; exit 1; }
done

# A machine fresh from its image may never have fetched the lists of packages.
apt-cache show docker-registry >/dev/null 2>&1 || apt-get update -qq >&2

mkdir -p "$cache"
exec 9>"$out.lock"
flock 9 # a second caller waits for the first one's result
if [ ! -e "$out/.complete" ]; then
    started=$(date +%s)
    rm -rf "$out.partial" "$out"
    mkdir "$out.partial"
    PYTHONDONTWRITEBYTECODE=1 python3 make.py "$out.partial" "$programs" >&2
    touch "$out.partial/.complete"
    mv "$out.partial" "$out"
    say "made in $(($(date +%s) - started)) s, $(du -sh "$out" | cut -f1)"
fi
echo "$out"

#!/bin/sh
# Makes the test images and the registry's storage into the cache, by hash of
# the files of this folder and of the programs that it puts into images. The result is
#   layout/<repository>/   an OCI image layout each, for skopeo, umoci, benches
#   public/ private/       storage folders, served by registry.sh
#   docker-registry        the registry program of Debian's package
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=images
. "$here/../cached.sh"

programs=$("$here/../controlplane/programs.sh")
cd "$here"
for tool in python3 zstd dpkg-deb apt-get; do
    command -v "$tool" >/dev/null || { say "no '$tool' found: install the packages named in $here/packages"; exit 1; }
done
begin "$({ dpkg --print-architecture; cat ./*.py build.sh; (cd "$programs" && cat agnhost localhost.* pause nnp); } | digest)"

# A machine fresh from its image may never have fetched the lists of packages.
apt-cache show docker-registry >/dev/null 2>&1 || apt-get update -qq >&2
PYTHONDONTWRITEBYTECODE=1 python3 make.py "$partial" "$programs" >&2
finish "$(du -sh "$partial" | cut -f1)"

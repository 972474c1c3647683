#!/bin/sh
# registry.sh IMAGES public|private ADDRESS:PORT
# Becomes a real registry (Debian's docker-registry, plain HTTP) on that address,
# in the foreground, until it is ended. IMAGES is the folder that build.sh made
# complete; both serve it read-only: any number may run, starting is quick, nothing is pushed.
#   public   everybody: library/… and bad/…
#   private  user `puller`, password `let-me-in`: private/busybox
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
if [ $# -ne 3 ]; then
    echo "usage: registry.sh IMAGES public|private ADDRESS:PORT" >&2
    exit 2
fi
images=$1
shift
case $1 in public | private) ;; *)
    echo "registry: '$1' is neither public nor private" >&2
    exit 2
    ;;
esac
export REGISTRY_HTTP_ADDR="$2" REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="$images/$1"
if [ "$1" = private ]; then
    export REGISTRY_AUTH=htpasswd REGISTRY_AUTH_HTPASSWD_REALM=kvmlet REGISTRY_AUTH_HTPASSWD_PATH="$here/htpasswd"
fi
exec "$images/docker-registry" serve "$here/registry.yml"

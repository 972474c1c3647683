#!/bin/sh
# Builds Kubernetes' own specifications (e2e.test) and what their images hold
# (agnhost and its certificate, nnp, pause) into the cache, by hash of their
# inputs: the same modules as the control plane's. Progress goes to stderr; the
# last line of stdout is the folder of the result.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${KVMLET_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kvmlet}
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

say() { printf 'specifications: %s\n' "$*" >&2; }

for tool in go cc; do
    command -v $tool >/dev/null || { say "no '$tool' found: Go 1.26 or later and a C compiler are needed"; exit 1; }
done
cd "$here/.."
inputs=$({ go env GOVERSION GOARCH; cat go.mod go.sum specs/*; } | sha256sum | cut -c1-16)
out=$cache/specs-$inputs
if [ -e "$out/.complete" ]; then
    say "cached"
    echo "$out"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$out.lock"
flock 9 # a second caller waits for the first one's result
if [ ! -e "$out/.complete" ]; then
    kubernetes=k8s.io/kubernetes
    version=$(go list -m -f '{{.Version}}' $kubernetes)
    started=$(date +%s)
    say "building those of Kubernetes $version (some minutes the first time)"
    rm -rf "$out.partial" "$out"
    mkdir "$out.partial"
    build="-trimpath -buildvcs=false"
    # shellcheck disable=SC2086 # flags are words
    {
        go test -c $build -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" -o "$out.partial/e2e.test" ./specs >&2
        go build $build -ldflags '-s -w' -o "$out.partial/agnhost" $kubernetes/test/images/agnhost >&2
        go build $build -ldflags '-s -w' -o "$out.partial/nnp" $kubernetes/test/images/nonewprivs >&2
    }
    sources=$(go list -m -f '{{.Dir}}' $kubernetes)
    cc -Os -static -o "$out.partial/pause" "$sources/build/pause/linux/pause.c"
    install -m 0644 "$sources/test/images/agnhost/porter/localhost.crt" "$sources/test/images/agnhost/porter/localhost.key" "$out.partial"
    touch "$out.partial/.complete"
    mv "$out.partial" "$out"
    say "built in $(($(date +%s) - started)) s"
fi
echo "$out"

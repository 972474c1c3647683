#!/bin/sh
# Builds the control plane (etcd, API server, controller manager, scheduler,
# kube-proxy, kubectl, metrics-server: one program) into the cache, by hash of its inputs.
# Progress goes to stderr; the last line of stdout is the folder of the result.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${KVMLET_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kvmlet}
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

say() { printf 'controlplane: %s\n' "$*" >&2; }

command -v go >/dev/null || { say "no 'go' found: Go 1.26 or later is needed to build the control plane"; exit 1; }
cd "$here"
inputs=$({ go env GOVERSION GOARCH; cat go.mod go.sum ./*.go build.sh; } | sha256sum | cut -c1-16)
out=$cache/controlplane-$inputs
if [ -e "$out/.complete" ]; then
    say "cached"
    echo "$out"
    exit 0
fi

mkdir -p "$cache"
exec 9>"$out.lock"
flock 9 # a second caller waits for the first one's result
if [ ! -e "$out/.complete" ]; then
    version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
    minor=${version#v1.}
    minor=${minor%%.*}
    ldflags='-s -w'
    # kubectl refuses a server version that it cannot parse, so set both copies.
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        ldflags="$ldflags -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
        ldflags="$ldflags -X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
    done

    started=$(date +%s)
    say "building Kubernetes $version with $(go env GOVERSION) (some minutes the first time)"
    rm -rf "$out.partial" "$out"
    mkdir "$out.partial"
    go build -trimpath -buildvcs=false -ldflags "$ldflags" -o "$out.partial/controlplane" . >&2
    for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl metrics-server; do
        ln -s controlplane "$out.partial/$name"
    done
    touch "$out.partial/.complete"
    mv "$out.partial" "$out"
    say "built in $(($(date +%s) - started)) s"
fi
echo "$out"

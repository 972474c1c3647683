#!/bin/sh
# Builds the control plane (etcd, API server, controller manager, scheduler,
# kube-proxy, kubectl, metrics-server: one program) into the cache, by hash of its inputs.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=controlplane
. "$here/../cached.sh"
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

command -v go >/dev/null || { say "no 'go' found: Go 1.26 or later is needed to build the control plane"; exit 1; }
cd "$here"
begin "$({ go env GOVERSION GOARCH; cat go.mod go.sum ./*.go build.sh; } | digest)"

version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
minor=${minor%%.*}
ldflags='-s -w'
# kubectl refuses a server version that it cannot parse, so set both copies.
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    ldflags="$ldflags -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
    ldflags="$ldflags -X $package.gitTreeState=clean -X $package.buildDate=1970-01-01T00:00:00Z"
done
say "building Kubernetes $version with $(go env GOVERSION) (some minutes the first time)"
go build -trimpath -buildvcs=false -ldflags "$ldflags" -o "$partial/controlplane" . >&2
for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl metrics-server; do
    ln -s controlplane "$partial/$name"
done
finish

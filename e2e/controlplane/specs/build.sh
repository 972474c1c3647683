#!/bin/sh
# Builds Kubernetes' own specifications (e2e.test), of the control plane's modules,
# into the cache, by hash of their inputs.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=specs
. "$here/../../cached.sh"
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

command -v go >/dev/null || { say "no 'go' found: Go 1.26 or later is needed"; exit 1; }
cd "$here/.."
begin "$({ go env GOVERSION GOARCH; cat go.mod go.sum specs/*; } | digest)"

version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
say "building those of Kubernetes $version (some minutes the first time)"
ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version"
go test -c -trimpath -buildvcs=false -ldflags "$ldflags" -o "$partial/e2e.test" ./specs >&2
finish

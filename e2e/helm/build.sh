#!/bin/sh
# Builds helm, of its Go module, into the cache, by hash of its inputs.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=helm
. "$here/../cached.sh"
version=v4.3.1
export CGO_ENABLED=0 GOFLAGS=-mod=mod GOWORK=off

command -v go >/dev/null || { say "no 'go' found: Go 1.26 or later is needed to build helm"; exit 1; }
begin "$({ go env GOVERSION GOARCH; cat "$here/build.sh"; } | digest)"
say "building helm $version with $(go env GOVERSION) (some minutes the first time)"
GOBIN=$partial go install -trimpath -ldflags='-s -w' "helm.sh/helm/v4/cmd/helm@$version" >&2
finish

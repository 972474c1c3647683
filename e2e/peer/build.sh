#!/bin/sh
# Builds the node that the bench compares the daemon with (virtual-kubelet, a provider that runs nothing) into the cache, by hash of its inputs.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=peer
. "$here/../cached.sh"
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

command -v go >/dev/null || { say "no 'go' found: Go 1.26 or later is needed to build the peer"; exit 1; }
cd "$here"
begin "$({ go env GOVERSION GOARCH; cat go.mod go.sum ./*.go build.sh; } | digest)"
say "building virtual-kubelet with $(go env GOVERSION)"
go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$partial/peer" . >&2
finish

#!/bin/sh
# Builds an OpenTelemetry collector, of its Go modules, into the cache, by hash of its inputs.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=collector
. "$here/../cached.sh"
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

command -v go >/dev/null || { say "no 'go' found: Go 1.26 or later is needed to build the collector"; exit 1; }
cd "$here"
begin "$({ go env GOVERSION GOARCH; cat go.mod go.sum ./*.go build.sh; } | digest)"
say "building the OpenTelemetry collector with $(go env GOVERSION) (some minutes the first time)"
go build -trimpath -buildvcs=false -ldflags='-s -w' -o "$partial/collector" . >&2
finish

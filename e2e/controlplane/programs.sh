#!/bin/sh
# Builds what images of Kubernetes' specifications hold besides Debian's files
# (agnhost and its certificate, nnp, pause), of the control plane's modules, into
# the cache, by hash of their inputs.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=programs
. "$here/../cached.sh"
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

for tool in go cc; do
    command -v $tool >/dev/null || { say "no '$tool' found: Go 1.26 or later and a C compiler are needed"; exit 1; }
done
cd "$here"
begin "$({ go env GOVERSION GOARCH; cat go.mod go.sum programs.sh; } | digest)"

kubernetes=k8s.io/kubernetes
say "building agnhost, nnp and pause"
for program in agnhost:agnhost nnp:nonewprivs; do
    go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$partial/${program%:*}" "$kubernetes/test/images/${program#*:}" >&2
done
sources=$(go list -m -f '{{.Dir}}' $kubernetes)
cc -Os -static -o "$partial/pause" "$sources/build/pause/linux/pause.c"
install -m 0644 "$sources/test/images/agnhost/porter/localhost.crt" "$sources/test/images/agnhost/porter/localhost.key" "$partial"
finish

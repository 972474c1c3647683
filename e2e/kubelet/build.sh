#!/bin/sh
# Builds a real kubelet, of the control plane's version, and containerd for it, of their Go modules, into the cache, by hash of their inputs;
# runc is Debian's, out of its package.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=kubelet
. "$here/../cached.sh"
containerd=v2.4.2
export CGO_ENABLED=0 GOWORK=off

command -v go >/dev/null || { say "no 'go' found: Go 1.26 or later is needed to build the kubelet"; exit 1; }
cd "$here"
begin "$({ go env GOVERSION GOARCH; cat go.mod go.sum build.sh /etc/debian_version; } | digest)"

version=$(go list -mod=readonly -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
minor=${minor%%.*}
package=k8s.io/component-base/version
ldflags="-s -w -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
say "building the kubelet $version with $(go env GOVERSION) (some minutes the first time)"
go build -mod=readonly -trimpath -buildvcs=false -ldflags "$ldflags" -o "$partial/kubelet" k8s.io/kubernetes/cmd/kubelet >&2
say "building containerd $containerd"
for program in containerd containerd-shim-runc-v2; do
    GOBIN=$partial go install -mod=mod -trimpath -ldflags='-s -w' "github.com/containerd/containerd/v2/cmd/$program@$containerd" >&2
done
cd "$partial"
# As _apt, which may not write here, apt warns and does it as root.
fetch() { apt-get -q -o APT::Sandbox::User=root download runc >&2; }
# The package lists may be old or absent.
fetch || { apt-get -q update >&2 && fetch; }
dpkg-deb -x runc_*.deb all
mv all/usr/sbin/runc .
rm -r all runc_*.deb
finish "kubelet $version, containerd $containerd"

#!/bin/sh
# Debian's Prometheus and promtool in the cache: out of their package, which is not installed, so that no service of it is either.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
kind=prometheus
. "$here/../cached.sh"

begin "$({ cat "$here/fetch.sh" /etc/debian_version; dpkg --print-architecture; } | digest)"
cd "$partial"
# As _apt, which may not write here, apt warns and does it as root.
fetch() { apt-get -q -o APT::Sandbox::User=root download prometheus >&2; }
# The package lists may be old or absent.
fetch || { apt-get -q update >&2 && fetch; }
dpkg-deb -x prometheus_*.deb all
mv all/usr/bin/prometheus all/usr/bin/promtool .
rm -r all prometheus_*.deb
finish "$(./promtool --version 2>&1 | head -n 1)"

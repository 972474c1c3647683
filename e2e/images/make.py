"""Makes every image into a folder: `make.py OUT PROGRAMS`. Called by build.sh.

Owns which Debian packages each image is made of.
"""

import sys
import tempfile
import time
from pathlib import Path

import bad
import debian
import good
import large
import specs

BASE = ["base-files", "bash", "dash", "coreutils", "grep", "sed", "libc-bin", "hostname"]
COMPILER = ["gcc", "g++", "make", "python3", "binutils"]


def main(out, programs):
    """Build each image and say how long it took."""

    def timed(name, work, *args):
        started = time.monotonic()
        result = work(*args)
        print(f"images: {name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        return result

    with tempfile.TemporaryDirectory(prefix="kvmlet-debs-") as folder:

        def fetch(name, packages):
            return timed(f"download for {name}", debian.download, packages, Path(folder) / name)

        registry = fetch("registry", ["docker-registry"])
        program = next(deb for deb in registry if deb.name.startswith("docker-registry_"))
        (out / "docker-registry").write_bytes(debian.one_file(program, "./usr/bin/docker-registry"))
        (out / "docker-registry").chmod(0o755)
        shell = fetch("busybox", ["busybox-static"])
        root = good.busybox_layer(next(deb for deb in shell if deb.name.startswith("busybox-static_")))
        timed("busybox", good.busybox, out, root)
        timed("users", good.users, out, root)
        nginx = timed("nginx", good.nginx, out, fetch("nginx", ["nginx-light", *BASE]))
        bash = next(deb for deb in fetch("bash-static", ["bash-static"]) if deb.name.startswith("bash-static_"))
        timed("specs", specs.make, out, programs, root, fetch("specs", specs.TOOLS), bash, nginx)
        timed("odd", large.odd, out, root)
        timed("bad", bad.make, out, root)
        timed("large", large.large, out, fetch("base", BASE), fetch("large", COMPILER))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

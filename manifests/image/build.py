#!/usr/bin/env python3
"""Makes kvmlet's image: `build.py KVMLET GUEST VERSION OUT`. The last line of stdout is its digest.

KVMLET: the program, with kvmlet-machine beside it; GUEST: the folder of guest/build.sh;
OUT: the OCI layout that is made. With --storage NAME, OUT is a registry's storage
folder that the image is put into, under that name. $IMAGE_LEVEL: how hard gzip
tries, 0 to 9 (6).

In it are the libraries that the programs are linked against, from this machine,
licences, and one folder with programs and guest, named by the digest of its content:
`LC_ALL=C sha256sum * | sha256sum` in that folder says the same (src/install/programs.rs).
Nothing is in it of when, where or by whom it was made: the same inputs give the same bytes.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path[:0] = [str(TOP / "e2e/images"), str(TOP / "e2e/images/own")]

from kvmlet import libraries
from layer import Layer, directory, file, symlink
from store import Repository

SOURCE = "https://github.com/kvmlet/kvmlet"


def programs(kvmlet, guest, version):
    """What a host gets: name, content and mode of each file."""
    return {
        "initramfs.cpio": ((guest / "initramfs.cpio").read_bytes(), 0o644),
        "kvmlet": (kvmlet.read_bytes(), 0o755),
        "kvmlet-machine": (kvmlet.with_name("kvmlet-machine").read_bytes(), 0o755),
        "version": (f"{version}\n".encode(), 0o644),
        "vmlinux": ((guest / "vmlinux").read_bytes(), 0o644),
    }


def digest(files):
    """That of a folder with these files."""
    lines = (f"{hashlib.sha256(files[name][0]).hexdigest()}  {name}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def layer(entries, level):
    """A finished layer of files by their paths, with the folders that they are in."""
    folders = {str(parent) for path in entries for parent in Path(path).parents if parent != Path(".")}
    made = Layer(level=level).add(*(directory(path) for path in sorted(folders)))
    return made.add(*(entries[path] for path in sorted(entries))).finish()


def system(kvmlet):
    """The layer that changes with this machine and the crates, and not with every line of the program."""
    needed = sorted({path for program in (kvmlet, kvmlet.with_name("kvmlet-machine")) for path in libraries(program)})
    entries = {path.lstrip("/"): file(path.lstrip("/"), Path(path).read_bytes(), mode=0o755) for path in needed}
    licences = subprocess.run([sys.executable, TOP / "manifests/deb/licences.py", TOP], stdout=subprocess.PIPE, check=True).stdout
    texts = {"copyright": (TOP / "manifests/deb/copyright").read_bytes(), "licences-of-crates.txt": licences}
    for name, text in texts.items():
        path = f"usr/share/doc/kvmlet/{name}"
        entries[path] = file(path, text)
    return entries


def main():
    """Makes it."""
    parser = argparse.ArgumentParser(description="Makes kvmlet's image.")
    parser.add_argument("--storage", metavar="NAME")
    for name in ("kvmlet", "guest"):
        parser.add_argument(name, type=Path)
    parser.add_argument("version")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    level = int(os.environ.get("IMAGE_LEVEL", "6"))

    files = programs(given.kvmlet, given.guest, given.version)
    folder = f"kvmlet/{digest(files)}"
    own = {f"{folder}/{name}": file(f"{folder}/{name}", content, mode=mode) for name, (content, mode) in files.items()}
    own["usr/bin/kvmlet"] = symlink("usr/bin/kvmlet", f"/{folder}/kvmlet")
    layers = [layer(system(given.kvmlet), level), layer(own, level)]
    labels = {
        "org.opencontainers.image.licenses": "Apache-2.0 AND GPL-2.0-only",
        "org.opencontainers.image.source": SOURCE,
        "org.opencontainers.image.version": given.version,
    }
    config = {"Entrypoint": ["/usr/bin/kvmlet"], "Cmd": ["--help"], "Labels": labels}

    given.out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".image-", dir=given.out.parent))
    try:
        name = given.storage or "kvmlet/kvmlet"
        out = given.out if given.storage else work
        for old in (out / "layout" / name, out / "public/docker/registry/v2/repositories" / name):
            shutil.rmtree(old, ignore_errors=True)
        made = Repository(out, name).image(layers, config, tags=(given.version,))
        if not given.storage:
            shutil.rmtree(given.out, ignore_errors=True)
            os.rename(work / "layout" / name, given.out)
    finally:
        shutil.rmtree(work)
    print(made["digest"])


if __name__ == "__main__":
    main()

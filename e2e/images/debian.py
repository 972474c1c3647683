"""Gives the content of Debian packages as layer entries.

Owns the choice of packages (the host's own apt resolves the closure, as if
nothing were installed) and the merged /usr. Packages are read as tar streams:
nothing is installed or unpacked, no maintainer script runs, no root is needed.
"""

import subprocess
import tarfile
from pathlib import Path

import layer

KINDS = {
    tarfile.REGTYPE: layer.FILE,
    tarfile.AREGTYPE: layer.FILE,
    tarfile.LNKTYPE: layer.HARDLINK,
    tarfile.SYMTYPE: layer.SYMLINK,
    tarfile.DIRTYPE: layer.DIR,
}
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What a container does not read; the licences stay.
DROPPED = ("usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/")
DROPPED_DOC = ("changelog", "NEWS", "README", "TODO", "examples", "BUGS", "AUTHORS")


def download(names, folder):
    """Download packages and all they depend on; return the .deb files in order of name."""
    folder = Path(folder)
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    status = folder / "status"
    status.touch()
    subprocess.run(
        ["apt-get", "install", "--download-only", "-qq", "-y", "--no-install-recommends", "--reinstall"]
        + ["-o", f"Dir::State::status={status}", "-o", f"Dir::Cache::archives={folder}/"]
        + ["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", *names],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    return sorted(folder.glob("*.deb"))


def _merged(path):
    return "usr/" + path if path.split("/", 1)[0] in MERGED else path


def _unwanted(path):
    if path.startswith("usr/share/doc/"):
        return path.rsplit("/", 1)[-1].startswith(DROPPED_DOC) or "/examples/" in path
    return path.startswith(DROPPED)


def entries(debs, seen):
    """Yield the entries of packages, each path once; `seen` carries over to upper layers."""
    if "usr" not in seen:
        seen.update(("usr", "bin", "sbin", "lib", "lib64"))
        yield layer.directory("usr")
        yield from (layer.symlink(top, "usr/" + top) for top in ("bin", "sbin", "lib", "lib64"))
    for deb in debs:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as pipe:
            with tarfile.open(fileobj=pipe.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./").strip("/")
                    if path in ("", "."):
                        continue
                    path = _merged(path)
                    if path in seen or path in MERGED or _unwanted(path) or member.type not in KINDS:
                        continue
                    seen.add(path)
                    kind = KINDS[member.type]
                    yield layer.Entry(
                        path + "/" if kind == layer.DIR else path,
                        kind,
                        member.mode,
                        member.uid,
                        member.gid,
                        archive.extractfile(member).read() if kind == layer.FILE else b"",
                        _merged(member.linkname.removeprefix("./")) if kind == layer.HARDLINK else member.linkname,
                        int(member.mtime),
                    )
        if pipe.returncode:
            raise RuntimeError(f"cannot read {deb}: dpkg-deb ended with {pipe.returncode}")


def one_file(deb, path):
    """The bytes of one file of a package."""
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, check=True).stdout
    return subprocess.run(["tar", "-xO", path], input=content, stdout=subprocess.PIPE, check=True).stdout

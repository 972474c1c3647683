"""Makes the image of the kvmlet program: `kvmlet.py OUT PROGRAM`, into a registry's storage folder.

Owns what is in it: the program and the libraries that it is linked against, from
this machine, with nothing of when or where it was made; the same program and
libraries make the same image. It is not among the images of build.sh, as those
stay when the program changes. The modules of this folder's parent are imported.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from layer import Layer, directory, file
from store import Repository

NAME = "kvmlet/kvmlet"


def libraries(program):
    """The paths that the dynamic linker is looked for and finds libraries at, in order of name."""
    said = subprocess.run(["ldd", program], stdout=subprocess.PIPE, check=True, text=True).stdout
    return sorted(set(re.findall(r"(/\S+) \(0x", said)))


def main(out, program):
    """Puts the image there, in place of an older one."""
    version = subprocess.run([program, "--version"], stdout=subprocess.PIPE, check=True, text=True).stdout.split()[1]
    files = {path.lstrip("/"): Path(path).read_bytes() for path in libraries(program)}
    files["usr/bin/kvmlet"] = program.read_bytes()
    folders = {"etc"} | {str(parent) for path in files for parent in Path(path).parents if parent != Path(".")}
    layer = Layer().add(*(directory(path) for path in sorted(folders)))
    layer.add(*(file(path, files[path], mode=0o755) for path in sorted(files)))
    for old in (out / "layout" / NAME, out / "public/docker/registry/v2/repositories" / NAME):
        shutil.rmtree(old, ignore_errors=True)
    repository = Repository(out, NAME)
    repository.image([layer.finish()], {"Entrypoint": ["/usr/bin/kvmlet"], "User": "65532:65532"}, tags=(version,))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

#!/usr/bin/env python3
"""Prints name, version and licence of each crate that is linked into the program and the guest's agent, and the text of its licence.
Usage: licences.py TOP, the folder of the workspace's Cargo.toml."""
import json
import os
import pathlib
import subprocess
import sys

LINKED = ("kvmlet", "kvmlet-agent")

def metadata(top):
    cargo = os.environ.get("CARGO", "cargo")
    wanted = [cargo, "metadata", "--locked", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"]
    return json.loads(subprocess.run(wanted, cwd=top, check=True, stdout=subprocess.PIPE).stdout)

def linked(data):
    """Of the crates' graph what normal dependencies reach."""
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    todo = [package["id"] for package in data["packages"] if package["name"] in LINKED and package["source"] is None]
    seen = set(todo)
    while todo:
        for dependency in nodes[todo.pop()]["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                todo.append(dependency["pkg"])
    return seen

def main():
    data = metadata(sys.argv[1])
    ids = linked(data)
    crates = [package for package in data["packages"] if package["id"] in ids and package["source"]]
    for crate in sorted(crates, key=lambda crate: (crate["name"], crate["version"])):
        print(f"==== {crate['name']} {crate['version']}: {crate['license'] or 'see below'}\n")
        folder = pathlib.Path(crate["manifest_path"]).parent
        texts = [path for path in folder.iterdir() if path.is_file() and path.name.upper().startswith(("LICEN", "COPYING", "NOTICE"))]
        # The text that all share is Debian's.
        for path in sorted(texts):
            text = path.read_text(errors="replace").strip()
            shared = "Apache License" in text[:200] and "Version 2.0" in text[:200]
            print("/usr/share/common-licenses/Apache-2.0\n" if shared else text + "\n")

main()

"""The images that try an unpacker: large (some 400 MB) and odd (small).

Owns what a real image can hold and a careless unpacker gets wrong. `large` is a
Debian root with a compiler, changed by further layers in the ways that builders
change one; `odd` has the rarer shapes that are legal all the same.
"""

import random
import struct

import debian
from good import PATH, base_tree
from layer import BLOCK, CHAR, FIFO, Entry, Layer, directory, file, hardlink, opaque, symlink, whiteout
from store import Repository

# Version 2 capabilities: permitted and effective CAP_NET_RAW.
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
LONG = "l" * 255
# A path of 120 bytes, and one of about 1,300.
PATH_120 = "srv/long/" + "n" * 111
PATH_1300 = "srv/deep/" + "/".join(f"{number:02}-" + "d" * 97 for number in range(13)) + "/leaf"


def debian_layers(base, compiler):
    """Two layers: a Debian root, and a compiler with all it needs above it."""
    seen, root = set(), Layer()
    for entry in base_tree():
        if entry.path != "usr/":
            seen.add(entry.path.rstrip("/"))
            root.add(entry)
    root.add(*debian.entries(base, seen))
    tools = Layer(level=4).add(*debian.entries(compiler, seen))
    return [root, tools]


def bulk(count, size):
    """Files of which half cannot be compressed: what programs and media look like on the wire."""
    layer, chance = Layer(level=1), random.Random(3)
    layer.add(directory("srv"), directory("srv/bulk"))
    for number in range(count):
        if number % 50 == 0:
            layer.add(directory(f"srv/bulk/{number // 50:03}"))
        half = chance.randbytes(size // 2 + number % 4099)
        layer.add(file(f"srv/bulk/{number // 50:03}/{number:05}", half + bytes(chance.randbytes(64) * (size // 128))))
    layer.add(file("srv/bulk/whole", chance.randbytes(32 << 20)), file("srv/bulk/empty"), file("srv/bulk/zeros", bytes(16 << 20)))
    return layer


def shapes():
    """Links, owners, modes, attributes, names, and something for the next layer to remove."""
    return Layer(level=6).add(
        *(directory(f"srv/{name}") for name in ("links", "owners", "xattrs", "long", "names", "nodes", "gone", "kept", "turns")),
        file("srv/links/first", "one file, three names\n", mode=0o640, uid=7, gid=8),
        hardlink("srv/links/second", "srv/links/first"),
        directory("srv/links/below"),
        hardlink("srv/links/below/third", "srv/links/first"),
        symlink("srv/links/relative", "first"),
        symlink("srv/links/absolute", "/srv/links/first"),
        symlink("srv/links/dangling", "../nowhere"),
        symlink("srv/links/up", "../../../../srv/links/first"),
        symlink("srv/links/loop", "loop"),
        symlink("srv/links/long", "/" + "/".join(["t" * 200] * 10)),
        hardlink("srv/links/symlink-again", "srv/links/relative"),
        file("srv/owners/setuid", "s", mode=0o4755),
        file("srv/owners/setgid", "s", mode=0o2755, uid=1, gid=1),
        file("srv/owners/none", "s", mode=0),
        file("srv/owners/large-uid", "s", uid=4_000_000_000, gid=3_999_999_999),
        directory("srv/owners/sticky", mode=0o1777),
        directory("srv/owners/setgid-folder", mode=0o2770, uid=1000, gid=1000),
        file("srv/owners/old", "s", mtime=1),
        file("srv/owners/before-1970", "s", mtime=-86400),
        file("srv/owners/fraction", "s", mtime=1_700_000_000.25),
        file("srv/owners/after-2038", "s", mtime=4_200_000_000),
        file("srv/xattrs/capability", "#!/bin/sh\n", mode=0o755, xattrs={"security.capability": NET_RAW}),
        file("srv/xattrs/user", "x", xattrs={"user.note": b"text", "user.binary": bytes(range(256))}),
        file("srv/xattrs/large", "x", xattrs={"user.large": bytes(range(1, 201)) * 15}),
        directory("srv/xattrs/folder", xattrs={"user.folder": b"yes", "trusted.note": b"kept by the kernel for root"}),
        file(PATH_120, "longer than the old header's field\n"),
        file("srv/long/" + LONG, "a name of 255 bytes\n"),
        file(PATH_1300, "deep\n"),
        symlink("srv/long/link-to-deep", "/" + PATH_1300),
        hardlink("srv/long/deep-again", PATH_1300),
        *(file("srv/names/" + name, name) for name in ("with space", "tab\there", "new\nline", "ünïcödé", "-dash", "back\\slash", "a=b", "..dots")),
        Entry("srv/nodes/null", CHAR, 0o666, device=(1, 3)),
        Entry("srv/nodes/loop", BLOCK, 0o660, gid=6, device=(7, 0)),
        Entry("srv/nodes/fifo", FIFO, 0o622),
        file("srv/gone/file", "removed by a whiteout above\n"),
        directory("srv/gone/folder"),
        file("srv/gone/folder/inside", "removed with its folder\n"),
        directory("srv/kept/hidden"),
        *(file(f"srv/kept/hidden/{number}", "hidden by an opaque folder above\n") for number in range(20)),
        file("srv/turns/file-to-folder", "f"),
        directory("srv/turns/folder-to-file"),
        file("srv/turns/folder-to-file/inside", "f"),
        file("srv/turns/file-to-symlink", "f"),
        file("srv/turns/content", "below\n", mode=0o600, uid=5),
        directory("srv/turns/mode", mode=0o700),
        file("srv/turns/mode/stays", "a folder's new mode does not empty it\n"),
    )


def changes(compression):
    """Whiteouts, an opaque folder, and things that turn into others."""
    return Layer(compression).add(
        whiteout("srv/gone/file"),
        whiteout("srv/gone/folder"),
        whiteout("srv/bulk/zeros"),
        whiteout("usr/share/doc"),
        directory("srv/kept/hidden", mode=0o750, gid=50),
        opaque("srv/kept/hidden"),
        file("srv/kept/hidden/3", "new, in an opaque folder\n"),
        file("srv/kept/hidden/new", "new, in an opaque folder\n"),
        directory("srv/turns/file-to-folder"),
        file("srv/turns/file-to-folder/inside", "t"),
        file("srv/turns/folder-to-file", "t"),
        symlink("srv/turns/file-to-symlink", "content"),
        file("srv/turns/content", "above\n", mode=0o644, uid=6, xattrs={"user.layer": b"above"}),
        directory("srv/turns/mode", mode=0o755, uid=9),
        # Replaces one name of three: the other two stay together.
        file("srv/links/second", "no longer a link\n"),
    )


def last():
    """A layer in GNU's format: long names as entries of their own, and a path that comes back."""
    return Layer(gnu=True).add(
        directory("srv/gone/folder"),
        file("srv/gone/folder/back", "a folder that was removed, made again\n"),
        file("srv/long/gnu-" + "g" * 200, "its name in an entry of GNU's\n"),
        symlink("srv/long/gnu-link-" + "g" * 150, "/srv/long/" + "x" * 240),
        file("etc/kvmlet-large", "the last layer was applied\n"),
    )


def large(out, base, compiler):
    """library/large: tag latest, and tag gzip for tools that know no zstd."""
    lower = [layer.finish() for layer in (*debian_layers(base, compiler), bulk(1500, 96 << 10), shapes())]
    upper = last().finish()
    config = {"Cmd": ["bash", "-c", "cat /etc/kvmlet-large; gcc --version"], "Env": [PATH]}
    repository = Repository(out, "library/large")
    for compression, tag in (("zstd", "latest"), ("gzip", "gzip")):
        repository.image([*lower, changes(compression).finish(), upper], config, tags=(tag,))


def odd(out, root):
    """library/odd: legal, seen in the wild, and easily got wrong."""
    first = Layer().add(
        directory("./dotted"),
        file("./dotted/name", "a name that starts with ./\n"),
        file("no/parent/entry", "its folders have no entry of their own\n"),
        file("twice", "the first of two entries\n", mode=0o600),
        file("twice", "the second of two entries\n", mode=0o644),
        directory("late"),
        file("late/file", "its folder is given again with another mode\n"),
        directory("late", mode=0o700, uid=3),
        directory("links"),
        file("links/base", "a file with a name in the layer above\n"),
        directory("real"),
        file("real/kept", "kept\n"),
        symlink("alias", "real"),
        directory("mixed"),
        file("mixed/below", "hidden\n"),
    )
    second = Layer().add(
        hardlink("links/from-above", "links/base"),
        file("alias/through", "written through a link that stays inside the image\n"),
        whiteout("never/was/there"),
        file("mixed/before", "given before the mark of its opaque folder, and kept\n"),
        opaque("mixed"),
        file("mixed/after", "given after it\n"),
        whiteout("links/base"),
    )
    empty = Layer()
    plain = Layer(compression="none").add(file("uncompressed", "in a layer without compression\n"))
    layers = [root, *(layer.finish() for layer in (first, second, empty, plain))]
    # The same layer twice: one diffID at two places of the stack.
    Repository(out, "library/odd").image([*layers, layers[-1]], {"Cmd": ["sh"], "Env": [PATH]}, tags=("latest",))

"""The images that must be refused, or must fail in a stated way.

Owns one repository `bad/<what>` each, tag latest, wrong in one respect only.
None is dangerous to whoever unpacks with care: escapes aim at a file named
kvmlet-escaped and read nothing but a host's name.
"""

import subprocess
import tempfile

from layer import Layer, directory, encode, file, gzip_bomb, hardlink, symlink
from store import OCI, Repository, sha256

SHELL = {"Cmd": ["sh"], "Env": ["PATH=/bin"]}
GZIP = OCI + "layer.v1.tar+gzip"


def escapes():
    """Layers that try to leave the root of the image, or name what is not there."""
    return {
        "dotdot": [file("../../../../../../tmp/kvmlet-escaped", "out\n")],
        "dotdot-inside": [directory("a"), file("a/../../../tmp/kvmlet-escaped", "out\n")],
        "absolute-symlink": [symlink("way", "/tmp"), file("way/kvmlet-escaped", "out\n")],
        "relative-symlink": [symlink("way", "../../../../../../tmp"), file("way/kvmlet-escaped", "out\n")],
        "absolute-hardlink": [hardlink("stolen", "/etc/hostname")],
        "dotdot-hardlink": [hardlink("stolen", "../../../../../../etc/hostname")],
        "symlink-hardlink": [symlink("way", "/etc"), hardlink("stolen", "way/hostname")],
        "whiteout-dotdot": [directory("a"), file("a/.wh...", mode=0o600)],
        "hardlink-to-folder": [directory("a"), hardlink("b", "a")],
        "hardlink-to-nothing": [hardlink("b", "never/there")],
    }


def broken_layers():
    """Layers that are not what their descriptors say."""
    noise, torn = Layer(), Layer()
    noise.raw(b"this is not a tar archive\n" * 400)
    torn.raw(encode(file("etc/torn"), size=1 << 20) + bytes(4096))
    suffix, blob, diff_id = Layer().add(directory("etc"), file("etc/hello", "hello\n" * 10000)).finish()
    return {
        "not-a-tar": noise.finish(trailer=False),
        "not-gzip": (suffix, b"neither gzip nor tar\n" * 100, diff_id),
        "torn-gzip": (suffix, blob[: len(blob) // 2], diff_id),
        "torn-tar": torn.finish(trailer=False),
        "wrong-diffid": (suffix, blob, "sha256:" + "1" * 64),
        "unknown-compression": ("tar+lz4", blob, diff_id),
    }


def zstd_bomb(gibibytes):
    """As gzip_bomb, in zstd. Its diffID is a made-up one: nobody should get as far as to check it."""
    with tempfile.TemporaryFile() as blob:
        with subprocess.Popen(["zstd", "-q", "-3", "-c"], stdin=subprocess.PIPE, stdout=blob) as squeeze:
            squeeze.stdin.write(encode(file("zeros"), size=gibibytes << 30))
            for _ in range(gibibytes * 16):
                squeeze.stdin.write(bytes(64 << 20))
            squeeze.stdin.write(bytes(1024))
        blob.seek(0)
        return "tar+zstd", blob.read(), "sha256:" + "2" * 64


def many_files(count):
    """A layer of very many empty files."""
    layer = Layer(level=1).add(directory("many"))
    for number in range(count):
        layer.raw(encode(file(f"many/{number:07}")))
    return layer.finish()


def dishonest(out, root):
    """Manifests, descriptors and blobs that contradict each other."""
    victim = Layer().add(file("victim", "its blob on the registry is another\n")).finish()
    lie = Repository(out, "bad/wrong-digest")
    # Another "operating system" in gzip's header: it unpacks to the same, only the digest tells.
    lie.blob(victim[1][:9] + bytes([victim[1][9] ^ 3]) + victim[1][10:], GZIP, digest=sha256(victim[1]))
    lie.image([root, victim], SHELL, tags=("latest",))

    def longer(manifest):
        manifest["layers"][-1]["size"] += 7

    def vast(manifest):
        manifest["layers"][-1]["size"] = 1 << 62

    def absent(manifest):
        manifest["layers"][-1]["digest"] = "sha256:" + "3" * 64

    def nonsense(manifest):
        manifest["layers"][-1]["digest"] = "sha256:../../../../tmp/kvmlet-escaped"

    def fewer(manifest):
        manifest["layers"].pop()

    small = Layer().add(file("small", "small\n")).finish()
    changes = {"wrong-size": longer, "vast-size": vast, "missing-layer": absent, "nonsense-digest": nonsense, "fewer-layers": fewer}
    for name, change in changes.items():
        Repository(out, f"bad/{name}").image([root, small], SHELL, tags=("latest",), change=change)
    Repository(out, "bad/config-garbage").image([root], tags=("latest",), raw_config=b'{"architecture": "amd64", "config": [')
    empty = b'{"schemaVersion": 2, "mediaType": "%b", "config": {}, "layers": []}' % (OCI + "manifest.v1+json").encode()
    Repository(out, "bad/empty-manifest").manifest(empty, OCI + "manifest.v1+json", ("latest",))
    # The registry cannot read this one either: it answers 500 every time.
    Repository(out, "bad/registry-error").manifest(b'{"schemaVersion": 2, "layers": 7', OCI + "manifest.v1+json", ("latest",))
    other = Repository(out, "bad/other-architecture")
    arm = other.image([small], SHELL, architecture="arm64")
    other.multi([(arm, {"os": "linux", "architecture": "arm64"}, None)], ("latest",))


def make(out, root):
    """Write all of them; `root` is the busybox layer that most of them start with."""
    for name, entries in escapes().items():
        Repository(out, f"bad/{name}").image([root, Layer().add(*entries).finish()], SHELL, tags=("latest",))
    for name, broken in broken_layers().items():
        Repository(out, f"bad/{name}").image([root, broken], SHELL, tags=("latest",))
    dishonest(out, root)
    for name, bomb in {"bomb": gzip_bomb("zeros", 8), "zstd-bomb": zstd_bomb(16), "many-files": many_files(1_000_000)}.items():
        Repository(out, f"bad/{name}").image([root, bomb], SHELL, tags=("latest",))
    for name, config in {
        "unknown-user": {**SHELL, "User": "ghost"},
        "unknown-group": {**SHELL, "User": "root:ghosts"},
        "no-command": {"Env": SHELL["Env"]},
        "missing-command": {**SHELL, "Cmd": ["/does/not/exist"]},
        "not-executable": {**SHELL, "Cmd": ["/etc/passwd"]},
    }.items():
        Repository(out, f"bad/{name}").image([root], config, tags=("latest",))

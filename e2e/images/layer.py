"""Writes image layers: tar streams with exactly the headers asked for.

Owns the tar encoding (ustar with pax or GNU extensions) and the compression.
It refuses nothing: names with `..`, absolute links and wrong sizes are written
as given, because the tests need layers that no honest tool would make. That,
and binary extended attributes, is why this is not the tarfile module.
"""

import gzip
import hashlib
import io
import subprocess
import zlib
from dataclasses import dataclass, field

FILE, HARDLINK, SYMLINK, CHAR, BLOCK, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
# A fixed time, so that the same inputs give the same digests.
EPOCH = 1_700_000_000


@dataclass
class Entry:
    """One member of a layer."""

    path: str
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    link: str = ""
    mtime: float = EPOCH
    xattrs: dict = field(default_factory=dict)
    device: tuple = (0, 0)


def file(path, data=b"", mode=0o644, **rest):
    """A regular file; text is written as UTF-8."""
    return Entry(path, FILE, mode, data=data.encode() if isinstance(data, str) else data, **rest)


def directory(path, mode=0o755, **rest):
    """A folder, its name ended by a slash as tar does."""
    return Entry(path.rstrip("/") + "/", DIR, mode, **rest)


def symlink(path, target, **rest):
    """A symbolic link."""
    return Entry(path, SYMLINK, 0o777, link=target, **rest)


def hardlink(path, target, mode=0o755, **rest):
    """A second name of a file that the layer, or one below it, has. containerd gives the file the mode of each of its names."""
    return Entry(path, HARDLINK, mode, link=target, **rest)


def whiteout(path):
    """The removal of a path of a lower layer."""
    folder, _, name = path.rpartition("/")
    return file(f"{folder}/.wh.{name}" if folder else f".wh.{name}", mode=0o600)


def opaque(folder):
    """The removal of everything that lower layers have in a folder."""
    return file(f"{folder}/.wh..wh..opq", mode=0o600)


def _number(value, width):
    """Octal when it fits, else GNU's base-256."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return (value + (1 << 8 * width) if value < 0 else value | (1 << (8 * width - 1))).to_bytes(width, "big")


def _header(name, entry, kind, size, link=b""):
    mtime = int(entry.mtime // 1)
    block = bytearray(512)

    def put(offset, content):
        block[offset : offset + len(content)] = content

    put(0, name[:100])
    put(100, _number(entry.mode, 8))
    put(108, _number(entry.uid, 8))
    put(116, _number(entry.gid, 8))
    put(124, _number(size, 12))
    put(136, _number(mtime, 12))
    put(148, b" " * 8)
    put(156, kind)
    put(157, link[:100])
    put(257, b"ustar\x0000")
    put(329, _number(entry.device[0], 8))
    put(337, _number(entry.device[1], 8))
    put(148, b"%06o\0 " % sum(block))
    return bytes(block)


def _padded(content):
    return content + bytes(-len(content) % 512)


def _pax_record(key, value):
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return str(length).encode() + body


def encode(entry, size=None, gnu=False):
    """The header blocks of one entry. `size` overrides the size of its data."""
    name, link = entry.path.encode(), entry.link.encode()
    size = (len(entry.data) if entry.kind == FILE else 0) if size is None else size
    out = b""
    meta = Entry("", mode=0o644)
    if gnu:
        for kind, text in ((b"K", link), (b"L", name)):
            if len(text) > 100:
                out += _header(b"././@LongLink", meta, kind, len(text) + 1) + _padded(text + b"\0")
    else:
        records = b""
        if len(name) > 100:
            records += _pax_record("path", name)
        if len(link) > 100:
            records += _pax_record("linkpath", link)
        if entry.mtime != int(entry.mtime):
            records += _pax_record("mtime", repr(entry.mtime).encode())
        for key, value in sorted(entry.xattrs.items()):
            records += _pax_record("SCHILY.xattr." + key, value)
        if records:
            out += _header(b"PaxHeaders/" + name[-80:], meta, b"x", len(records)) + _padded(records)
    return out + _header(name, entry, entry.kind, size, link)


class Layer:
    """A layer in the making: entries in, one compressed blob and a diffID out."""

    def __init__(self, compression="gzip", gnu=False, level=6):
        self.compression, self.gnu = compression, gnu
        self._plain, self._sink = hashlib.sha256(), io.BytesIO()
        self._gzip = gzip.GzipFile(fileobj=self._sink, mode="wb", compresslevel=level, mtime=0)
        self._tar = io.BytesIO() if compression != "gzip" else None

    def raw(self, content):
        """Bytes that need not be tar."""
        self._plain.update(content)
        (self._tar or self._gzip).write(content)

    def add(self, *entries):
        """Append entries in order."""
        for entry in entries:
            self.raw(encode(entry, gnu=self.gnu))
            if entry.kind == FILE:
                self.raw(_padded(entry.data))
        return self

    def finish(self, trailer=True):
        """(media type suffix, blob, diffID)."""
        if trailer:
            self.raw(bytes(1024))
        diff_id = "sha256:" + self._plain.hexdigest()
        if self.compression == "gzip":
            self._gzip.close()
            return "tar+gzip", self._sink.getvalue(), diff_id
        tar = self._tar.getvalue()
        if self.compression == "zstd":
            run = subprocess.run(["zstd", "-q", "-c", "-9"], input=tar, stdout=subprocess.PIPE, check=True)
            return "tar+zstd", run.stdout, diff_id
        return "tar", tar, diff_id


def gzip_bomb(path, gibibytes):
    """A valid gzip layer of one file of so many GiB of zeros, about 1/1000 of it long.

    A full flush makes the compressed form of a block of zeros independent of
    what precedes it, so one block is compressed once and repeated.
    """
    unit = bytes(64 << 20)
    count = gibibytes * 16
    head = encode(file(path), size=gibibytes << 30)
    plain, crc = hashlib.sha256(head), zlib.crc32(head)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = squeeze.compress(head) + squeeze.flush(zlib.Z_FULL_FLUSH)
    block = squeeze.compress(unit) + squeeze.flush(zlib.Z_FULL_FLUSH)
    end = squeeze.compress(bytes(1024)) + squeeze.flush(zlib.Z_FINISH)
    for _ in range(count):
        plain.update(unit)
        crc = zlib.crc32(unit, crc)
    plain.update(bytes(1024))
    crc = zlib.crc32(bytes(1024), crc)
    length = (len(head) + count * len(unit) + 1024) & 0xFFFFFFFF
    blob = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + start + block * count + end
    return "tar+gzip", blob + crc.to_bytes(4, "little") + length.to_bytes(4, "little"), "sha256:" + plain.hexdigest()

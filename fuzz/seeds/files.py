"""Kernels, and the frames of host and agent."""

from common import long, quad, seed, short


def elf():
    def note(name, kind, description):
        padded = name + b"\0" * (-len(name) % 4)
        return long(len(name)) + long(len(description)) + long(kind) + padded + description + b"\0" * (-len(description) % 4)

    def kernel(segments, content=b"\x90" * 64, machine=62, count=None):
        head = b"\x7fELF\2\1\1".ljust(16, b"\0") + short(2) + short(machine) + long(1) + quad(0x100000) + quad(64) + quad(0)
        head += long(0) + short(64) + short(56) + short(len(segments) if count is None else count) + short(0) * 3
        table = b"".join(long(kind) + long(5) + quad(offset) + quad(at) * 2 + quad(size) + quad(whole) + quad(4) for kind, offset, at, size, whole in segments)
        return (head + table).ljust(0x200, b"\0") + content

    entry = note(b"Xen\0", 18, long(0x100010))
    load, notes = (1, 0x200, 0x100000, 64, 0x1000), (4, 0x240, 0, len(entry), len(entry))
    code = b"\x90" * 64
    seed("elf", "plain", kernel([load, notes], code + entry))
    seed("elf", "entry-of-64-bits", kernel([load, (4, 0x240, 0, 24, 24)], code + note(b"Xen\0", 18, quad(0x100010))))
    seed("elf", "note-behind-others", kernel([load, (4, 0x240, 0, 200, 200)], (code + note(b"GNU\0", 3, b"\1" * 20) + note(b"Xen\0", 17, b"\2\2\2") + entry).ljust(400, b"\0")))
    seed("elf", "two-segments", kernel([load, (1, 0x210, 0x102000, 16, 16), notes], code + entry))
    seed("elf", "overlap", kernel([load, (1, 0x200, 0x100FFF, 16, 16), notes], code + entry))
    seed("elf", "low", kernel([(1, 0x200, 0x8000, 64, 64), load, notes], code + entry))
    seed("elf", "high", kernel([(1, 0x200, 0x1FFFF0, 64, 64), notes], code + entry))
    seed("elf", "top", kernel([(1, 0x200, 0xFFFFFFFFFFFFFFF0, 64, 64), notes], code + entry))
    seed("elf", "more-in-file", kernel([(1, 0x200, 0x100000, 64, 32), notes], code + entry))
    seed("elf", "truncated", kernel([(1, 0x200, 0x100000, 0x10000, 0x10000), notes], code + entry))
    seed("elf", "offset-beyond", kernel([(1, 0xFFFFFFFFFFFFFFF0, 0x100000, 64, 64), notes], code + entry))
    seed("elf", "no-room-for-initramfs", kernel([(1, 0x200, 0x100000, 64, 0xFF000), notes], code + entry))
    seed("elf", "entry-outside", kernel([load, notes], code + note(b"Xen\0", 18, long(0x101000))))
    seed("elf", "no-note", kernel([load], code))
    seed("elf", "note-too-long", kernel([load, (4, 0x240, 0, 16, 16)], code + long(0xFFFFFFFF) * 4))
    seed("elf", "notes-of-gibibytes", kernel([load, (4, 0x240, 0, 1 << 40, 0)], code + entry))
    seed("elf", "many-headers", kernel([load, notes], code + entry, count=64))
    seed("elf", "too-many-headers", kernel([load, notes], code + entry, count=0xFFFF))
    seed("elf", "other-machine", kernel([load, notes], code + entry, machine=183))
    seed("elf", "magic-only", b"\x7fELF")
    seed("elf", "text", b"#!/bin/sh\n")


def bzimage():
    def image(payload=b"\x90" * 0x220, paragraphs=None, sectors=1, version=0x20C, flags=1, place=0x100000, needs=0x1000, top=0x7FFFFFFF):
        head = bytearray(512 * (1 + (sectors or 4)) if sectors < 9 else 1024)
        head[0x1F1] = sectors
        head[0x1F4:0x1F8] = long((len(payload) + 15) // 16 if paragraphs is None else paragraphs)
        head[0x201:0x206] = b"\x66HdrS"
        head[0x206:0x208], head[0x236:0x238] = short(version), short(flags)
        head[0x22C:0x230], head[0x258:0x260], head[0x260:0x264] = long(top), quad(place), long(needs)
        return bytes(head) + payload

    seed("bzimage", "plain", image())
    seed("bzimage", "no-place", image(place=0))
    seed("bzimage", "four-sectors", image(sectors=0))
    seed("bzimage", "cut-paragraph", image(payload=b"\x90" * 0x219))
    seed("bzimage", "signature-behind", image(payload=b"\x90" * 0x240, paragraphs=0x22))
    seed("bzimage", "truncated", image(paragraphs=0x30))
    seed("bzimage", "gibibytes", image(paragraphs=0xFFFFFFFF))
    seed("bzimage", "empty", image(payload=b"", paragraphs=0))
    seed("bzimage", "no-entry", image(payload=b"\x90" * 0x200))
    seed("bzimage", "old", image(version=0x20B))
    seed("bzimage", "only-32-bits", image(flags=0))
    seed("bzimage", "low", image(place=0x90000))
    seed("bzimage", "high", image(place=0x1FFF00))
    seed("bzimage", "top", image(place=0xFFFFFFFFFFFFFF00))
    seed("bzimage", "needs-all", image(needs=0xFFFFFFFF))
    seed("bzimage", "needs-the-initramfs", image(needs=0xFE001))
    seed("bzimage", "initramfs-low", image(top=0x180000))
    seed("bzimage", "initramfs-nowhere", image(top=0x1000))
    seed("bzimage", "sectors-beyond", image(sectors=255))
    seed("bzimage", "nothing", b"")


def snapshot():
    def header(version, length, checksum):
        return b"kvmsnap\n" + long(version) + quad(length) + long(checksum)

    # The checksum of nothing is 0.
    seed("snapshot", "empty", b"")
    seed("snapshot", "header", header(3, 0, 0))
    seed("snapshot", "another-version", header(2, 0, 0))
    seed("snapshot", "cut-short", header(3, 1 << 40, 0)[:20])
    seed("snapshot", "longer-than-it-says", header(3, 3, 0), b"\0" * 9)
    def since(*runs):
        pairs = b"".join(bytes(pair) for pair in runs)
        # Memory of 32 MiB, a checksum, no window, one processor; no processors, clock, interrupt controllers, functions, serial port.
        rest = b"\x80\x80\x80\x10" + b"\x05" + b"\0" + b"\x01" + b"\0" * 6
        return b"\x11" * 16 + b"\x01" + b"\x22" * 16 + bytes([len(runs)]) + pairs + rest

    seed("snapshot", "written-since-another", since((0, 3), (1, 1), (100, 2)))
    seed("snapshot", "written-nothing", since())
    seed("snapshot", "written-none-in-a-run", since((0, 1), (3, 0)))
    seed("snapshot", "lengths-without-end", b"\xff" * 9 + b"\x01", b"\xff" * 40)


def protocol():
    def varint(value):
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes(out) + bytes([value])

    def text(value):
        return varint(len(value)) + value

    def frame(body):
        return long(len(body)) + body

    def stream(name, kind, *bodies, piece=255):
        seed("protocol", name, bytes([kind, piece]), *map(frame, bodies))

    name = text(b"c" * 64)
    hello, request, exec_in, acknowledge, welcome, response, exec_out, record = range(8)
    stream("hello", hello, b"\1\1", b"\1\xff\xff\x03", piece=1)
    sandbox = text(b"pod") + text(b"") + text(b"127.0.0.1 localhost\n") + text(b"") + b"\1" + text(b"eth0") + b"\2\0\0\0\0\1" + varint(1450)
    sandbox += b"\1" + text(b"10.244.1.5/24") + b"\1" + text(b"0.0.0.0/0") + text(b"10.244.1.1") + b"\0"
    files = b"\1" + text(b"a/b") + varint(0o644) + b"\1\0" + text(b"content")
    volumes = b"\3" + text(b"d") + b"\0\0" + text(b"m") + b"\1" + varint(1 << 20) + b"\1\5" + text(b"f") + b"\2" + files + b"\0"
    sandbox += volumes + text(b"scratch") + varint(1 << 60) + b"\1" + text(b"net.ipv4.ip_forward") + text(b"1") + b"\1" + varint(1 << 28)
    process = b"\2" + text(b"sh") + text(b"-c") + b"\1" + text(b"PATH") + text(b"/bin") + text(b"/") + text(b"0:0") + b"\1\7" + b"\1\1"
    process += b"\1" + text(b"CAP_KILL") + b"\1\1" + b"\1" + text(b"RLIMIT_NOFILE") + varint(1024) * 2 + varint(1999)
    container = name + text(b"main") + text(b"img0") + b"\1" + process + b"\1" + text(b"d") + text(b"") + text(b"/data") + b"\0"
    container += varint(1 << 28) + varint(100000) + varint(100) + varint(0) + text(b"/dev/termination-log") + b"\0\0"
    stream("setup", request, b"\0" + sandbox)
    stream("put-volume", request, b"\1" + text(b"f") + files)
    stream("start", request, b"\2" + container)
    stream("signal-list-watch", request, b"\3" + name + b"\x1e\0", b"\4", b"\5\7", b"\6" + name, b"\x08", b"\x09")
    stream("exec", request, b"\7" + name + b"\1" + text(b"ls") + b"\1\1\1\0")
    stream("exec-input", exec_in, b"\0" + text(b"echo\n"), b"\2\x50\x18", b"\1")
    stream("acknowledge", acknowledge, name + b"\7")
    stream("welcome", welcome, b"\1" + text(b"0.1.0") + text(b"6.12"))
    ended = name + b"\1" + varint(274) + varint(18) + b"\1" + varint(1 << 60) * 2 + text(b"killed")
    stream("containers", response, b"\0", b"\1\x2a", b"\2\5\2" + name + b"\0\x11" + varint(1 << 60) + ended, piece=3)
    stream("stats", response, b"\3" + varint(1 << 30) * 2 + b"\1" + name + b"\1\2\3")
    stream("failed", response, b"\4\3" + text(b"no such container"))
    stream("exec-output", exec_out, b"\0" + text(b"out"), b"\1" + text(b"err"), b"\2\0")
    stream("exec-failed", exec_out, b"\3\1" + text(b"sh: not found"))
    stream("record", record, name + b"\1\0" + varint(1 << 60) + b"\1" + text(b"a line"), piece=7)
    stream("unknown-request", request, b"\x0b")
    stream("trailing", request, b"\4\0")
    stream("empty", request, b"")
    stream("long-number", acknowledge, name + b"\x87\x80\x80\0")
    stream("number-too-long", acknowledge, name + b"\xff" * 11)
    stream("not-text", acknowledge, b"\2\xff\xff\0")
    stream("list-of-gibibytes", response, b"\3\0\0" + varint(1 << 62))
    stream("text-of-gibibytes", record, varint(1 << 62))
    stream("nested-lists-of-gibibytes", request, b"\1" + text(b"f") + varint(1 << 62) + text(b"a") + b"\0\0" + varint(1 << 62))
    seed("protocol", "four-gibibytes", bytes([response, 255]), b"\xff" * 8)
    seed("protocol", "just-too-large", bytes([response, 255]), long((1 << 20) + 1), b"\0")
    seed("protocol", "largest-and-cut", bytes([response, 255]), long(1 << 20), b"\0")
    seed("protocol", "cut-length", bytes([response, 1]), b"\2\0")

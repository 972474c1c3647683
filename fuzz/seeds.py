#!/usr/bin/env python3
"""Writes the first inputs of each target's corpus: what well-behaved guests do, and each rule broken once, so that a fuzzer need not find
the way to them. `fuzz/seeds.py` run again writes the same files. Other files of the corpus were found by fuzzing, or show a defect."""

import pathlib
import struct

CORPUS = pathlib.Path(__file__).parent / "corpus"


def seed(target, name, *parts):
    directory = CORPUS / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(b"".join(parts))


def short(value):
    return struct.pack("<H", value & 0xFFFF)


def long(value):
    return struct.pack("<I", value & 0xFFFFFFFF)


def quad(value):
    return struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


# What a driver does: vmm-lib/src/virtio/fuzz/guest.rs reads it.


def length(value):
    if value < 0xFE:
        return bytes([value])
    return b"\xfe" + short(value) if value < 0x10000 else b"\xff" + long(value)


def buffer(offset):
    return bytes([offset >> 8, offset & 0xFF])


def edge(number, by):
    return bytes([0x80 | number, by & 0xFF])


def anywhere(address):
    return b"\xc1" + quad(address)


def header(power=3, features=3, start=0):
    return bytes([power, features]) + short(start)


def descriptor(index, address, size, flags=0, following=0, queue=0):
    return bytes([queue << 4, index]) + address + length(size) + bytes([flags, following])


def table_entry(table, index, address, size, flags=0, following=0):
    return bytes([1]) + table + bytes([index]) + address + length(size) + bytes([flags, following])


def chain(first, *buffers, queue=0):
    writes = sum(1 << (4 + number) for number, (_, _, write) in enumerate(buffers) if write)
    parts = b"".join(address + length(size) for address, size, _ in buffers)
    return bytes([queue << 4 | 2, first, len(buffers) - 1 | writes]) + parts


def offer(head, queue=0):
    return bytes([queue << 4 | 3, head])


def advance(by, queue=0):
    return bytes([queue << 4 | 4, by & 0xFF])


def poke(address, data):
    return bytes([5]) + address + bytes([len(data)]) + data


def event(index, queue=0):
    return bytes([queue << 4 | 6]) + short(index)


NEXT, WRITE, INDIRECT = 1, 2, 4
READ = (buffer(0x100), 64, False)
FILL = (buffer(0x200), 200, True)
NO_CONFIGURATION = b"\0"
CONFIGURATION = b"".join([b"\x04", b"\0\3", b"\xff" * 8, b"\x0c\2", b"\1" * 4, b"\x24\1", b"\2\2", b"\xfe\0\2\3", b"\3" * 8])

# Drivers that break one rule each, before the device looks.
BREAKS = {
    "index-too-far": advance(100),
    "index-back": advance(-1),
    "head-beyond-table": offer(8),
    "next-beyond-table": descriptor(0, buffer(0), 64, NEXT | WRITE, 200) + offer(0),
    "loop": descriptor(0, buffer(0), 64, NEXT | WRITE, 1) + descriptor(1, buffer(0), 64, NEXT | WRITE, 0) + offer(0),
    "empty-buffer": descriptor(0, buffer(0), 0, WRITE) + offer(0),
    "readable-behind-writable": chain(0, FILL, READ),
    "across-the-hole": descriptor(0, edge(2, -8), 16, WRITE) + offer(0),
    "over-the-hole": descriptor(0, edge(2, -8), 0x3000, WRITE) + offer(0),
    "last-address": descriptor(0, edge(5, 0), 1, WRITE) + offer(0),
    "four-gibibytes": descriptor(0, buffer(0), 0xFFFFFFFF, WRITE) + offer(0),
    "in-device-window": descriptor(0, edge(7, 0), 64, WRITE) + offer(0),
    "table-in-table": table_entry(buffer(0x400), 0, buffer(0x500), 16, INDIRECT) + descriptor(0, buffer(0x400), 32, INDIRECT) + offer(0),
    "table-of-half-a-descriptor": descriptor(0, buffer(0x400), 24, INDIRECT) + offer(0),
    "table-too-large": descriptor(0, buffer(0x400), 16 * 9, INDIRECT) + offer(0),
    "table-in-the-hole": descriptor(0, edge(2, 0), 32, INDIRECT) + offer(0),
    "buffer-over-rings": descriptor(0, b"\xc0" + short(0x200), 0x300, WRITE) + offer(0),
}
# Drivers that break none.
ACROSS_PIECES = descriptor(0, edge(1, -8), 16, WRITE) + offer(0)
THROUGH_TABLE = (
    table_entry(buffer(0x400), 0, buffer(0), 40, NEXT, 1)
    + table_entry(buffer(0x400), 1, buffer(0x80), 100, WRITE)
    + descriptor(0, buffer(0x400), 32, INDIRECT)
    + offer(0)
)


def queue():
    take, serve, notify, arm, disarm = b"\xf7", b"\x0a", b"\x0c", b"\x0e", b"\x0f"
    busy = b"".join(chain(2 * n, READ, FILL) for n in range(4)) + take + (serve + b"\x80") * 4 + event(2) + notify
    for features in range(4):
        seed("queue", f"busy-{features}", b"\0", header(3, features, 0xFFFD), disarm, busy, arm, busy, arm)
    seed("queue", "one-descriptor", b"\0", header(0), chain(0, FILL), take, serve, b"\xff", notify, arm)
    seed("queue", "held-to-the-end", b"\0", header(1), chain(0, FILL) * 2, take, offer(0), take, serve, b"\0", take)
    seed("queue", "indirect", b"\0", header(), THROUGH_TABLE, take, serve, b"\xff", notify)
    seed("queue", "indirect-not-agreed", b"\0", header(3, 0), THROUGH_TABLE, take)
    seed("queue", "across-pieces", b"\0", header(), ACROSS_PIECES, take, serve, b"\xff", notify)
    for name, acts in BREAKS.items():
        seed("queue", name, b"\0", header(), acts, take, serve, b"\xff", notify, take)
    places = {"plain": (8, 0x1000, 0x2000, 0x3000), "overlap": (8, 0x1000, 0x1040, 0x3000), "high": (32, 0xC000, 0xFF00, 0xD000)}
    places |= {"odd": (8, 0x1008, 0x2001, 0x3002), "size": (7, 0x1000, 0x2000, 0x3000), "cut": (32, 0x5F00, 0x2000, 0x3000)}
    for name, (size, *rings) in places.items():
        seed("queue", f"rings-{name}", b"\1", short(size), *map(short, rings), b"\3\0\0", chain(0, READ, FILL), take, serve, b"\x40")
    seed("queue", "rings-anywhere", b"\3", short(8), quad(1 << 63), quad(0xFFFFFFFFFFFFFFFE), quad(0x3000), b"\0\0\0")


def rng():
    turn = b"\x07"
    for features in range(4):
        seed("rng", f"busy-{features}", header(3, features, 0xFFFE), CONFIGURATION, chain(0, FILL), chain(1, FILL), turn, event(1), chain(2, FILL), turn)
    seed("rng", "nothing-writable", header(), NO_CONFIGURATION, chain(0, READ), turn)
    seed("rng", "large", header(), NO_CONFIGURATION, chain(0, (buffer(0), 0x4000, True), (buffer(0), 0x4000, True)), turn)
    seed("rng", "indirect", header(), NO_CONFIGURATION, THROUGH_TABLE, turn)
    seed("rng", "across-pieces", header(), NO_CONFIGURATION, ACROSS_PIECES, turn)
    for name, acts in BREAKS.items():
        seed("rng", name, header(), NO_CONFIGURATION, acts, turn)


def block():
    turn = b"\x07"

    def request(slot, selector, sector, sectors, more=b""):
        place = quad(sector) if sector > 0xFE else b""
        return bytes([slot << 4 | 9, selector, min(sector, 0xFF), sectors]) + place + more

    read, write, flush, name, discard, zeroes, unknown, wild = range(8)
    for kind in range(4):
        session = [request(0, read, 0, 2), request(1, write, 3, 4), turn, request(2, flush, 0, 1), request(3, name, 0, 1), turn]
        session += [request(4, read, 0, 16), turn, request(5, write, 15, 2), turn, request(6, read, 40, 1), turn, request(7, unknown, 0, 1), turn]
        seed("block", f"disk-{kind}", header(5, 3, 0xFFFA), bytes([kind]), CONFIGURATION, *session)
    for which, kind in (("discard", discard), ("zeroes", zeroes)):
        for flags in range(3):
            cleared = [request(slot, kind, 0, 0, bytes([first]) + length(count) + bytes([flags])) + turn for slot, first, count in ((0, 0, 8), (1, 15, 4), (2, 2, 0))]
            far = request(3, kind, 0, 0, b"\1" + length(1 << 22) + bytes([flags]))
            seed("block", f"{which}-{flags}", header(5), b"\0", NO_CONFIGURATION, *cleared, far, turn)
    seed("block", "far", header(5), b"\0", NO_CONFIGURATION, request(0, read, 1 << 55, 1), turn, request(1, write, (1 << 64) - 1, 1), turn)
    seed("block", "half-a-sector", header(5), b"\0", NO_CONFIGURATION, request(0, read | 0x80, 0, 1), turn, request(1, write | 0x80, 0, 1), turn)
    seed("block", "wild", header(5), b"\0", NO_CONFIGURATION, request(0, wild, 0, 0), turn)
    seed("block", "no-status", header(), b"\0", NO_CONFIGURATION, chain(0, READ), turn)
    seed("block", "no-header", header(), b"\0", NO_CONFIGURATION, chain(0, (buffer(0), 15, False), FILL), turn)
    for name, acts in BREAKS.items():
        seed("block", name, header(), b"\0", NO_CONFIGURATION, acts, turn)


def net():
    send, fill = b"\x07", b"\x08"

    def wire(size):
        return b"\x0a" + short(size)

    def post(slot, size):
        return bytes([slot << 4 | 12]) + length(size)

    def frame(slot, size):
        return bytes([slot << 4 | 14]) + length(size)

    for chosen in range(4):
        start = header(3, chosen, 0xFFFD) + bytes([chosen]) + CONFIGURATION
        posted = b"".join(post(slot, 1600) for slot in range(3))
        seed("net", f"frames-{chosen}", start, frame(0, 60), frame(2, 1500), send, posted, wire(100), wire(1400), fill, posted, wire(700), fill)
        seed("net", f"small-buffers-{chosen}", start, *(post(slot, 300) for slot in range(7)), wire(1000), fill, wire(1000), fill)
    large = chain(0, *[(buffer(0), 0x4000, False)] * 4, queue=1)
    seed("net", "large", header(5), b"\3", NO_CONFIGURATION, large, send, *(post(slot, 0x4000) for slot in range(5)), wire(65535), fill)
    seed("net", "too-large", header(5, 3), b"\3", NO_CONFIGURATION, chain(0, *[(buffer(0), 0x4FF0, False)] * 4, queue=1), send)
    seed("net", "runt", header(), b"\0", NO_CONFIGURATION, post(0, 1600), wire(5), wire(12), wire(0), fill)
    seed("net", "no-room-for-a-header", header(), b"\1", NO_CONFIGURATION, chain(0, (buffer(0), 11, True)), wire(60), fill)
    seed("net", "frame-without-a-header", header(), b"\0", NO_CONFIGURATION, chain(0, (buffer(0), 11, False), queue=1), send)
    for name, acts in BREAKS.items():
        seed("net", name, header(), b"\1", NO_CONFIGURATION, acts, wire(60), fill)


def vsock():
    turn = b"\x07"
    dial, early, garbage = b"\x09", b"\xa9", b"\xc9CONNECT 1\r\n!"
    request, response, reset, shutdown, data, update, ask = range(1, 8)

    def client(number, size):
        return bytes([number << 4 | 10]) + length(size)

    def end(number, how):
        return bytes([number << 4 | 11, how])

    def post(slot, size=2000):
        return bytes([slot << 4 | 12]) + length(size)

    def say(slot, op, payload=0, wrong=0, more=b""):
        return bytes([slot << 4 | 13, op, wrong]) + length(payload) + more

    start = header(5, 3, 0xFFF0) + NO_CONFIGURATION
    up = post(0) + post(1) + post(2) + dial + turn + turn + say(0, response) + turn
    seed("vsock", "configuration", header(), CONFIGURATION, turn)
    seed("vsock", "connected", start, up, say(1, data, 100), turn, end(0, 0), client(0, 500), turn, turn, end(0, 3), turn, turn)
    seed("vsock", "early", start, post(0), post(1), early, turn, turn, say(0, response), turn, turn)
    seed("vsock", "no-connect", start, garbage, turn, turn)
    seed("vsock", "refused", start, post(0), dial, turn, turn, say(0, reset), turn)
    seed("vsock", "client-goes-unheard", start, dial, turn, turn, end(0, 3), turn, dial, turn, turn, end(0, 3), turn, turn)
    seed("vsock", "guest-shuts-down", start, up, say(1, shutdown | 0x40), turn, say(2, shutdown | 0x80), turn, turn)
    seed("vsock", "client-shuts-down", start, up, end(0, 1), turn, turn, say(1, data, 50), turn, end(0, 2), turn, turn)
    seed("vsock", "data-after-the-end", start, up, say(1, shutdown | 0x80), turn, say(2, data, 10), turn, turn)
    seed("vsock", "credit-asked", start, up, say(1, ask), turn, say(2, update, 0, 1, length(0)), turn, client(0, 300), turn, turn)
    seed("vsock", "credit-that-lies", start, up, say(1, update, 0, 3, length(0xFFFFFFFF) + length(1)), turn, client(0, 9000), turn, turn)
    seed("vsock", "more-than-the-chain", start, up, say(1, data, 5, 4, length(0xFFFFFFFF)), turn, turn)
    seed("vsock", "flood-nobody-reads", start, up, *(say(slot, data, 0x4000) + turn for slot in (1, 2, 3) * 6))
    seed("vsock", "other-ports", start, up, say(1, data, 5, 8, length(7) + long(9)), turn, turn)
    seed("vsock", "other-addresses", start, up, say(1, data, 5, 16, quad(3) + quad(99)), turn, say(2, data, 5, 16, quad(4) + quad(2)), turn)
    seed("vsock", "other-operations", start, up, say(1, 0, 0, 32, short(1) + short(99) + long(0)), turn, turn)
    seed("vsock", "guest-dials", start, post(0), say(1, request), turn, turn)
    seed("vsock", "small-buffers", start, dial, *(post(slot, 1) for slot in range(8)), turn, say(0, response), turn, client(0, 20), turn, turn)
    seed("vsock", "packet-without-a-header", header(), NO_CONFIGURATION, chain(0, (buffer(0), 43, False), queue=1), turn)
    seed("vsock", "no-room-for-a-byte", header(), NO_CONFIGURATION, post(0, 32), dial, turn, turn)
    for name, acts in BREAKS.items():
        seed("vsock", name, header(), NO_CONFIGURATION, dial, acts, turn, turn)


def pci():
    def configure(function, register, data):
        return bytes([function << 3 | {1: 0, 2: 1, 4: 2, 8: 3}[len(data)] << 5, register]) + data

    def move(function, where):
        return bytes([function << 3 | 2, where])

    def common(function, register, data):
        return bytes([function << 3 | 3 | {1: 0, 2: 1, 4: 2, 8: 3}[len(data)] << 5, register]) + data

    def bar(function, register, data):
        return bytes([function << 3 | 4 | {1: 0, 2: 1, 4: 2, 8: 3}[len(data)] << 5]) + short(register) + data

    def vector(function, register, data):
        return bytes([function << 3 | 5 | {4: 2, 8: 3}[len(data)] << 5, register]) + data

    def start(function, queue=0, size=16, wrong=0, more=b""):
        return bytes([function << 3 | 6, queue, size, wrong]) + more

    on = [configure(function, 4, b"\6\0") for function in (1, 2)]
    msix = configure(1, 0x42, b"\x02\x80")
    unmask = vector(1, 0, long(0xFEE00000)) + vector(1, 8, long(0x31)) + vector(1, 12, long(0))
    seed("pci", "started", *on, msix, unmask, start(1), bar(1, 0x1000, b"\0\0"), common(1, 0x14, b"\0"), start(1))
    seed("pci", "both-started", *on, start(1), start(2, 1, 8), common(2, 0x18, b"\4\0"), common(1, 0x20, b"\1" * 8))
    seed("pci", "no-first-queue", *on, msix, start(1, 1), bar(1, 0x3000, b"\0"))
    seed("pci", "bad-size", *on, start(1, 0, 7), start(2, 0, 128))
    seed("pci", "bad-rings", *on, start(1, 0, 16, 1, quad(0xFFFFFFFFFFFFF000)), start(2, 8, 16, 1, quad(0x5F00)))
    seed("pci", "bad-features", *on, start(1, 0, 16, 2, quad(0)), start(2, 0, 16, 2, quad(1 << 32 | 1 << 40)))
    seed("pci", "sized", configure(1, 0x10, b"\xff" * 8), configure(1, 0x30, b"\xff" * 4), configure(1, 0, b"\xff" * 8))
    seed("pci", "moved", *on, *(move(1, where) + start(1) for where in range(6)), move(1, 9), start(1))
    seed("pci", "over-one-another", *on, move(1, 1), move(2, 1), start(1), start(2), move(2, 8), start(2))
    seed("pci", "masked", *on, start(1, 0x10), msix, unmask, configure(1, 0x42, b"\x02\xc0"), bar(1, 0x3000, b"\0"), msix)
    seed("pci", "vectors-beyond", *on, *(vector(1, at, long(0xFFFFFFFF)) for at in range(0, 48, 4)), msix)
    seed("pci", "unaligned", *on, bar(1, 0x2001, b"\1\2\3\4"), common(1, 0x15, b"\1\2\3\4"), configure(1, 0xFE, b"\1\2\3\4"))
    seed("pci", "bridge", configure(0, 4, b"\xff\xff"), configure(0, 0x10, b"\xff" * 8), move(0, 1), start(0))
    seed("pci", "nobody", configure(3, 0, b"\1"), move(3, 1), start(3), b"\x01" + long(0xFFFFF) + b"\1")
    seed("pci", "read-beyond", b"\x6f" + short(0x3FFC) + quad(0xFFFFFFFFFFFFFFFE), b"\x6f" + short(0) + quad(0xE00FFFFE))


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
    seed("elf", "low", kernel([(1, 0x200, 0x1000, 64, 64), notes], code + entry))
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


for write in (queue, rng, block, net, vsock, pci, elf, bzimage, protocol):
    write()

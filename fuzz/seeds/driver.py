"""What a driver does, as vmm-lib/src/virtio/fuzz/guest.rs reads it."""

from common import long, quad, short


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

"""Queues, devices and registers."""

from common import long, quad, seed, short
from driver import (
    ACROSS_PIECES,
    BREAKS,
    CONFIGURATION,
    FILL,
    NO_CONFIGURATION,
    READ,
    THROUGH_TABLE,
    buffer,
    chain,
    event,
    header,
    length,
    offer,
    poke,
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


def pmem():
    turn = b"\x07"
    flush = (buffer(0), 4, False), (buffer(1), 4, True)
    for features in range(4):
        seed("pmem", f"busy-{features}", header(3, features, 0xFFFE), CONFIGURATION, chain(0, *flush), chain(2, READ, FILL), turn, event(1), chain(4, *flush), turn)
    seed("pmem", "no-answer", header(), NO_CONFIGURATION, chain(0, (buffer(0), 4, False)), turn)
    seed("pmem", "half-a-request", header(), NO_CONFIGURATION, chain(0, (buffer(0), 3, False), (buffer(1), 4, True)), turn)
    for name, acts in BREAKS.items():
        seed("pmem", name, header(), NO_CONFIGURATION, acts, turn)


def mem():
    turn = b"\x07"
    region, block = 1 << 32, 2 << 20
    plug, unplug, everything, state = range(4)

    def request(slot, kind, first, count, at=0):
        data = short(kind) + bytes(6) + quad(region + first * block + at) + short(count) + bytes(6)
        question, answer = buffer(0x40 * slot), buffer(0x800 + 0x40 * slot)
        return poke(question, data) + chain(2 * slot, (question, 24, False), (answer, 10, True))

    for features in range(4):
        session = [request(0, plug, 3, 2), turn, request(1, state, 2, 3), request(2, plug, 4, 2), turn, request(3, unplug, 3, 1), turn, event(4)]
        session += [request(4, state, 4, 1), request(5, unplug, 3, 2), turn, request(6, everything, 0, 0), turn, request(7, plug, 0, 9), turn]
        seed("mem", f"busy-{features}", b"\x0a\x08", header(5, features, 0xFFFE), CONFIGURATION, *session)
    wrong = [request(0, plug, 9, 2), request(1, plug, 0, 1, 4096), request(2, plug, 0, 0), request(3, plug, -1, 1), request(4, 4, 0, 1)]
    seed("mem", "wrong", b"\x0a\xff", header(5), NO_CONFIGURATION, *wrong, turn, request(5, unplug, 0, 0xFFFF), turn)
    seed("mem", "no-region", b"\0\0", header(), NO_CONFIGURATION, request(0, plug, 0, 1), turn, request(1, everything, 0, 0), turn)
    seed("mem", "half-a-request", b"\x0a\x08", header(), NO_CONFIGURATION, chain(0, (buffer(0), 23, False), (buffer(0x100), 10, True)), turn)
    seed("mem", "no-answer", b"\x0a\x08", header(), NO_CONFIGURATION, chain(0, (buffer(0), 24, False), (buffer(0x100), 9, True)), turn)
    for name, acts in BREAKS.items():
        seed("mem", name, b"\x0a\x08", header(), NO_CONFIGURATION, acts, turn)


def balloon():
    turn = b"\x07"
    for kind in range(3):
        start = bytes([kind]), header(3, 3, 0xFFFE), CONFIGURATION
        seed("balloon", f"busy-{kind}", *start, chain(0, READ), turn, chain(1, FILL), turn, event(1), chain(2, FILL), turn)
        seed("balloon", f"large-{kind}", *start, chain(0, (buffer(0), 0x4000, kind == 2), (buffer(0), 0x4000, kind == 2)), turn)
        seed("balloon", f"odd-{kind}", *start, chain(0, (buffer(0), 0x1FFF, kind == 2)), turn)
        seed("balloon", f"across-pieces-{kind}", *start, ACROSS_PIECES, turn)
    for name, acts in BREAKS.items():
        seed("balloon", name, b"\2", header(), NO_CONFIGURATION, acts, turn)


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


def console():
    send, later, receive, read = b"\x07", b"\x47", b"\x09", b"\x0b"

    def keys(size):
        return b"\x0a" + short(size)

    def post(slot, size):
        return bytes([slot << 4 | 12]) + length(size)

    def say(slot, size):
        return bytes([slot << 4 | 14]) + length(size)

    for features in range(4):
        start = header(3, features, 0xFFFD) + CONFIGURATION
        seed("console", f"session-{features}", start, say(0, 60), send, post(0, 100), receive, keys(5), receive, post(1, 3), keys(9), receive, post(2, 50), receive, read)
    flood = b"".join(say(slot, 0x4000) for slot in range(7))
    seed("console", "nobody-reads", header(3), NO_CONFIGURATION, flood, later, send, later, flood, send, read, say(7, 10), send)
    seed("console", "somebody-reads-late", header(3), NO_CONFIGURATION, flood, send, read, send, read, send)
    seed("console", "nothing-writable", header(), NO_CONFIGURATION, keys(1), chain(0, READ), receive)
    seed("console", "nothing-readable", header(), NO_CONFIGURATION, chain(0, FILL, queue=1), send)
    for name, acts in BREAKS.items():
        seed("console", name, header(), NO_CONFIGURATION, acts, keys(10), receive, send)


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


def watchdog():
    def configure(register, data):
        return bytes([{1: 0, 2: 4, 4: 8, 8: 12}[len(data)], register]) + data

    def write(register, data):
        return bytes([{1: 1, 2: 5, 4: 9, 8: 13}[len(data)], register]) + data

    def read(register, size):
        return bytes([{1: 2, 2: 6, 4: 10, 8: 14}[size], register])

    wait = b"\3\0"
    key = write(12, short(0x80)) + write(12, short(0x86))
    feed = key + write(12, short(0x100))
    timers = configure(0x68, b"\0") + key + write(0, long(15360)) + key + write(4, long(15360)) + feed
    setup = configure(0x60, short(3)) + timers
    on, off, lock = configure(0x68, b"\2"), configure(0x68, b"\0"), configure(0x68, b"\3")
    seed("watchdog", "fed-and-stopped", setup, on, feed, feed, off, wait, wait, read(12, 2))
    seed("watchdog", "unfed", setup, on, wait, wait)
    seed("watchdog", "locked", setup, lock, off, configure(0x68, b"\7"), configure(0x66, b"\0" * 4), feed)
    forget = key + write(12, short(0x200))
    seed("watchdog", "no-output", configure(0x60, short(0x23)), timers, on, wait, wait, read(12, 4), forget, read(12, 4))
    seed("watchdog", "free-running", setup, configure(0x68, b"\6"), feed, wait)
    seed("watchdog", "without-the-key", on, write(0, long(1)), write(12, short(0x86)) + write(12, short(0x80)) + write(12, short(0x100)))
    seed("watchdog", "large", setup, key, write(0, b"\xff" * 4), key, write(4, b"\xff" * 8), read(0, 8), read(8, 8), read(250, 8))
    seed("watchdog", "moved", configure(0x10, b"\xff" * 8), configure(0, b"\xff" * 8), configure(4, b"\xff\xff"))
def fs():
    turn, read = b"\x07", b"\x09"

    def ask(slot, kind, arguments, room, hiprio=False):
        return bytes([slot << 4 | (14 if hiprio else 15), kind]) + length(arguments) + length(room)

    def answer(place, size, error=0):
        return bytes([error << 4 | 11, place]) + length(size)

    def say(data):
        return bytes([len(data) << 4 | 13]) + data

    forget, getattr, write, interrupt = 2, 3, 16, 36
    start = header(5, 3, 0xFFF0) + NO_CONFIGURATION
    seed("fs", "configuration", header(), CONFIGURATION, turn)
    seed("fs", "answered", start, ask(0, getattr, 16, 120), turn, read, answer(0, 104), turn, ask(1, getattr, 0, 16), turn, read, answer(1, 0), turn)
    out_of_order = [ask(slot, write, 100, 64) for slot in range(4)] + [turn, read] + [answer(slot, 48) + turn for slot in (3, 1, 2, 0)]
    seed("fs", "out-of-order", start, *out_of_order)
    seed("fs", "large", start, chain(0, (buffer(0), 0x4000, False), (buffer(0), 0x4000, True), queue=1), turn, read, answer(0, 0x3FF0), turn)
    seed("fs", "torn", start, ask(0, getattr, 8, 64), turn, read, say(long(24) + long(0)), turn, say(quad(1)), turn, say(quad(5)), turn)
    seed("fs", "forgotten", start, ask(0, forget, 8, 0, True), ask(1, interrupt, 8, 0, True), turn, read, turn)
    seed("fs", "errors", start, ask(0, getattr, 8, 64), ask(1, getattr, 8, 64), turn, read, answer(0, 0, 1), answer(1, 1, 1), turn, turn)
    seed("fs", "too-large-an-answer", start, ask(0, getattr, 8, 64), turn, read, answer(0, 49), turn, ask(1, getattr, 8, 64), turn)
    seed("fs", "nobody-asked", start, ask(0, getattr, 8, 64), turn, read, answer(9, 0), turn, ask(1, getattr, 8, 64), turn)
    seed("fs", "twice", start, ask(0, getattr, 8, 64), turn, read, answer(0, 8), turn, answer(0, 8), turn)
    seed("fs", "shorter-than-a-header", start, ask(0, getattr, 8, 64), turn, read, say(long(15) + long(0) + quad(1)[:7]), say(b"\0"), turn)
    seed("fs", "no-room", start, ask(0, getattr, 8, 15), turn)
    seed("fs", "half-a-header", start, chain(0, (buffer(0), 39, False), (buffer(1), 16, True), queue=1), turn)
    for name, acts in BREAKS.items():
        seed("fs", name, header(), NO_CONFIGURATION, acts, turn)


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
    other = common(1, 0x16, b"\1\0") + common(1, 0x18, b"\4\0") + common(1, 0x20, b"\1" * 8) + common(1, 0x1C, b"\1\0")
    seed("pci", "too-late-for-a-queue", *on, start(1), other)
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


def qcow2():
    read, write, zero, drop, flush = b"\0", b"\3", b"\6", b"\6", b"\7"

    def act(code, sector, sectors, fill=0):
        return code + short(sector) + bytes([sectors, fill])

    def change(at, value):
        return short(at) + bytes([len(value) - 1]) + value

    session = [act(write, 3, 20, 7), act(read, 0, 127), act(write, 100, 100, 8), act(flush, 0, 0), act(zero, 90, 64, 2), act(zero, 3, 9, 0)]
    session += [act(drop, 0, 127, 1), act(write, 511, 0, 9), act(write, 40, 120, 3), act(flush, 0, 0), act(drop, 30, 100, 1), act(read, 20, 120)]
    for version in range(2):
        for bits in range(4):
            for filled in (0, 9):
                seed("qcow2", f"version-{version + 2}-clusters-{bits}-filled-{filled}", bytes([version | bits << 1 | filled << 4]), b"\0", *session)
    seed("qcow2", "read-only", b"\x99", b"\0", *session)
    start = b"\x97"
    cluster = 4096
    fields = {"magic": (0, b"X"), "version": (7, b"\4"), "backing": (15, b"\1"), "bits": (23, b"\x15"), "size": (24, b"\xff"), "encrypted": (35, b"\1")}
    fields |= {"l1-size": (36, b"\xff"), "l1-outside": (40, b"\xff"), "counts-outside": (48, b"\xff"), "counts-size": (56, b"\xff"), "snapshots": (63, b"\1")}
    fields |= {"feature": (72, b"\x80"), "dirty": (79, b"\1"), "corrupt": (79, b"\2"), "external": (79, b"\4"), "autoclear": (95, b"\1"), "order": (99, b"\1")}
    fields |= {"count-itself": (cluster, quad(0x100000)), "count-of-table": (2 * cluster, b"\0" * 8), "l1-itself": (3 * cluster, bytes([0x80, 0, 0, 0, 0, 0, 0x30, 0]))}
    table = 4 * cluster
    entries = {"to-table": [0x80, 0, 0, 0, 0, 0, 0x30, 0], "between": [0x80, 0, 0, 0, 0, 0, 0x52, 0], "outside": [0x80, 0, 0, 1, 0, 0, 0, 0]}
    entries |= {"shared": [0, 0, 0, 0, 0, 0, 0x50, 0], "zero": [0x80, 0, 0, 0, 0, 0, 0x50, 1], "garbage": [0x90, 0, 0, 0, 0, 0, 0x50, 2]}
    entries |= {"deflated-outside": [0x40, 0xFF, 0, 0, 0, 0, 0x50, 0], "deflated-garbage": [0x43, 0, 0, 0, 0, 0, 0x50, 0], "deflated-owned": [0xC0, 0, 0, 0, 0, 0, 0x50, 0]}
    fields |= {f"entry-{name}": (table, bytes(entry)) for name, entry in entries.items()}
    for name, (at, value) in fields.items():
        seed("qcow2", name, start, b"\1", change(at, value), *session)

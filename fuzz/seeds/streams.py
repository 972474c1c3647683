"""First inputs of the kubelet port's targets: what clients of exec and port-forward send, and each rule broken once."""

import ast
import pathlib
import re
import struct
import zlib

from common import seed

# The dictionary stands in the server alone.
HEADERS = pathlib.Path(__file__).parent.parent.parent / "provider/server/src/streaming/spdy/headers.rs"


def dictionary():
    source = HEADERS.read_text()

    def text(name):
        literal = re.search(rf'{name}: &str = (".*?");', source, re.S).group(1)
        return ast.literal_eval(re.sub(r"\\\n\s*", "", literal))

    words = [word.replace("_", " ").encode() for word in text("DICTIONARY_WORDS").split()]
    return b"".join(struct.pack(">I", len(word)) + word for word in words) + text("DICTIONARY_TEXT").encode()


class Client:
    """One direction of a connection: its header blocks are one zlib stream."""

    def __init__(self):
        self.zlib = zlib.compressobj(6, zlib.DEFLATED, 15, 8, zlib.Z_DEFAULT_STRATEGY, dictionary())

    def block(self, **headers):
        plain = struct.pack(">I", len(headers))
        for part in (part for pair in headers.items() for part in pair):
            plain += struct.pack(">I", len(part)) + part.encode()
        return self.raw(plain)

    def raw(self, plain):
        return self.zlib.compress(plain) + self.zlib.flush(zlib.Z_SYNC_FLUSH)


def control(kind, flags, payload, version=3, length=None):
    length = len(payload) if length is None else length
    return struct.pack(">HHI", 0x8000 | version, kind, flags << 24 | length) + payload


def words(*numbers):
    return struct.pack(f">{len(numbers)}I", *numbers)


def data(stream, flags, payload, length=None):
    length = len(payload) if length is None else length
    return struct.pack(">II", stream, flags << 24 | length) + payload


def syn(client, stream, flags=0, **headers):
    return control(1, flags, words(stream, 0) + b"\0\0" + client.block(**headers))


def spdy():
    client = Client()
    session = [syn(client, 1 + 2 * number, streamtype=kind) for number, kind in enumerate(("error", "stdin", "stdout", "stderr", "resize"))]
    session += [data(3, 0, b"echo hello\n"), data(9, 0, b'{"Width":80,"Height":24}\n'), data(3, 1, b""), control(6, 0, words(1))]
    session += [control(3, 0, words(3, 5)), control(7, 0, words(9, 0))]
    for piece in (1, 7, 255):
        seed("spdy", f"exec-{piece}", bytes([piece]), *session)
    client = Client()
    forward = [syn(client, 1, streamtype="error", port="80", requestid="0"), syn(client, 3, streamtype="data", port="80", requestid="0")]
    seed("spdy", "port-forward", b"\x40", *forward, data(3, 0, b"GET / HTTP/1.0\r\n\r\n"), data(3, 1, b"x" * 100))
    client = Client()
    replies = [control(2, 0, words(1) + client.block(a="b")), control(8, 1, words(1) + client.block(c="d"))]
    seed("spdy", "replies", b"\xff", *replies, control(4, 0, words(0)), control(9, 0, words(1, 100)))
    broken = {
        "version": control(6, 0, words(1), version=2),
        "kind": control(99, 0, b""),
        "large": control(1, 0, b"", length=0xFFFFFF),
        "short": control(3, 0, words(1)),
        "zero": data(0, 0, b"x"),
        "zero-syn": syn(Client(), 0, a="b"),
        "cut": data(1, 1, b"half", length=100),
        "no-zlib": control(1, 0, words(1, 0) + b"\0\0" + b"no zlib stream"),
        "no-dictionary": control(1, 0, words(1, 0) + b"\0\0" + zlib.compress(words(0))),
        "bomb": control(1, 0, words(1, 0) + b"\0\0" + Client().raw(words(1, 1) + b"a" + words(1 << 20) + bytes(1 << 20))),
        "many": control(1, 0, words(1, 0) + b"\0\0" + Client().raw(words(65) + words(0, 0) * 65)),
        "lengths": control(1, 0, words(1, 0) + b"\0\0" + Client().raw(words(1, 1 << 31) + b"a")),
        "no-text": control(1, 0, words(1, 0) + b"\0\0" + Client().raw(words(1, 1) + b"\xff" + words(0))),
    }
    for name, frame in broken.items():
        seed("spdy", f"broken-{name}", b"\x10", frame)


def websocket():
    messages = {"stdin": b"\0hello", "resize": b"\x04{}", "close": b"\xff\0", "cut": b"\xff", "empty": b"", "base64": b"0aGVsbG8=", "no-base64": b"0!!"}
    for name, message in messages.items():
        seed("websocket", name, message)

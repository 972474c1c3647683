"""Writes a file of a corpus; numbers as guests write them."""

import pathlib
import struct

CORPUS = pathlib.Path(__file__).parent.parent / "corpus"


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

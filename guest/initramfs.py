"""Writes the guest's initramfs: a cpio archive (newc) with the agent as /init and the device of its first messages.

The same agent gives the same bytes: owners, times and inode numbers are fixed, and no device is made to be packed.
"""

import sys

DIRECTORY, FILE, CHARACTER_DEVICE = 0o040000, 0o100000, 0o020000


class Archive:
    def __init__(self, output):
        self.output = output
        self.entries = 0

    def add(self, name, mode, data=b"", device=(0, 0)):
        self.entries += 1
        path = name.encode() + b"\0"
        fields = [
            self.entries,  # inode
            mode,
            0,  # uid
            0,  # gid
            2 if mode & DIRECTORY == DIRECTORY else 1,  # links
            0,  # mtime
            len(data),
            0,  # device of the archive: major, minor
            0,
            device[0],
            device[1],
            len(path),
            0,  # check sum, unused in this format
        ]
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self.output.write(pad(header + path) + pad(data))

    def end(self):
        self.add("TRAILER!!!", 0)


def pad(data):
    return data + b"\0" * (-len(data) % 4)


def main():
    agent, target = sys.argv[1:]
    with open(agent, "rb") as source, open(target, "wb") as output:
        archive = Archive(output)
        archive.add("dev", DIRECTORY | 0o755)
        archive.add("dev/console", CHARACTER_DEVICE | 0o600, device=(5, 1))
        # Without it the standard library of Rust ends a program whose standard streams are closed.
        archive.add("dev/null", CHARACTER_DEVICE | 0o666, device=(1, 3))
        for mount_point in ("proc", "sys", "run"):
            archive.add(mount_point, DIRECTORY | 0o755)
        archive.add("init", FILE | 0o755, source.read())
        archive.end()


main()

"""Writes the first inputs of each target's corpus: what well-behaved guests do, and each rule broken once, so that a fuzzer need not find
the way to them. `python3 fuzz/seeds` writes the same files each time. Other files of the corpus were found by fuzzing, or show a defect."""

import devices
import files

for write in (
    devices.queue,
    devices.rng,
    devices.block,
    devices.net,
    devices.vsock,
    devices.pci,
    files.elf,
    files.bzimage,
    files.protocol,
):
    write()

"""Writes the first inputs of each target's corpus: what well-behaved guests do, and each rule broken once, so that a fuzzer need not find
the way to them. `python3 fuzz/seeds` writes the same files each time. Of the other files, those with a name show something that was once
wrong, in the code or in its watcher; those named by a hash are the smallest that libFuzzer's `-merge=1` adds to the others."""

import devices
import files
import streams

for write in (
    devices.queue,
    devices.rng,
    devices.pmem,
    devices.balloon,
    devices.mem,
    devices.block,
    devices.console,
    devices.net,
    devices.vsock,
    devices.watchdog,
    devices.fs,
    devices.pci,
    devices.qcow2,
    files.elf,
    files.bzimage,
    files.snapshot,
    files.protocol,
    streams.spdy,
    streams.websocket,
):
    write()

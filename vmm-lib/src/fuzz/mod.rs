//! What the fuzz targets of `fuzz/` call, and tests too, with every file of the corpus. Each function takes bytes that anybody may have made
//! up, acts them out as a guest, a driver or a kernel's file would, against the code that machines run, and panics where a rule is broken.
//! Not part of the product: the feature `fuzzing` belongs to the fuzzer's own workspace.

pub(crate) mod input;
#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

pub use crate::boot::fuzz::{bzimage, elf};
pub use crate::pci::fuzz::pci;
pub use crate::snapshot::fuzz::snapshot;
pub use crate::virtio::block::fuzz::{block, qcow2};
pub use crate::virtio::console::fuzz::console;
pub use crate::virtio::fs::fuzz::fs;
pub use crate::virtio::fuzz::{balloon, mem, pmem, queue, rng};
pub use crate::virtio::net::fuzz::net;
pub use crate::virtio::vsock::fuzz::vsock;
pub use crate::watchdog::fuzz::watchdog;

#[cfg(test)]
mod tests {
    use super::replay::{replay, targets};

    #[test]
    fn a_queue_keeps_its_rules_whatever_a_driver_puts_into_its_rings() {
        replay("queue", super::queue);
    }

    #[test]
    fn a_disk_keeps_its_rules_whatever_a_driver_asks_of_it() {
        replay("block", super::block);
    }

    #[test]
    fn an_image_keeps_what_is_written_to_it_and_its_rules_whatever_is_wrong_with_it() {
        replay("qcow2", super::qcow2);
    }

    #[test]
    fn a_network_device_keeps_its_rules_whatever_driver_and_wire_do() {
        replay("net", super::net);
    }

    #[test]
    fn a_vsock_device_keeps_its_rules_whatever_guest_and_clients_say() {
        replay("vsock", super::vsock);
    }

    #[test]
    fn a_shared_directory_keeps_its_rules_whatever_driver_and_peer_say() {
        replay("fs", super::fs);
    }

    #[test]
    fn a_source_of_random_bytes_keeps_its_rules_whatever_is_asked_of_it() {
        replay("rng", super::rng);
    }

    #[test]
    fn a_console_keeps_its_rules_whatever_is_written_and_typed() {
        replay("console", super::console);
    }

    #[test]
    fn an_image_in_place_keeps_its_rules_whatever_is_asked_of_it() {
        replay("pmem", super::pmem);
    }

    #[test]
    fn a_balloon_takes_only_pages_of_ram_whatever_is_reported_to_it() {
        replay("balloon", super::balloon);
    }

    #[test]
    fn memory_that_comes_and_goes_is_plugged_by_the_rules_whatever_is_asked_of_it() {
        replay("mem", super::mem);
    }

    #[test]
    fn a_watchdog_keeps_its_rules_whatever_registers_are_written() {
        replay("watchdog", super::watchdog);
    }

    #[test]
    fn the_bus_and_the_transport_keep_their_rules_whatever_registers_are_written() {
        replay("pci", super::pci);
    }

    #[test]
    fn an_elf_kernel_is_loaded_whole_where_kernels_may_lie_or_refused() {
        replay("elf", super::elf);
    }

    #[test]
    fn a_bzimage_is_loaded_whole_where_kernels_may_lie_or_refused() {
        replay("bzimage", super::bzimage);
    }

    #[test]
    fn a_snapshots_state_is_read_whole_or_refused_whatever_is_in_the_file() {
        replay("snapshot", super::snapshot);
    }

    #[test]
    fn every_fuzz_target_is_replayed_by_a_test() {
        let ours = [
            "balloon", "block", "bzimage", "console", "elf", "fs", "mem", "net", "pci", "pmem", "qcow2", "queue", "rng", "snapshot",
            "vsock", "watchdog",
        ];
        let theirs = ["protocol", "spdy", "websocket"];
        let (others, rest): (Vec<_>, Vec<_>) = targets().into_iter().partition(|name| theirs.contains(&name.as_str()));
        assert_eq!((others, rest), (theirs.map(String::from).to_vec(), ours.map(String::from).to_vec()));
    }
}

//! How a machine ended, and what it cost: plain data for exit records. Decides nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::WatchdogAction;

/// Most distinct addresses that are counted apart; a guest must not grow our memory by touching many.
const MAX_COUNTED: usize = 4096;

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum MachineExit {
    /// The guest entered ACPI state S5.
    PoweredOff,
    /// The guest wrote the ACPI reset register (a kernel that panics with `panic=-1 reboot=acpi` does).
    Reset,
    /// [`Handle::stop`](crate::machine::Handle::stop) was called.
    Stopped,
    /// A processor shut down by a triple fault (`reboot=t` does so on purpose).
    TripleFault,
    /// The guest did what no processor can go on from.
    Crashed {
        /// What KVM reported.
        reason: String,
    },
    /// A guest access hit memory that the host could not give, such as a shrunk file.
    MemoryFault {
        /// What was known of it.
        reason: String,
    },
    /// The guest left its watchdog unfed.
    Watchdog {
        /// What its specification says is to be done then.
        action: WatchdogAction,
    },
    /// The host failed the machine.
    Error {
        /// What failed and why.
        what: String,
    },
}

/// What is known of a machine after its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineReport {
    /// Why it ended.
    pub exit: MachineExit,
    /// Exits to user space, where counting was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exits: Option<ExitCounts>,
    /// Processor time that each virtual processor's thread has used, microseconds.
    pub vcpu_cpu_micros: Vec<u64>,
}

/// Exits to user space, by what caused them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitCounts {
    /// All of them.
    pub total: u64,
    /// Port reads and writes, by port.
    pub ports: BTreeMap<u16, u64>,
    /// Accesses to the PCI configuration space, by function (`00:01.0`).
    pub pci_config: BTreeMap<String, u64>,
    /// Other memory accesses, by address.
    pub addresses: BTreeMap<u64, u64>,
    /// Memory accesses beyond the addresses that are counted apart.
    pub other_addresses: u64,
    /// Neither port nor memory, by KVM's name: `signal`, `halt`.
    pub other: BTreeMap<String, u64>,
}

impl ExitCounts {
    /// Counts a port access.
    pub(crate) fn port(&mut self, port: u16) {
        self.total += 1;
        *self.ports.entry(port).or_default() += 1;
    }

    /// Counts an access to a function's configuration space.
    pub(crate) fn config(&mut self, device: u8, function: u8) {
        self.total += 1;
        *self.pci_config.entry(format!("00:{device:02x}.{function}")).or_default() += 1;
    }

    /// Counts an access to memory that is not RAM.
    pub(crate) fn address(&mut self, address: u64) {
        self.total += 1;
        if self.addresses.len() < MAX_COUNTED || self.addresses.contains_key(&address) {
            *self.addresses.entry(address).or_default() += 1;
        } else {
            self.other_addresses += 1;
        }
    }

    /// Counts any other exit.
    pub(crate) fn other(&mut self, name: &str) {
        self.total += 1;
        *self.other.entry(name.to_owned()).or_default() += 1;
    }

    /// Adds another processor's counts.
    pub(crate) fn merge(&mut self, more: &Self) {
        self.total += more.total;
        for (key, count) in &more.ports {
            *self.ports.entry(*key).or_default() += count;
        }
        for (key, count) in &more.pci_config {
            *self.pci_config.entry(key.clone()).or_default() += count;
        }
        for (key, count) in &more.addresses {
            *self.addresses.entry(*key).or_default() += count;
        }
        self.other_addresses += more.other_addresses;
        for (key, count) in &more.other {
            *self.other.entry(key.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_touches_many_addresses_does_not_grow_the_counts_without_bound() {
        let mut counts = ExitCounts::default();
        for address in 0..3 * MAX_COUNTED as u64 {
            counts.address(address * 8);
        }
        assert_eq!(counts.addresses.len(), MAX_COUNTED);
        assert_eq!(counts.other_addresses, 2 * MAX_COUNTED as u64);
        assert_eq!(counts.total, 3 * MAX_COUNTED as u64);
    }

    #[test]
    fn a_report_survives_json() {
        let mut exits = ExitCounts::default();
        exits.port(0x600);
        exits.config(1, 0);
        exits.address(0x1000);
        let report = MachineReport {
            exit: MachineExit::Crashed { reason: "x".into() },
            exits: Some(exits),
            vcpu_cpu_micros: vec![1],
        };
        let text = serde_json::to_string(&report).expect("plain data serialises");
        assert_eq!(serde_json::from_str::<MachineReport>(&text).expect("and comes back"), report);
    }
}

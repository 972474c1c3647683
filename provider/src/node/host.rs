//! What the host is and has. How much it has may change while the daemon runs: memory and processors are plugged in and taken out, disks grow.

use std::io;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use tokio::sync::watch;

use super::KUBELET_VERSION;
use crate::{
    config::{Config, Reserved},
    desired::Amounts,
    quantity::Quantity,
    readings,
};

/// How much the host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stock {
    /// All of it.
    pub capacity: Amounts,
    /// Less the reserve.
    pub allocatable: Amounts,
}

impl Stock {
    /// Of so many processors and bytes of memory and disk.
    fn of(cpus: u64, memory: u64, disk: u64, reserved: &Reserved) -> Self {
        let capacity = Amounts {
            cpu: Quantity::millis(cpus * 1000),
            memory: Quantity::bytes(memory),
            storage: Quantity::bytes(disk),
        };
        Self::keeping(capacity, reserved)
    }

    /// Of a host of which only this is held for us, the reserve included.
    fn held(self, held: Amounts, reserved: &Reserved) -> Self {
        Self::keeping(self.capacity.min(held), reserved)
    }

    fn keeping(capacity: Amounts, reserved: &Reserved) -> Self {
        let allocatable = capacity.minus(reserved.amounts());
        Self { capacity, allocatable }
    }

    /// As it is now: processors that the daemon may use (its affinity and its control group count), memory that the kernel has, the file system of the
    /// state directory.
    ///
    /// `held` is what of it is ours, on a [shared](crate::shared) host; nothing as long as that is not known.
    ///
    /// # Errors
    /// When /proc or the file system does not answer.
    pub fn measure(config: &Config, held: Option<Amounts>) -> io::Result<Self> {
        let cpus = std::thread::available_parallelism()?.get() as u64;
        let memory = readings::memory()?.total;
        if memory == 0 {
            return Err(io::Error::other("/proc/meminfo has no MemTotal"));
        }
        let disk = readings::disk(&config.state_dir)?.capacity;
        let all = Self::of(cpus, memory, disk, &config.reserved);
        Ok(match &config.shared {
            None => all,
            Some(_) => all.held(held.unwrap_or_default(), &config.reserved),
        })
    }

    /// What has changed from `before`, for people; nothing if all is the same.
    pub fn news(&self, before: &Self) -> Option<String> {
        let (old, new) = (before.capacity, self.capacity);
        let all = [
            ("cpu", old.cpu, new.cpu),
            ("memory", old.memory, new.memory),
            ("ephemeral-storage", old.storage, new.storage),
        ];
        let changed = all.into_iter().filter(|(_, old, new)| old != new);
        let words: Vec<_> = changed.map(|(what, old, new)| format!("{what} {old} is now {new}")).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// What the host is.
#[derive(Debug)]
pub struct Host {
    /// How much it has; whoever holds the other end sees it change.
    pub stock: watch::Sender<Stock>,
    /// Versions and identifiers.
    pub info: NodeSystemInfo,
}

impl Host {
    /// Looks at the host.
    ///
    /// # Errors
    /// When it does not say how much it has.
    pub fn measure(config: &Config) -> io::Result<Self> {
        let uname = rustix::system::uname();
        let line = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
        let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let info = NodeSystemInfo {
            architecture: "amd64".into(),
            operating_system: "linux".into(),
            kernel_version: uname.release().to_string_lossy().into_owned(),
            os_image: os
                .lines()
                .find_map(|l| l.strip_prefix("PRETTY_NAME="))
                .unwrap_or("Linux")
                .trim_matches('"')
                .into(),
            container_runtime_version: format!("kvmlet://{}", env!("CARGO_PKG_VERSION")),
            kubelet_version: KUBELET_VERSION.into(),
            machine_id: line("/etc/machine-id"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            system_uuid: line("/sys/class/dmi/id/product_uuid"),
            ..NodeSystemInfo::default()
        };
        Ok(Self {
            stock: watch::Sender::new(Stock::measure(config, None)?),
            info,
        })
    }

    /// Looks again how much there is, of which so much is `held` for us; what has changed, for people.
    ///
    /// # Errors
    /// When the host does not say; what was known stays.
    pub fn look(&self, config: &Config, held: Option<Amounts>) -> io::Result<Option<String>> {
        let now = Stock::measure(config, held)?;
        let news = now.news(&self.stock.borrow());
        if news.is_some() {
            self.stock.send_replace(now);
        }
        Ok(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_kept_for_the_host_is_not_given_also_where_it_has_become_less() {
        let reserved = Reserved::default();
        let stock = |memory| Stock::of(2, memory, 8 * GIB, &reserved).allocatable.memory.value();
        assert_eq!(stock(4 * GIB), 4 * GIB - (512 << 20));
        assert_eq!(stock(256 << 20), 0);
    }

    #[test]
    fn of_a_shared_host_there_is_what_is_held_less_the_reserve_and_never_more_than_the_host_has() {
        let reserved = Reserved::default();
        let of = |held| Stock::of(4, 4 * GIB, 8 * GIB, &reserved).held(Amounts::read(held), &reserved);
        let stock = of([1500, 2 * GIB, 80 * GIB]);
        assert_eq!(
            (stock.capacity.cpu.milli_value(), stock.allocatable.cpu.milli_value()),
            (1500, 1500)
        );
        assert_eq!(
            (stock.capacity.memory.value(), stock.allocatable.memory.value()),
            (2 * GIB, 1536 << 20)
        );
        assert_eq!(
            (stock.capacity.storage.value(), stock.allocatable.storage.value()),
            (8 * GIB, 7 * GIB)
        );
        assert_eq!(of([0, 0, 0]), Stock::default());
    }

    #[test]
    fn what_comes_and_goes_is_told_and_nothing_else() {
        let of = |cpus, memory| Stock::of(cpus, memory, 8 * GIB, &Reserved::default());
        assert_eq!(of(2, 4 * GIB).news(&of(2, 4 * GIB)), None);
        assert_eq!(of(4, 4 * GIB).news(&of(2, 4 * GIB)).as_deref(), Some("cpu 2 is now 4"));
        let less = of(1, 3 * GIB).news(&of(2, 4 * GIB));
        assert_eq!(less.as_deref(), Some("cpu 2 is now 1, memory 4Gi is now 3Gi"));
    }
}

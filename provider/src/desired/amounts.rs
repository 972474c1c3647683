//! How much of what a node gives.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::quantity::Quantity;

/// Amounts of what a node gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Processors.
    pub cpu: Quantity,
    /// Bytes.
    pub memory: Quantity,
    /// Bytes.
    pub storage: Quantity,
}

impl Amounts {
    pub(crate) fn read([cpu, memory, storage]: [u64; 3]) -> Self {
        Self {
            cpu: Quantity::millis(cpu),
            memory: Quantity::bytes(memory),
            storage: Quantity::bytes(storage),
        }
    }

    /// As the API writes them; what is not there is zero.
    pub(crate) fn of(map: &BTreeMap<String, ApiQuantity>) -> Self {
        let get = |name| map.get(name).map(Quantity::of).unwrap_or_default();
        Self {
            cpu: get("cpu"),
            memory: get("memory"),
            storage: get("ephemeral-storage"),
        }
    }

    /// Those that there are, as the API writes them.
    pub fn to_api(self) -> BTreeMap<String, ApiQuantity> {
        let all = [("cpu", self.cpu), ("memory", self.memory), ("ephemeral-storage", self.storage)];
        let set = all.into_iter().filter(|(_, amount)| *amount != Quantity::default());
        set.map(|(name, amount)| (name.to_owned(), amount.to_api())).collect()
    }

    fn each(self, other: Self, of: impl Fn(Quantity, Quantity) -> Quantity) -> Self {
        Self {
            cpu: of(self.cpu, other.cpu),
            memory: of(self.memory, other.memory),
            storage: of(self.storage, other.storage),
        }
    }

    /// The sum of each.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.each(other, Quantity::plus)
    }

    /// Each that is not zero, else the other's.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.each(other, |own, other| if own == Quantity::default() { other } else { own })
    }

    /// What each is more than the other's.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.each(other, Quantity::minus)
    }

    /// The smaller of each.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        self.each(other, Ord::min)
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.each(other, Ord::max)
    }
}

//! Message-signalled interrupts as irqfds: numbers (GSIs), their routes in KVM, and the eventfds behind them. The pins of
//! the architecture's own controller keep their numbers; nothing else has one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::board;
use crate::lock::lock;

/// What a vector writes, and where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// The interrupts of a machine.
pub(crate) struct Interrupts {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

struct Routes {
    next: u32,
    /// Numbers below that nobody has any more.
    free: Vec<u32>,
    messages: BTreeMap<u32, Message>,
}

impl Interrupts {
    /// No message routed yet.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            routes: Mutex::new(Routes {
                next: board::PINS,
                free: Vec::new(),
                messages: BTreeMap::new(),
            }),
        }
    }

    /// A number that nobody else has.
    pub(crate) fn allocate(&self) -> u32 {
        let mut routes = lock(&self.routes);
        if let Some(gsi) = routes.free.pop() {
            return gsi;
        }
        routes.next += 1;
        routes.next - 1
    }

    /// Somebody else may have a number whose eventfd is detached.
    pub(crate) fn release(&self, gsi: u32) {
        let mut routes = lock(&self.routes);
        routes.messages.remove(&gsi);
        routes.free.push(gsi);
    }

    /// Says what `gsi` sends.
    pub(crate) fn route(&self, gsi: u32, message: Message) -> Result<(), kvm_ioctls::Error> {
        let mut routes = lock(&self.routes);
        if routes.messages.insert(gsi, message) == Some(message) {
            return Ok(());
        }
        let pins = (0..board::PINS).map(board::pin);
        let messages = routes.messages.iter().map(|(gsi, message)| message_entry(*gsi, *message));
        let entries: Vec<_> = pins.chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries).expect("31 functions have fewer vectors than KVM has routes");
        self.vm.set_gsi_routing(&table).inspect_err(|_| {
            routes.messages.remove(&gsi);
        })
    }

    /// Lets the eventfd raise `gsi`. What was signalled before is raised now.
    pub(crate) fn attach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), kvm_ioctls::Error> {
        self.vm.register_irqfd(eventfd, gsi)
    }

    /// The eventfd raises nothing any more; signals stay in its counter.
    pub(crate) fn detach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), kvm_ioctls::Error> {
        self.vm.unregister_irqfd(eventfd, gsi)
    }
}

fn message_entry(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

//! Gives the pod's network interfaces their names, addresses, routes and neighbours.

use std::fs;
use std::io;
use std::net::IpAddr;

use kvmlet_protocol::{ErrorKind, Failure, Interface};

use crate::device::wait_for;
use crate::failure::{Attempt, fail};
use crate::netlink::Netlink;

const CLASS: &str = "/sys/class/net";

/// Configures all of them, and the loopback.
pub(crate) fn configure(interfaces: &[Interface]) -> Result<(), Failure> {
    let netlink = Netlink::open().attempt("open a netlink socket")?;
    let loopback = index_of("lo").ok_or_else(|| fail(ErrorKind::Internal, "the guest has no loopback interface"))?;
    netlink.up(loopback, 0).attempt("bring the loopback up")?;
    interfaces.iter().try_for_each(|interface| configure_one(&netlink, interface))
}

fn configure_one(netlink: &Netlink, wanted: &Interface) -> Result<(), Failure> {
    let name = &wanted.name;
    let (found, index) = wait_for(|| by_mac(wanted.mac))
        .ok_or_else(|| fail(ErrorKind::Internal, format!("no interface with the address of {name} appeared")))?;
    if found != *name {
        netlink.rename(index, name).attempt(format_args!("rename {found} to {name}"))?;
    }
    netlink.up(index, wanted.mtu).attempt(format_args!("bring {name} up"))?;
    for address in &wanted.addresses {
        let what = format!("add {address} to {name}");
        netlink
            .address(index, address.parse::<crate::netlink::Prefix>().attempt(&what)?)
            .attempt(&what)?;
    }
    for neighbour in &wanted.neighbours {
        let what = format!("add neighbour {} to {name}", neighbour.address);
        netlink
            .neighbour(index, address(&neighbour.address).attempt(&what)?, neighbour.mac)
            .attempt(&what)?;
    }
    for route in &wanted.routes {
        let what = format!("add the route to {} by {name}", route.destination);
        let gateway = if route.gateway.is_empty() {
            None
        } else {
            Some(address(&route.gateway).attempt(&what)?)
        };
        netlink
            .route(index, route.destination.parse::<crate::netlink::Prefix>().attempt(&what)?, gateway)
            .attempt(&what)?;
    }
    Ok(())
}

fn address(text: &str) -> io::Result<IpAddr> {
    text.parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} is not an address")))
}

fn index_of(name: &str) -> Option<u32> {
    fs::read_to_string(format!("{CLASS}/{name}/ifindex")).ok()?.trim().parse().ok()
}

fn by_mac(mac: [u8; 6]) -> Option<(String, u32)> {
    let [a, b, c, d, e, f] = mac;
    let wanted = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    for entry in fs::read_dir(CLASS).ok()?.flatten() {
        let name = entry.file_name().into_string().ok()?;
        if fs::read_to_string(entry.path().join("address")).is_ok_and(|address| address.trim() == wanted) {
            return Some((name.clone(), index_of(&name)?));
        }
    }
    None
}

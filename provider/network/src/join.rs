//! Owns how a pod's interface is joined to its tap, inside the pod's namespace: every frame that arrives at one leaves by
//! the other, by two tc redirects at ingress. No bridge between them, so segmentation offload passes through.
//!
//! The address stays on the pod's interface although the guest owns it: the plugins' CHECK and DEL look for it there,
//! and the namespace's own network stack never sees a frame, since the redirect takes each before it.

use std::io;
use std::os::fd::OwnedFd;

use futures_util::TryStreamExt;
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use rtnetlink::{Handle, LinkUnspec};

use crate::netns::NetnsError;
use crate::rtnl::{self, Link, RtnlError, attempt};

/// Name of the tap in every pod's namespace.
pub(crate) const TAP: &str = "tap0";

/// All protocols (ETH_P_ALL), as tc's header wants it: in network order.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();

/// Parent of the filters of an ingress queueing discipline.
const INGRESS: u32 = 0xffff_0000;

/// Why a pod's interface is not joined to a tap.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The namespace.
    #[error("cannot visit the pod's namespace")]
    Visit(#[from] NetnsError),
    /// The tap.
    #[error("cannot open the tap {TAP}")]
    OpenTap(#[source] io::Error),
    /// Interfaces, queueing disciplines, filters.
    #[error("cannot join the pod's interface to its tap")]
    Netlink(#[from] RtnlError),
    /// Found by a check.
    #[error("the redirect from {0} to its partner is gone")]
    NoRedirect(String),
}

/// A joined interface.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
    pub(crate) tap: OwnedFd,
    pub(crate) more_queues: Vec<OwnedFd>,
}

/// Joins `interface` to a new tap of so many queues, one at least, in the calling thread's namespace.
pub(crate) fn join(interface: &str, queues: usize) -> Result<Joined, JoinError> {
    let mut opened = vmm_lib::tap::open_tap_queues(TAP, queues).map_err(JoinError::OpenTap)?.into_iter();
    let tap = opened.next().expect("a tap has a queue");
    rtnl::block_on(async |handle| {
        let inner = rtnl::link(&handle, interface).await?;
        let outer = rtnl::link(&handle, TAP).await?;
        handle
            .link()
            .set(LinkUnspec::new_with_index(outer.index).mtu(inner.mtu).up().build())
            .execute()
            .await
            .map_err(attempt(format!("set {TAP} up")))?;
        redirect(&handle, &inner, &outer).await?;
        redirect(&handle, &outer, &inner).await?;
        Ok(Joined {
            mac: inner.mac,
            mtu: inner.mtu,
            tap,
            more_queues: opened.collect(),
        })
    })
}

/// Is `interface` still joined to its tap, in the calling thread's namespace?
pub(crate) fn check(interface: &str) -> Result<(), JoinError> {
    rtnl::block_on(async |handle| {
        for name in [interface, TAP] {
            let index = index(&rtnl::link(&handle, name).await?);
            let filters: Vec<TcMessage> = handle
                .traffic_filter(index)
                .get()
                .ingress()
                .execute()
                .try_collect()
                .await
                .map_err(attempt(format!("list the filters of {name}")))?;
            let redirects = filters.iter().any(|filter| {
                filter
                    .attributes
                    .iter()
                    .any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "u32"))
            });
            if !redirects {
                return Err(JoinError::NoRedirect(name.to_owned()));
            }
        }
        Ok(())
    })
}

async fn redirect(handle: &Handle, from: &Link, to: &Link) -> Result<(), RtnlError> {
    let (source, target) = (index(from), to.index);
    handle
        .qdisc()
        .add(source)
        .ingress()
        .execute()
        .await
        .map_err(attempt(format!("give interface {source} an ingress queue")))?;
    let what = || format!("redirect interface {source} to {target}");
    handle
        .traffic_filter(source)
        .add()
        .parent(INGRESS)
        .protocol(ALL_PROTOCOLS)
        .redirect(target)
        .map_err(attempt(what()))?
        .execute()
        .await
        .map_err(attempt(what()))
}

/// tc counts interfaces with a sign, rtnetlink's links without.
fn index(link: &Link) -> i32 {
    i32::try_from(link.index).expect("the kernel numbers interfaces with positive ints")
}

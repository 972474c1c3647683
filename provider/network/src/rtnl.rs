//! Owns the few netlink look-ups that more than one module needs, and a session on a thread without a runtime.

use std::future::Future;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::Handle;

/// Why a netlink session failed.
#[derive(Debug, thiserror::Error)]
pub enum RtnlError {
    /// No socket, or no runtime for it.
    #[error("cannot open a netlink session")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("netlink cannot {attempt}")]
    Request {
        /// What was asked.
        attempt: String,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// No such interface.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The kernel left out what every interface has.
    #[error("interface {0} has no Ethernet address or no MTU")]
    NoEthernet(String),
}

/// What is asked of an interface here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
}

/// Names what was attempted, for an error of rtnetlink.
pub(crate) fn attempt(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> RtnlError {
    let attempt = what.into();
    move |source| RtnlError::Request { attempt, source }
}

/// Opens a session in the calling thread's network namespace, served by the runtime around it.
pub(crate) fn open() -> Result<Handle, RtnlError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(RtnlError::Open)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Runs `work` to its end on the calling thread, with a session in that thread's network namespace.
pub(crate) fn block_on<T, E, F>(work: impl FnOnce(Handle) -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
    E: From<RtnlError>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(RtnlError::Open)?;
    runtime.block_on(async { work(open()?).await })
}

/// The interface `name`.
pub(crate) async fn link(handle: &Handle, name: &str) -> Result<Link, RtnlError> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(Some(message)) => facts(&message, name),
        Ok(None) => Err(RtnlError::NoInterface(name.to_owned())),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -(nix::errno::Errno::ENODEV as i32) => {
            Err(RtnlError::NoInterface(name.to_owned()))
        }
        Err(source) => Err(attempt(format!("find interface {name}"))(source)),
    }
}

/// The interface that has `address`.
pub(crate) async fn link_with(handle: &Handle, address: IpAddr) -> Result<Link, RtnlError> {
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(attempt("list addresses"))? {
        let own = message
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, AddressAttribute::Address(found) | AddressAttribute::Local(found) if *found == address));
        if own {
            let index = message.header.index;
            let name = format!("number {index}");
            let found = handle.link().get().match_index(index).execute().try_next().await;
            return match found.map_err(attempt(format!("find interface {name}")))? {
                Some(message) => facts(&message, &name),
                None => Err(RtnlError::NoInterface(name)),
            };
        }
    }
    Err(RtnlError::NoInterface(format!("with address {address}")))
}

fn facts(message: &LinkMessage, name: &str) -> Result<Link, RtnlError> {
    let mut mac = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(value) => mtu = Some(*value),
            _ => {}
        }
    }
    match (mac, mtu) {
        (Some(mac), Some(mtu)) => Ok(Link {
            index: message.header.index,
            mac,
            mtu,
        }),
        _ => Err(RtnlError::NoEthernet(name.to_owned())),
    }
}

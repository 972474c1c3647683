//! Which version of the remote command protocol a client and this server have in common.

/// How the outcome of a command is told on the error stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFormat {
    /// v4: a JSON `Status`, always.
    Json,
    /// v1 to v3: text, only if something failed.
    Text,
}

/// A version over SPDY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpdyProtocol {
    /// Its name in `X-Stream-Protocol-Version`.
    pub name: &'static str,
    /// How it tells the outcome.
    pub status: StatusFormat,
    /// Whether a terminal has a resize stream.
    pub resize: bool,
}

/// The versions over SPDY, the newest first.
pub const SPDY_PROTOCOLS: [SpdyProtocol; 4] = [
    SpdyProtocol {
        name: "v4.channel.k8s.io",
        status: StatusFormat::Json,
        resize: true,
    },
    SpdyProtocol {
        name: "v3.channel.k8s.io",
        status: StatusFormat::Text,
        resize: true,
    },
    SpdyProtocol {
        name: "v2.channel.k8s.io",
        status: StatusFormat::Text,
        resize: false,
    },
    SpdyProtocol {
        name: "channel.k8s.io",
        status: StatusFormat::Text,
        resize: false,
    },
];

/// The first of the client's `offers` (header values, each maybe a list) that is known. No offer means v1.
pub fn spdy<'a>(offers: impl Iterator<Item = &'a str>) -> Option<SpdyProtocol> {
    let mut offered = false;
    for name in list(offers) {
        offered = true;
        if let Some(known) = SPDY_PROTOCOLS.iter().find(|known| known.name == name) {
            return Some(*known);
        }
    }
    if offered { None } else { SPDY_PROTOCOLS.last().copied() }
}

/// A version over WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WebSocketProtocol {
    /// Its name in `Sec-WebSocket-Protocol`; empty if the client offered none.
    pub name: &'static str,
    /// Whether payloads are base64 in text messages.
    pub base64: bool,
    /// Whether the client can end one channel.
    pub half_close: bool,
    /// How it tells the outcome.
    pub status: StatusFormat,
}

const fn websocket_protocol(name: &'static str, base64: bool, half_close: bool, json: bool) -> WebSocketProtocol {
    let status = if json { StatusFormat::Json } else { StatusFormat::Text };
    WebSocketProtocol {
        name,
        base64,
        half_close,
        status,
    }
}

/// The versions over WebSocket.
pub const WEBSOCKET_PROTOCOLS: [WebSocketProtocol; 6] = [
    websocket_protocol("v5.channel.k8s.io", false, true, true),
    websocket_protocol("v4.channel.k8s.io", false, false, true),
    websocket_protocol("v4.base64.channel.k8s.io", true, false, true),
    websocket_protocol("channel.k8s.io", false, false, false),
    websocket_protocol("base64.channel.k8s.io", true, false, false),
    websocket_protocol("", false, false, false),
];

/// The first of the client's `offers` that is known. No offer means binary channels and text status.
pub fn websocket<'a>(offers: impl Iterator<Item = &'a str>) -> Option<WebSocketProtocol> {
    let known = |name: &str| WEBSOCKET_PROTOCOLS.iter().find(|known| known.name == name).copied();
    let mut names = list(offers).peekable();
    if names.peek().is_none() {
        return known("");
    }
    names.find_map(known)
}

/// The version of forwarded ports over SPDY.
pub const PORT_FORWARD: &str = "portforward.k8s.io";
/// The same inside a WebSocket (KEP-4006).
pub const PORT_FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// The versions of forwarded ports over the channels of a WebSocket.
pub const PORT_FORWARD_CHANNELS: [&str; 3] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];

/// Whether `name` is among the client's `offers`. No offer means yes.
pub fn knows<'a>(offers: impl Iterator<Item = &'a str>, name: &str) -> bool {
    let mut offers = list(offers).peekable();
    offers.peek().is_none() || offers.any(|offer| offer == name)
}

/// The first of the client's `offers` that is known for forwarded ports. No offer means binary channels.
pub fn port_forward_websocket<'a>(offers: impl Iterator<Item = &'a str>) -> Option<WebSocketProtocol> {
    let mut names = list(offers).peekable();
    if names.peek().is_none() {
        return websocket(std::iter::empty());
    }
    let name = names.find(|name| PORT_FORWARD_CHANNELS.contains(name))?;
    websocket([name].into_iter())
}

fn list<'a>(values: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_known_spdy_version_is_taken() {
        let table: &[(&[&str], Option<&str>)] = &[
            (&["v4.channel.k8s.io", "v3.channel.k8s.io"], Some("v4.channel.k8s.io")),
            (
                &["v5.channel.k8s.io, v3.channel.k8s.io", "v4.channel.k8s.io"],
                Some("v3.channel.k8s.io"),
            ),
            (&["v2.channel.k8s.io"], Some("v2.channel.k8s.io")),
            (&[], Some("channel.k8s.io")),
            (&["v9.channel.k8s.io"], None),
        ];
        for (offers, expected) in table {
            assert_eq!(spdy(offers.iter().copied()).map(|protocol| protocol.name), *expected, "{offers:?}");
        }
    }

    #[test]
    fn forwarded_ports_have_versions_of_their_own() {
        assert!(knows(["portforward.k8s.io"].into_iter(), PORT_FORWARD));
        assert!(knows([].into_iter(), PORT_FORWARD), "kubectl of old offered none");
        assert!(!knows(["v4.channel.k8s.io"].into_iter(), PORT_FORWARD));
        let chosen = |offers: &[&'static str]| port_forward_websocket(offers.iter().copied()).map(|protocol| protocol.name);
        assert_eq!(chosen(&["v5.channel.k8s.io", "v4.channel.k8s.io"]), Some("v4.channel.k8s.io"));
        assert_eq!(chosen(&[]), Some(""));
        assert_eq!(chosen(&["channel.k8s.io"]), None);
    }

    #[test]
    fn the_clients_first_known_websocket_version_is_taken() {
        let table: &[(&[&str], Option<&str>)] = &[
            (&["v5.channel.k8s.io"], Some("v5.channel.k8s.io")),
            (
                &["chat, v4.base64.channel.k8s.io, channel.k8s.io"],
                Some("v4.base64.channel.k8s.io"),
            ),
            (&[], Some("")),
            (&["chat"], None),
        ];
        for (offers, expected) in table {
            assert_eq!(
                websocket(offers.iter().copied()).map(|protocol| protocol.name),
                *expected,
                "{offers:?}"
            );
        }
    }
}

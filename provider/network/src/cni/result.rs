//! Owns the typed view of an ADD's result (CNI 1.0.0). The raw value is what is handed on to the next plugin: this view
//! drops what it does not know.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::CniError;

/// What a chain of plugins answered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddResult {
    /// Interfaces made, on the host and in the namespace.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Addresses given.
    #[serde(default)]
    pub ips: Vec<Address>,
    /// Routes of the pod.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as the plugin writes it.
    #[serde(default)]
    pub mac: String,
    /// The namespace it lies in; absent or empty: the host's.
    #[serde(default)]
    pub sandbox: String,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Address {
    /// The address with its prefix length.
    pub address: IpNet,
    /// Gateway of its network.
    pub gateway: Option<IpAddr>,
    /// Index into [`AddResult::interfaces`].
    pub interface: Option<usize>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// Next hop; absent: the gateway of the address.
    pub gw: Option<IpAddr>,
}

impl AddResult {
    /// Reads a raw result.
    ///
    /// # Errors
    ///
    /// When a field has another form than version 1.0.0 gives it.
    pub fn parse(raw: &Value) -> Result<Self, CniError> {
        Self::deserialize(raw).map_err(CniError::ReadResult)
    }

    /// The addresses of the interface `name` inside the namespace; an address without an interface counts as its.
    #[must_use]
    pub fn addresses_of(&self, name: &str) -> Vec<&Address> {
        self.ips
            .iter()
            .filter(|address| match address.interface.map(|index| self.interfaces.get(index)) {
                None => true,
                Some(Some(interface)) => interface.name == name && !interface.sandbox.is_empty(),
                Some(None) => false,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bridge_plugins_answer_is_read() {
        let result = AddResult::parse(&json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "kvmlet0", "mac": "aa:aa:aa:aa:aa:aa" },
                { "name": "veth1", "mac": "aa:aa:aa:aa:aa:ab" },
                { "name": "eth0", "mac": "aa:aa:aa:aa:aa:ac", "sandbox": "/run/netns/x" }
            ],
            "ips": [{ "address": "10.244.1.5/24", "gateway": "10.244.1.1", "interface": 2 }],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dns": {}
        }))
        .unwrap();
        let addresses = result.addresses_of("eth0");
        assert_eq!(addresses.len(), 1);
        assert_eq!(addresses[0].address.to_string(), "10.244.1.5/24");
        assert_eq!(addresses[0].gateway.unwrap().to_string(), "10.244.1.1");
        assert_eq!(result.routes[0].gw, None);
    }

    #[test]
    fn an_address_of_another_interface_is_not_the_pods() {
        let result = AddResult::parse(&json!({
            "interfaces": [{ "name": "eth0" }],
            "ips": [{ "address": "10.0.0.1/24", "interface": 0 }, { "address": "10.0.0.2/24", "interface": 7 }]
        }))
        .unwrap();
        assert!(result.addresses_of("eth0").is_empty());
    }

    #[test]
    fn an_address_without_prefix_is_refused() {
        let raw = json!({ "ips": [{ "address": "10.0.0.1" }] });
        assert!(matches!(AddResult::parse(&raw), Err(CniError::ReadResult(_))));
    }
}

//! Owns the order in which a list's plugins run and what each is told (pure; [`super::exec`] runs them).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add,
    /// Is the attachment still as it was made?
    Check,
    /// Detach; succeeds when there is nothing.
    Del,
}

impl Command {
    /// As CNI_COMMAND says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
        }
    }
}

/// A network: plugins that run as a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigList {
    /// `cniVersion` of the list.
    #[serde(rename = "cniVersion")]
    pub version: String,
    /// The network's name.
    pub name: String,
    /// The plugins' configurations, in the order of ADD.
    pub plugins: Vec<Value>,
}

/// One container on one network: what the plugins get besides their configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_NETNS.
    pub netns: PathBuf,
    /// CNI_IFNAME.
    pub interface: String,
    /// CNI_ARGS, in order.
    pub args: Vec<(String, String)>,
    /// Arguments by capability; a plugin gets those it declares.
    pub runtime_config: Map<String, Value>,
}

impl Attachment {
    /// The variables a plugin is started with, but for CNI_COMMAND and CNI_PATH. Without `netns` (it is gone) a DEL
    /// still frees what lies outside it.
    pub(super) fn environment(&self, netns: Option<&Path>) -> Vec<(&'static str, String)> {
        let args: Vec<String> = self.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![
            ("CNI_CONTAINERID", self.container_id.clone()),
            ("CNI_NETNS", netns.map(|path| path.display().to_string()).unwrap_or_default()),
            ("CNI_IFNAME", self.interface.clone()),
            ("CNI_ARGS", args.join(";")),
        ]
    }
}

impl ConfigList {
    /// The plugins' configurations in the order in which `command` runs them.
    pub(super) fn in_order(&self, command: Command) -> Vec<&Value> {
        match command {
            Command::Add | Command::Check => self.plugins.iter().collect(),
            Command::Del => self.plugins.iter().rev().collect(),
        }
    }

    /// What one plugin reads on its standard input.
    pub(super) fn stdin_of(&self, plugin: &Value, attachment: &Attachment, previous: Option<&Value>) -> Value {
        let mut config = plugin.as_object().cloned().unwrap_or_default();
        config.insert("cniVersion".to_owned(), self.version.clone().into());
        config.insert("name".to_owned(), self.name.clone().into());
        let declared: Map<String, Value> = attachment
            .runtime_config
            .iter()
            .filter(|(capability, _)| plugin["capabilities"][capability.as_str()] == Value::Bool(true))
            .map(|(capability, value)| (capability.clone(), value.clone()))
            .collect();
        if !declared.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(declared));
        }
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(config)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list() -> ConfigList {
        ConfigList {
            version: "1.0.0".to_owned(),
            name: "net".to_owned(),
            plugins: vec![
                json!({ "type": "bridge" }),
                json!({ "type": "portmap", "capabilities": { "portMappings": true, "other": false } }),
            ],
        }
    }

    fn attachment() -> Attachment {
        let mut runtime_config = Map::new();
        runtime_config.insert("portMappings".to_owned(), json!([{ "hostPort": 80 }]));
        runtime_config.insert("other".to_owned(), json!(1));
        Attachment {
            container_id: "uid".to_owned(),
            netns: PathBuf::from("/run/netns/x"),
            interface: "eth0".to_owned(),
            args: vec![
                ("IgnoreUnknown".to_owned(), "1".to_owned()),
                ("K8S_POD_NAME".to_owned(), "web".to_owned()),
            ],
            runtime_config,
        }
    }

    fn types(plugins: &[&Value]) -> Vec<String> {
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn detaching_runs_the_chain_backwards() {
        assert_eq!(types(&list().in_order(Command::Add)), ["bridge", "portmap"]);
        assert_eq!(types(&list().in_order(Command::Check)), ["bridge", "portmap"]);
        assert_eq!(types(&list().in_order(Command::Del)), ["portmap", "bridge"]);
    }

    #[test]
    fn a_plugin_gets_only_the_runtime_configuration_it_declares() {
        let list = list();
        let bridge = list.stdin_of(&list.plugins[0], &attachment(), None);
        assert_eq!(bridge, json!({ "type": "bridge", "cniVersion": "1.0.0", "name": "net" }));
        let previous = json!({ "ips": [] });
        let portmap = list.stdin_of(&list.plugins[1], &attachment(), Some(&previous));
        assert_eq!(portmap["runtimeConfig"], json!({ "portMappings": [{ "hostPort": 80 }] }));
        assert_eq!(portmap["prevResult"], previous);
    }

    #[test]
    fn the_environment_names_the_pod_and_leaves_a_lost_namespace_empty() {
        let environment = attachment().environment(None);
        assert!(environment.contains(&("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web".to_owned())));
        assert!(environment.contains(&("CNI_NETNS", String::new())));
    }
}

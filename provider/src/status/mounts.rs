//! What a container that has run has mounted, as its status says it (KEP-3857; the kubelet's convertToAPIContainerStatuses).

use k8s_openapi::api::core::v1::{Container, VolumeMountStatus};

/// In the order of the specification. What is mounted read-only is so in all that lies below: no volume of a guest has mounts in it.
pub(super) fn of(spec: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = spec.volume_mounts.iter().flatten().map(|mount| {
        let read_only = mount.read_only == Some(true);
        let wished = matches!(mount.recursive_read_only.as_deref(), Some("IfPossible" | "Enabled"));
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| if wished { "Enabled" } else { "Disabled" }.to_owned()),
            ..VolumeMountStatus::default()
        }
    });
    Some(mounts.collect::<Vec<_>>()).filter(|mounts| !mounts.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mounts_say_whether_they_are_read_only_through_and_through() {
        let spec: Container = serde_json::from_value(json!({"name": "c", "volumeMounts": [
            {"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/b", "readOnly": true},
            {"name": "c", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "IfPossible"}]}))
        .unwrap();
        assert_eq!(
            serde_json::to_value(of(&spec)).unwrap(),
            json!([{"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "Disabled"},
                {"name": "c", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "Enabled"}])
        );
        assert_eq!(of(&Container::default()), None);
    }
}

//! How much containers' last words may take of a pod's status, all together (the kubelet's normalizeStatus).

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

/// Bytes for all containers of a pod (its MaxPodTerminationMessageLogLength).
const ALL: usize = 12 << 10;

/// Cuts the termination messages of each container, of how it is and of how it last ended, to an equal share.
pub(super) fn share(status: &mut PodStatus) {
    let lists = [
        &mut status.init_container_statuses,
        &mut status.container_statuses,
        &mut status.ephemeral_container_statuses,
    ];
    let all: Vec<&mut ContainerStatus> = lists.into_iter().flatten().flatten().collect();
    let most = ALL / all.len().max(1);
    let states = all.into_iter().flat_map(|one| [&mut one.state, &mut one.last_state]);
    for message in states.flatten().filter_map(|state| state.terminated.as_mut()?.message.as_mut()) {
        message.truncate(message.floor_char_boundary(most));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(containers: usize, message: &str) -> Vec<usize> {
        let one = json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"terminated": {"exitCode": 1, "message": message}}, "lastState": {"terminated": {"exitCode": 1, "message": message}}});
        let mut status: PodStatus = serde_json::from_value(json!({"initContainerStatuses": [one],
            "containerStatuses": vec![one.clone(); containers - 1]}))
        .unwrap();
        share(&mut status);
        let lists = [status.init_container_statuses, status.container_statuses];
        let states = lists.into_iter().flatten().flatten().flat_map(|one| [one.state, one.last_state]);
        states
            .map(|state| state.unwrap().terminated.unwrap().message.unwrap().len())
            .collect()
    }

    #[test]
    fn containers_share_12_kib_for_their_last_words() {
        let long = "x".repeat(4096);
        assert_eq!(said(3, &long), [4096; 6]);
        assert_eq!(said(4, &long), [3072; 8]);
        assert_eq!(said(5, &"é".repeat(2000)), [2456; 10], "no letter is cut in two");
        assert_eq!(said(5, "short"), [5; 10]);
    }
}

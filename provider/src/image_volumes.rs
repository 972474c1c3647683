//! Volumes that are the files of an image (KEP-4639): which a pod has, who mounts them, what is missing. Pure. An image volume is pulled as a
//! container's image is, and reaches the machine as that does.

use std::collections::BTreeMap;

use crate::{
    desired::{DesiredContainer, DesiredPod, PullPolicy},
    lower,
    state::{ImageState, PodState},
};

/// A volume of a pod that is an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageVolume<'a> {
    /// The volume's name.
    pub volume: &'a str,
    /// The image as the pod names it.
    pub reference: &'a str,
    /// When to pull.
    pub pull: PullPolicy,
}

/// Those of a pod, in the order of its volumes: the order of [`PodState::volume_images`].
pub fn all(pod: &DesiredPod) -> impl Iterator<Item = ImageVolume<'_>> {
    pod.volumes().iter().filter_map(|volume| {
        let image = volume.image.as_ref()?;
        Some(ImageVolume {
            volume: &volume.name,
            reference: image.reference.as_deref().unwrap_or_default(),
            pull: PullPolicy::read(image.pull_policy.as_deref()),
        })
    })
}

/// Why a container that waits cannot have an image volume that it mounts, as reason and message. It is told before what its own image lacks, and of several
/// the last one, as with the kubelet (toKubeContainerImageVolumes).
pub fn missing<'a>(pod: &DesiredPod, state: &'a PodState, container: &DesiredContainer) -> Option<(&'a str, &'a str)> {
    let mounts = pod.spec_of(container).volume_mounts.as_deref().unwrap_or_default();
    let named = all(pod).map(|own| own.volume).zip(&state.volume_images);
    let of_volumes: BTreeMap<&str, &ImageState> = named.collect();
    let mut mounted = mounts.iter().filter_map(|mount| of_volumes.get(mount.name.as_str())?.failure());
    mounted.next_back()
}

/// The devices of the machine that have the volumes' images, by the volumes' names; `images` are the machine's in the order of their devices.
pub fn devices(pod: &DesiredPod, volume_images: &[String], images: &[String]) -> BTreeMap<String, String> {
    let number = |id: &String| images.iter().position(|image| image == id);
    let found = all(pod).zip(volume_images);
    let named = found.filter_map(|(own, id)| Some((own.volume.to_owned(), lower::image_name(number(id)?))));
    named.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn pod() -> DesiredPod {
        let volumes = json!([{"name": "e", "emptyDir": {}}, {"name": "v", "image": {"reference": "r", "pullPolicy": "Never"}},
            {"name": "w", "image": {"reference": "s:1", "pullPolicy": "IfNotPresent"}}]);
        let mount = json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "e", "mountPath": "/e"}]});
        let pod = json!({"spec": {"containers": [mount, {"name": "d"}], "volumes": volumes}});
        let (pod, refusal) = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap()));
        assert_eq!(refusal, None);
        pod
    }

    #[test]
    fn image_volumes_are_found_with_their_reference_and_policy() {
        let pod = pod();
        let found: Vec<_> = all(&pod).map(|own| (own.volume, own.reference, own.pull)).collect();
        assert_eq!(found, [("v", "r", PullPolicy::Never), ("w", "s:1", PullPolicy::IfNotPresent)]);
    }

    #[test]
    fn each_volume_is_on_the_device_of_its_image() {
        let images = ["a", "b"].map(str::to_owned);
        let found = devices(&pod(), &["b".to_owned(), "a".to_owned()], &images);
        let named: Vec<_> = found.iter().map(|(volume, device)| (volume.as_str(), device.as_str())).collect();
        assert_eq!(named, [("v", "img1"), ("w", "img0")]);
    }

    #[test]
    fn who_mounts_an_image_that_cannot_be_had_waits_for_it_and_nobody_else() {
        let pod = pod();
        let mut state = PodState::new(&pod, None, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(state.volume_images, [ImageState::Wanted, ImageState::Wanted]);
        let now = jiff::Timestamp::UNIX_EPOCH;
        state.volume_images[0] = ImageState::Failed {
            reason: "ErrImageNeverPull".into(),
            message: "m".into(),
            at: now,
            not_before: now,
            attempts: 1,
        };
        assert_eq!(missing(&pod, &state, &pod.containers[0]), Some(("ErrImageNeverPull", "m")));
        assert_eq!(missing(&pod, &state, &pod.containers[1]), None);
    }
}

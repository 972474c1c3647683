//! Images that the Node lists, for a scheduler that prefers nodes which have them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ContainerImage;
use kvmlet_image::PulledImage;

/// Most images that the status lists.
const MAX_IMAGES: usize = 50;

/// The largest images, each with all its names (pkg/kubelet/nodestatus, Images).
pub(super) fn listed(all: Vec<PulledImage>) -> Vec<ContainerImage> {
    let mut by_id: BTreeMap<String, (u64, BTreeSet<String>)> = BTreeMap::new();
    for image in all {
        let (size, names) = by_id.entry(image.id).or_default();
        *size = image.size;
        names.extend([image.image_id, image.reference]);
    }
    let mut listed: Vec<_> = by_id.into_values().collect();
    listed.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    let one = |(size, names): (u64, BTreeSet<String>)| ContainerImage {
        names: Some(names.into_iter().collect()),
        size_bytes: i64::try_from(size).ok(),
    };
    listed.into_iter().take(MAX_IMAGES).map(one).collect()
}

#[cfg(test)]
mod tests {
    use kvmlet_image::{ImageConfig, ImageDevice};

    use super::*;

    #[test]
    fn an_image_is_listed_once_with_all_its_names_the_largest_first() {
        let image = |id: &str, reference: &str, size| PulledImage {
            reference: reference.into(),
            digest: format!("sha256:{id}"),
            image_id: format!("registry/{id}@sha256:{id}"),
            id: id.into(),
            size,
            config: ImageConfig::default(),
            device: ImageDevice {
                extents: Vec::new(),
                size: 0,
            },
        };
        let listed = listed(vec![
            image("a", "registry/a:1", 5),
            image("b", "registry/b:1", 7),
            image("a", "registry/a:2", 5),
        ]);
        let names: Vec<_> = listed.iter().map(|one| (one.names.clone().unwrap(), one.size_bytes)).collect();
        let expected = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            names,
            [
                (expected(&["registry/b:1", "registry/b@sha256:b"]), Some(7)),
                (expected(&["registry/a:1", "registry/a:2", "registry/a@sha256:a"]), Some(5)),
            ]
        );
    }
}

//! Volumes of a pod: what the guest is to make of each, and the files of those that come from the API server. What they are made of is
//! gathered first ([`Material`]); what becomes of it is pure.

mod files;
mod inputs;

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Volume;
use kvmlet_protocol::{VolumeKind, VolumeSpec};

pub use self::{
    files::{content, wishes},
    inputs::{Delivered, Inputs, inputs},
};
use crate::{
    desired::DesiredPod,
    downward::Facts,
    host_path::Shared,
    objects::{Object, ObjectError, PodObjects, Reference, refer},
    quantity::Quantity,
    token::{Token, Wish},
};

/// What volumes are made of, besides the pod itself.
#[derive(Debug, Clone, Default)]
pub struct Material {
    /// Config maps and secrets; nothing where one does not exist. One that is not in here is not known.
    pub objects: BTreeMap<Reference, Option<Arc<Object>>>,
    /// Tokens.
    pub tokens: BTreeMap<Wish, Token>,
}

/// Whether a volume's files come from the API server, and follow it.
pub fn is_of_files(volume: &Volume) -> bool {
    volume.config_map.is_some() || volume.secret.is_some() || volume.downward_api.is_some() || volume.projected.is_some()
}

/// The sentence of a FailedMount event.
pub fn failed(volume: &str, message: &str) -> String {
    format!("MountVolume.SetUp failed for volume {volume:?} : {message}")
}

/// All volumes, resolved, with those of the host as they are shared and those of images on their devices, and what they were made of; the error is the
/// sentence of a FailedMount event.
pub async fn resolve(
    pod: &DesiredPod,
    facts: &Facts,
    objects: &PodObjects,
    shared: &[Shared],
    devices: &BTreeMap<String, String>,
) -> Result<(Vec<VolumeSpec>, Delivered, BTreeMap<Wish, Token>), String> {
    let group = pod
        .pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref())
        .and_then(|s| s.fs_group)
        .and_then(|g| u32::try_from(g).ok());
    let (mut specs, mut material, mut delivered) = (Vec::new(), Material::default(), Delivered::default());
    for volume in pod.volumes() {
        let (kind, group) = if let Some(shared) = shared.iter().find(|shared| shared.volume == volume.name) {
            let (tag, file) = (shared.tag.clone(), shared.file);
            // Owners of files of the host stay, as under the kubelet.
            (VolumeKind::Share { tag, file }, None)
        } else if let Some(device) = devices.get(&volume.name) {
            (VolumeKind::Image { device: device.clone() }, None)
        } else if let Some(empty) = &volume.empty_dir {
            let size = empty.size_limit.as_ref().map(Quantity::of).unwrap_or_default().value();
            let in_memory = empty.medium.as_deref() == Some("Memory");
            let kind = if in_memory {
                VolumeKind::Memory { size }
            } else {
                VolumeKind::Directory
            };
            (kind, group)
        } else {
            let why = |message: String| failed(&volume.name, &message);
            gather(pod, volume, objects, &mut material).await.map_err(why)?;
            let content = content(pod, volume, facts, &material).map_err(why)?;
            delivered.volumes.extend(
                inputs(pod, volume, facts, &material.objects, &issues(&material.tokens)).map(|inputs| (volume.name.clone(), inputs)),
            );
            (VolumeKind::Files(content), group)
        };
        specs.push(VolumeSpec {
            name: volume.name.clone(),
            kind,
            group,
        });
    }
    delivered.set_tokens(&issues(&material.tokens));
    Ok((specs, delivered, material.tokens))
}

/// When each token was had.
pub fn issues(tokens: &BTreeMap<Wish, Token>) -> BTreeMap<Wish, crate::token::Issue> {
    tokens.iter().map(|(wish, token)| (wish.clone(), token.issue)).collect()
}

/// Fetches what a volume is made of.
async fn gather(pod: &DesiredPod, volume: &Volume, objects: &PodObjects, material: &mut Material) -> Result<(), String> {
    for reference in refer::of_volume(&pod.namespace, volume) {
        if material.objects.contains_key(&reference) {
            continue;
        }
        let found = match objects.object(&reference).await {
            Ok(object) => Some(object),
            Err(ObjectError::NotFound { .. }) => None,
            Err(error) => return Err(error.to_string()),
        };
        material.objects.insert(reference, found);
    }
    for wish in wishes(volume) {
        if material.tokens.contains_key(&wish) {
            continue;
        }
        let token = objects.token(&pod.pod, &wish).await;
        let token = token.map_err(|e| format!("failed to fetch token: {e}"))?;
        material.tokens.insert(wish, token);
    }
    Ok(())
}

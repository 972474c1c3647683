//! Volumes of a pod: what the guest is to make of each, and the files of those that come from the API server.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume};
use kvmlet_protocol::{File, VolumeContent, VolumeKind, VolumeSpec};

use crate::{
    desired::DesiredPod,
    downward::{self, Facts},
    host_path::Shared,
    objects::{Entries, ObjectError, Objects},
    quantity::Quantity,
};

/// Mode of a file when nothing says otherwise.
const DEFAULT_MODE: i32 = 0o644;
/// Seconds that a service account token lives when nothing says otherwise.
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// All volumes, resolved, with those of the host as they are shared; the error is the sentence of a FailedMount event.
pub async fn resolve(pod: &DesiredPod, facts: &Facts, objects: &Objects, shared: &[Shared]) -> Result<Vec<VolumeSpec>, String> {
    let group = pod
        .pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref())
        .and_then(|s| s.fs_group)
        .and_then(|g| u32::try_from(g).ok());
    let mut specs = Vec::new();
    for volume in pod.volumes() {
        if let Some(shared) = shared.iter().find(|shared| shared.volume == volume.name) {
            let (tag, file) = (shared.tag.clone(), shared.file);
            specs.push(VolumeSpec {
                name: volume.name.clone(),
                kind: VolumeKind::Share { tag, file },
                // Owners of files of the host stay, as under the kubelet.
                group: None,
            });
            continue;
        }
        let kind = kind(pod, volume, facts, objects)
            .await
            .map_err(|message| format!("MountVolume.SetUp failed for volume {:?} : {message}", volume.name))?;
        specs.push(VolumeSpec {
            name: volume.name.clone(),
            kind,
            group,
        });
    }
    Ok(specs)
}

async fn kind(pod: &DesiredPod, volume: &Volume, facts: &Facts, objects: &Objects) -> Result<VolumeKind, String> {
    if let Some(empty) = &volume.empty_dir {
        let size = empty.size_limit.as_ref().map(Quantity::of).unwrap_or_default().value();
        return Ok(if empty.medium.as_deref() == Some("Memory") {
            VolumeKind::Memory { size }
        } else {
            VolumeKind::Directory
        });
    }
    let mut files = Files::default();
    if let Some(source) = &volume.config_map {
        let entries = maybe(objects.config_map(&pod.namespace, &source.name).await, source.optional)?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files.entries(entries, source.items.as_deref(), mode, source.optional, &source.name)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let entries = maybe(objects.secret(&pod.namespace, name).await, source.optional)?;
        files.entries(
            entries,
            source.items.as_deref(),
            source.default_mode.unwrap_or(DEFAULT_MODE),
            source.optional,
            name,
        )?;
    } else if let Some(source) = &volume.downward_api {
        files.downward(
            pod,
            facts,
            source.items.as_deref().unwrap_or_default(),
            source.default_mode.unwrap_or(DEFAULT_MODE),
        )?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(s) = &source.config_map {
                let entries = maybe(objects.config_map(&pod.namespace, &s.name).await, s.optional)?;
                files.entries(entries, s.items.as_deref(), mode, s.optional, &s.name)?;
            } else if let Some(s) = &source.secret {
                let entries = maybe(objects.secret(&pod.namespace, &s.name).await, s.optional)?;
                files.entries(entries, s.items.as_deref(), mode, s.optional, &s.name)?;
            } else if let Some(s) = &source.downward_api {
                files.downward(pod, facts, s.items.as_deref().unwrap_or_default(), mode)?;
            } else if let Some(s) = &source.service_account_token {
                let seconds = s.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
                let token = objects
                    .token(&pod.pod, s.audience.as_deref(), seconds)
                    .await
                    .map_err(|e| e.to_string())?;
                // Readable by its user alone, as the kubelet's projected volume does, when the pod names one user for all.
                let run_as = single_user(pod);
                let fs_group = pod
                    .pod
                    .spec
                    .as_ref()
                    .and_then(|s| s.security_context.as_ref())
                    .and_then(|s| s.fs_group);
                let token_mode = if run_as.is_some() && fs_group.is_none() { 0o600 } else { mode };
                files.put(&s.path, token.into_bytes(), token_mode, run_as.filter(|_| fs_group.is_none()));
            } else {
                return Err("a projected source is of a kind that this node does not know".into());
            }
        }
    } else {
        return Err("it is of a kind that this node does not know".into());
    }
    Ok(VolumeKind::Files(VolumeContent {
        files: files.0.into_values().collect(),
    }))
}

/// The one user that all containers run as, if the pod says so.
fn single_user(pod: &DesiredPod) -> Option<u32> {
    let of_pod = pod
        .pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref())
        .and_then(|s| s.run_as_user);
    let mut users = pod
        .containers
        .iter()
        .map(|c| pod.spec_of(c).security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next().flatten()?;
    users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn maybe(result: Result<Entries, ObjectError>, optional: Option<bool>) -> Result<Entries, String> {
    match result {
        Err(ObjectError::NotFound { .. }) if optional == Some(true) => Ok(Entries::new()),
        other => other.map_err(|e| e.to_string()),
    }
}

/// Files by path: a later source wins.
#[derive(Default)]
struct Files(BTreeMap<String, File>);

impl Files {
    fn put(&mut self, path: &str, data: Vec<u8>, mode: i32, uid: Option<u32>) {
        let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
        self.0.insert(
            path.to_owned(),
            File {
                path: path.to_owned(),
                mode,
                uid,
                data,
            },
        );
    }

    fn entries(
        &mut self,
        mut entries: Entries,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
        name: &str,
    ) -> Result<(), String> {
        let Some(items) = items.filter(|i| !i.is_empty()) else {
            for (key, data) in entries {
                self.put(&key, data, mode, None);
            }
            return Ok(());
        };
        for item in items {
            match entries.get_mut(&item.key) {
                Some(data) => self.put(&item.path, data.clone(), item.mode.unwrap_or(mode), None),
                None if optional == Some(true) => {}
                None => return Err(format!("references non-existent config key: {} of {name:?}", item.key)),
            }
        }
        Ok(())
    }

    fn downward(&mut self, pod: &DesiredPod, facts: &Facts, items: &[DownwardAPIVolumeFile], mode: i32) -> Result<(), String> {
        for item in items {
            let value = if let Some(field) = &item.field_ref {
                downward::field(&pod.pod, facts, &field.field_path)?
            } else if let Some(selector) = &item.resource_field_ref {
                downward::resource(pod, &pod.containers[0], facts, selector)?
            } else {
                return Err(format!("item {:?} has no source", item.path));
            };
            self.put(&item.path, value.into_bytes(), item.mode.unwrap_or(mode), None);
        }
        Ok(())
    }
}

//! The files of a volume, from what it is made of. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMapProjection, DownwardAPIVolumeFile, KeyToPath, SecretProjection, Volume};
use kvmlet_protocol::{File, VolumeContent};

use super::Material;
use crate::{
    desired::DesiredPod,
    downward::{self, Facts},
    objects::{Kind, Reference},
    token::Wish,
};

/// Mode of a file when nothing says otherwise.
const DEFAULT_MODE: i32 = 0o644;

/// The tokens that a volume holds.
pub fn wishes(volume: &Volume) -> BTreeSet<Wish> {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    let tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    tokens.map(|t| Wish::new(t.audience.as_deref(), t.expiration_seconds)).collect()
}

/// What a volume of files holds; the error says what is missing, in the kubelet's words.
pub fn content(pod: &DesiredPod, volume: &Volume, facts: &Facts, material: &Material) -> Result<VolumeContent, String> {
    let mut files = Files {
        pod,
        facts,
        material,
        by_path: BTreeMap::new(),
    };
    if let Some(source) = volume.config_map.clone() {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files.config_map(
            &ConfigMapProjection {
                name: source.name,
                items: source.items,
                optional: source.optional,
            },
            mode,
        )?;
    } else if let Some(source) = volume.secret.clone() {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files.secret(
            &SecretProjection {
                name: source.secret_name.unwrap_or_default(),
                items: source.items,
                optional: source.optional,
            },
            mode,
        )?;
    } else if let Some(source) = &volume.downward_api {
        files.downward(source.items.as_deref(), source.default_mode.unwrap_or(DEFAULT_MODE))?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                files.config_map(source, mode)?;
            } else if let Some(source) = &source.secret {
                files.secret(source, mode)?;
            } else if let Some(source) = &source.downward_api {
                files.downward(source.items.as_deref(), mode)?;
            } else if let Some(source) = &source.service_account_token {
                let wish = Wish::new(source.audience.as_deref(), source.expiration_seconds);
                files.token(&source.path, &wish, mode)?;
            } else {
                return Err("a projected source is of a kind that this node does not know".into());
            }
        }
    } else {
        return Err("it is of a kind that this node does not know".into());
    }
    Ok(VolumeContent {
        files: files.by_path.into_values().collect(),
    })
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

/// Files by path: a later source wins.
struct Files<'a> {
    pod: &'a DesiredPod,
    facts: &'a Facts,
    material: &'a Material,
    by_path: BTreeMap<String, File>,
}

impl Files<'_> {
    fn put(&mut self, path: &str, data: Vec<u8>, mode: i32, uid: Option<u32>) {
        let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
        self.by_path.insert(
            path.to_owned(),
            File {
                path: path.to_owned(),
                mode,
                uid,
                data,
            },
        );
    }

    fn config_map(&mut self, source: &ConfigMapProjection, mode: i32) -> Result<(), String> {
        self.entries(Kind::ConfigMap, &source.name, source.items.as_deref(), source.optional, mode)
    }

    fn secret(&mut self, source: &SecretProjection, mode: i32) -> Result<(), String> {
        self.entries(Kind::Secret, &source.name, source.items.as_deref(), source.optional, mode)
    }

    fn entries(&mut self, kind: Kind, name: &str, items: Option<&[KeyToPath]>, optional: Option<bool>, mode: i32) -> Result<(), String> {
        let optional = optional == Some(true);
        let object = match self.material.objects.get(&Reference::new(kind, &self.pod.namespace, name)) {
            Some(Some(object)) => object,
            Some(None) if optional => return Ok(()),
            Some(None) => return Err(format!("{} {name:?} not found", kind.word())),
            None => return Err(format!("{} {name:?} is not known yet", kind.word())),
        };
        let Some(items) = items.filter(|i| !i.is_empty()) else {
            for (key, data) in object.text.iter().chain(&object.binary) {
                self.put(key, data.clone(), mode, None);
            }
            return Ok(());
        };
        for item in items {
            match object.text.get(&item.key).or_else(|| object.binary.get(&item.key)) {
                Some(data) => self.put(&item.path, data.clone(), item.mode.unwrap_or(mode), None),
                None if optional => {}
                None => {
                    let what = if kind == Kind::Secret { "secret" } else { "config" };
                    return Err(format!("references non-existent {what} key: {} of {name:?}", item.key));
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: Option<&[DownwardAPIVolumeFile]>, mode: i32) -> Result<(), String> {
        for item in items.unwrap_or_default() {
            let value = value(self.pod, self.facts, item)?;
            self.put(&item.path, value.into_bytes(), item.mode.unwrap_or(mode), None);
        }
        Ok(())
    }

    fn token(&mut self, path: &str, wish: &Wish, mode: i32) -> Result<(), String> {
        let token = self.material.tokens.get(wish).ok_or("failed to fetch token: there is none yet")?;
        // Readable by its user alone, as the kubelet's projected volume does, when the pod names one user for all.
        let run_as = single_user(self.pod);
        let security = self.pod.pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let fs_group = security.and_then(|s| s.fs_group);
        let mode = if run_as.is_some() && fs_group.is_none() { 0o600 } else { mode };
        self.put(path, token.value.clone().into_bytes(), mode, run_as.filter(|_| fs_group.is_none()));
        Ok(())
    }
}

/// What a file of the downward API says.
pub(super) fn value(pod: &DesiredPod, facts: &Facts, item: &DownwardAPIVolumeFile) -> Result<String, String> {
    if let Some(field) = &item.field_ref {
        downward::field(&pod.pod, facts, &field.field_path)
    } else if let Some(selector) = &item.resource_field_ref {
        downward::resource(pod, &pod.containers[0], facts, selector)
    } else {
        Err(format!("item {:?} has no source", item.path))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::objects::{Entries, Object};

    fn pod(volume: Value) -> DesiredPod {
        let pod =
            json!({"metadata": {"namespace": "n", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}], "volumes": [volume]}});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    }

    fn object(entries: &[(&str, &str)]) -> Option<Arc<Object>> {
        let text = entries.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec()));
        Some(Arc::new(Object {
            version: "u/1".into(),
            immutable: false,
            text: text.collect(),
            binary: Entries::new(),
        }))
    }

    fn held(volume: Value, objects: &[(Kind, &str, Option<Arc<Object>>)]) -> Result<Vec<(String, String)>, String> {
        let pod = pod(volume);
        let objects = objects
            .iter()
            .map(|(kind, name, object)| (Reference::new(*kind, "n", name), object.clone()));
        let material = Material {
            objects: objects.collect(),
            ..Material::default()
        };
        let content = content(&pod, &pod.volumes()[0], &Facts::default(), &material)?;
        let text = |file: File| (file.path, String::from_utf8(file.data).unwrap());
        Ok(content.files.into_iter().map(text).collect())
    }

    fn pairs(expected: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        Ok(expected.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect())
    }

    #[test]
    fn a_volume_holds_all_entries_or_the_named_ones() {
        let map = [(Kind::ConfigMap, "m", object(&[("a", "1"), ("b", "2")]))];
        assert_eq!(
            held(json!({"name": "v", "configMap": {"name": "m"}}), &map),
            pairs(&[("a", "1"), ("b", "2")])
        );
        let named = json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "b", "path": "deep/down"}]}});
        assert_eq!(held(named, &map), pairs(&[("deep/down", "2")]));
    }

    #[test]
    fn what_does_not_exist_is_missed_unless_it_is_optional() {
        let absent = [(Kind::Secret, "s", None)];
        assert_eq!(
            held(json!({"name": "v", "secret": {"secretName": "s"}}), &absent),
            Err("secret \"s\" not found".into())
        );
        assert_eq!(
            held(json!({"name": "v", "secret": {"secretName": "s", "optional": true}}), &absent),
            pairs(&[])
        );
        let present = [(Kind::Secret, "s", object(&[("a", "1")]))];
        let items = |optional: bool| json!({"name": "v", "secret": {"secretName": "s", "optional": optional, "items": [{"key": "x", "path": "x"}]}});
        assert_eq!(held(items(true), &present), pairs(&[]));
        assert!(held(items(false), &present).unwrap_err().contains("non-existent secret key: x"));
    }

    #[test]
    fn a_later_source_of_a_projection_wins() {
        let volume = json!({"name": "v", "projected": {"sources": [
            {"configMap": {"name": "m"}}, {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}}]}});
        let objects = [
            (Kind::ConfigMap, "m", object(&[("a", "map"), ("app", "map")])),
            (Kind::Secret, "s", object(&[("a", "secret")])),
        ];
        assert_eq!(held(volume, &objects), pairs(&[("a", "secret"), ("app", "web")]));
    }
}

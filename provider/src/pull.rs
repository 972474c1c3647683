//! An image that a pod needs: policy, credentials, progress in events.

use std::sync::Arc;

use kvmlet_image::{Credential, ImageReference, Keyring, PullError, PulledImage};

use crate::{
    act::chain,
    context::Context,
    desired::{DesiredPod, PullPolicy},
    events::Note,
    figures::on_images,
    image_volumes::ImageVolume,
    lifecycle::PullFailure,
    objects::PodObjects,
    state::{ImageFacts, PodState},
};

/// An image that is to be here.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// As the pod names it.
    pub image: String,
    /// When to pull.
    pub pull: PullPolicy,
    /// What of the pod it is for, as events name it; the pod itself for a volume.
    pub field: Option<String>,
}

impl Wanted {
    /// A container's, by its number.
    pub fn container(desired: &DesiredPod, index: usize) -> Self {
        let container = desired.at(index);
        Self {
            image: container.image.clone(),
            pull: container.pull,
            field: Some(container.field_path()),
        }
    }

    /// A volume's.
    pub fn volume(volume: ImageVolume<'_>) -> Self {
        Self {
            image: volume.reference.to_owned(),
            pull: volume.pull,
            field: None,
        }
    }
}

/// Has an image here, by its pull policy.
pub async fn pull(context: &Arc<Context>, objects: &PodObjects, desired: &DesiredPod, wanted: Wanted) -> Result<ImageFacts, PullFailure> {
    let had = on_images(have(context, objects, desired, wanted)).await;
    context.meters.image(match &had {
        Ok((_, true)) => "pulled",
        Ok((_, false)) => "present",
        Err(_) => "failed",
    });
    had.map(|(facts, _)| facts)
}

/// The same, and whether a registry was asked for it.
async fn have(
    context: &Arc<Context>,
    objects: &PodObjects,
    desired: &DesiredPod,
    wanted: Wanted,
) -> Result<(ImageFacts, bool), PullFailure> {
    let image = &wanted.image;
    let tell = |note: Note| context.recorder.pod(&desired.pod, note);
    let field = || wanted.field.clone();
    // A name that is none is told before any registry is asked.
    let reference: ImageReference = image.parse().map_err(|e: PullError| failure(&e))?;
    let mut credentials = None;
    let mut local = None;
    if wanted.pull != PullPolicy::Always
        && let Some(found) = context.images.get(image)
    {
        // Secrets are read only where they matter.
        let mut may_use = context.images.may_use(image, &[]);
        if !may_use {
            let own = self::credentials(context, objects, desired, &reference).await;
            may_use = context.images.may_use(image, &own);
            credentials = Some(own);
        }
        // To a pod that has not shown that it may have it the image is not there (KEP-2535).
        local = may_use.then_some(found);
    }
    match (wanted.pull, local) {
        (PullPolicy::IfNotPresent | PullPolicy::Never, Some(local)) => {
            tell(Note::normal(
                "Pulled",
                field(),
                format!("Container image {image:?} already present on machine"),
            ));
            return Ok((facts(context, local), false));
        }
        (PullPolicy::Never, None) => {
            let message = format!("Container image {image:?} is not present with pull policy of Never");
            tell(Note::warning("ErrImageNeverPull", field(), message.clone()));
            return Err(PullFailure {
                reason: "ErrImageNeverPull",
                message,
            });
        }
        (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => {}
    }
    tell(Note::normal("Pulling", field(), format!("Pulling image {image:?}")));
    let begun = std::time::Instant::now();
    let credentials = match credentials {
        Some(credentials) => credentials,
        None => self::credentials(context, objects, desired, &reference).await,
    };
    let pulled = context.images.pull(image, &credentials, |_| {}).await.map_err(|e| failure(&e))?;
    context.meters.pulled(begun.elapsed());
    let message = format!(
        "Successfully pulled image {image:?} in {:.3?}. Image size: {} bytes.",
        begun.elapsed(),
        pulled.size
    );
    tell(Note::normal("Pulled", field(), message));
    Ok((facts(context, pulled), true))
}

fn facts(context: &Context, image: PulledImage) -> ImageFacts {
    context.image_uses.note(&image.id);
    ImageFacts {
        reference: image.reference,
        digest: image.image_id,
        id: image.id,
        size: image.size,
    }
}

fn failure(error: &PullError) -> PullFailure {
    let reason = match error.waiting_reason() {
        "InvalidImageName" => "InvalidImageName",
        _ => "ErrImagePull",
    };
    PullFailure {
        reason,
        message: chain(error),
    }
}

/// Credentials of the pod's imagePullSecrets; one that is missing is told, and the pull goes on without it, as the kubelet's does.
async fn credentials(context: &Arc<Context>, objects: &PodObjects, desired: &DesiredPod, image: &ImageReference) -> Vec<Credential> {
    let mut keyring = Keyring::default();
    let references = desired
        .pod
        .spec
        .as_ref()
        .and_then(|s| s.image_pull_secrets.as_deref())
        .unwrap_or_default();
    for secret in references {
        let note = |message: String| {
            context
                .recorder
                .pod(&desired.pod, Note::warning("FailedToRetrieveImagePullSecret", None, message))
        };
        let entries = match objects.secret(&desired.namespace, &secret.name).await {
            Ok(entries) => entries,
            Err(error) => {
                let what = "attempting to pull the image may not succeed";
                note(format!(
                    "Unable to retrieve some image pull secrets ({}); {what}: {error}",
                    secret.name
                ));
                continue;
            }
        };
        let added = match (entries.get(".dockerconfigjson"), entries.get(".dockercfg")) {
            (Some(data), _) => keyring.add_docker_config_json(data),
            (None, Some(data)) => keyring.add_docker_cfg(data),
            (None, None) => {
                note(format!(
                    "image pull secret {} holds neither .dockerconfigjson nor .dockercfg",
                    secret.name
                ));
                continue;
            }
        };
        if let Err(error) = added {
            note(format!("image pull secret {} cannot be used: {error}", secret.name));
        }
    }
    keyring.lookup(image)
}

/// The signal that asks a container to end: its own, else its image's, else SIGTERM.
pub fn stop_signal(context: &Context, desired: &DesiredPod, state: &PodState, container: usize) -> i32 {
    if let Some(own) = desired.at(container).stop_signal.as_deref().and_then(signal_number) {
        return own;
    }
    let Some(id) = state.at(container).image.id() else {
        return 15;
    };
    let name = context.images.get(id).map(|i| i.config.stop_signal).unwrap_or_default();
    signal_number(&name).unwrap_or(15)
}

/// `SIGQUIT`, `QUIT`, `3`, `RTMIN+3`.
fn signal_number(name: &str) -> Option<i32> {
    const NAMES: &[&str] = &[
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT",
        "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = name.trim().to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('+')?.parse::<i32>().ok()?
        };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    NAMES.iter().position(|n| *n == name).and_then(|i| i32::try_from(i + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn stop_signals_are_read_as_images_write_them() {
        for (name, number) in [
            ("SIGQUIT", Some(3)),
            ("TERM", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("", None),
            ("NOPE", None),
            ("99", None),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }
}

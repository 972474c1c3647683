//! `kvmlet enable` and `kvmlet disable`: the switch of a whole cluster, by the operator's kubeconfig. They write the KvmletRuntime; its controller, in the
//! webhook's pods, does the rest.

use std::{
    io::{self, BufRead, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use kvmlet_admission::{
    policy::virtual_nodes,
    refused::{is_outrun, unless_gone},
    runtime::{self, ASK, KvmletRuntime, NAME, decide::Seen, drain::has_to_leave},
};
use serde_json::{Value, json};

use crate::cli::{DisableArguments, EnableArguments};

/// What is said where the kind is missing.
const INSTALL: &str = "this cluster does not know KvmletRuntime: install the webhook first (kubectl apply -k manifests/webhook)";

/// Switches on; an error if it is on.
pub(crate) fn enable(arguments: &EnableArguments) -> anyhow::Result<ExitCode> {
    let use_emulation = arguments.use_emulation;
    run(async |client| {
        let spec = enabled(use_emulation);
        match find(&client).await? {
            Some(runtime) => {
                enabling(&runtime)?;
                replace(&client, &runtime, spec).await?;
            }
            None => {
                let switch = runtime::object::<KvmletRuntime>(NAME, spec);
                let made = runtime::api::<KvmletRuntime>(client).create(&PostParams::default(), &switch).await;
                made.context("make the KvmletRuntime")?;
            }
        }
        println!(
            "kvmlet is enabled: nodes take pods once their hosts have passed (kubectl get preflightchecks).\nTo wait for that: \
             kubectl wait --for=jsonpath='{{.status.ready}}'=true kvmletruntime/{NAME}"
        );
        Ok(())
    })
}

/// Switches off; an error if it is off, or if there are pods that nobody said to delete.
pub(crate) fn disable(arguments: &DisableArguments) -> anyhow::Result<ExitCode> {
    run(async |client| {
        let runtime = find(&client).await?;
        let pods = pods(&client).await?;
        let names: Vec<_> = pods.iter().map(name).collect();
        match disabling(runtime.as_ref(), &names, arguments.force)? {
            Step::Off => {}
            Step::Ask if has_agreed(&names, io::stdin().lock())? => {}
            Step::Ask => bail!("kvmlet stays enabled"),
            Step::Delete => {}
        }
        let runtime = runtime.context("there is a KvmletRuntime")?;
        // First, so that what replaces them goes elsewhere.
        replace(&client, &runtime, json!({"enabled": false})).await?;
        for pod in &pods {
            let its: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let done = its.delete(&pod.name_any(), &DeleteParams::default()).await;
            unless_gone(done).with_context(|| format!("delete pod {}", name(pod)))?;
        }
        match names.len() {
            0 => println!("kvmlet is disabled: its Nodes go, and come back when it is enabled."),
            count => println!("kvmlet is disabled: {count} pods are being deleted. Then its Nodes go, and come back when it is enabled."),
        }
        Ok(())
    })
}

fn run(what: impl AsyncFnOnce(Client) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::try_default().await.context("find the API server (KUBECONFIG)")?;
        what(client).await
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn find(client: &Client) -> anyhow::Result<Option<KvmletRuntime>> {
    let all = Api::<KvmletRuntime>::all(client.clone()).list(&ListParams::default()).await;
    match all {
        Ok(all) => Ok(all.items.into_iter().find(|one| one.name_any() == NAME)),
        Err(kube::Error::Api(status)) if status.code == 404 => bail!(INSTALL),
        Err(error) => Err(error).context("read the KvmletRuntime"),
    }
}

/// Changes the switch as it was seen; an error if somebody else has changed it since.
async fn replace(client: &Client, runtime: &KvmletRuntime, spec: Value) -> anyhow::Result<()> {
    let patch = json!({"metadata": {"resourceVersion": runtime.metadata.resource_version}, "spec": spec});
    let runtimes: Api<KvmletRuntime> = Api::all(client.clone());
    match runtimes.patch(NAME, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(error) if is_outrun(&error) => bail!("the KvmletRuntime is being changed by somebody else: try again"),
        other => other.context("write the KvmletRuntime").map(drop),
    }
}

/// The pods that would have to leave kvmlet's nodes.
async fn pods(client: &Client) -> anyhow::Result<Vec<Pod>> {
    let nodes = Api::<Node>::all(client.clone())
        .list(&ListParams::default().labels(&virtual_nodes()))
        .await
        .context("list nodes")?;
    let mut pods = Vec::new();
    for node in nodes.iter().filter_map(Seen::of) {
        let here = ListParams::default().fields(&format!("spec.nodeName={}", node.name));
        let all = Api::<Pod>::all(client.clone()).list(&here).await;
        pods.extend(all.context("list pods")?.into_iter().filter(has_to_leave));
    }
    Ok(pods)
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// An error if it is on its way out.
fn stays(runtime: &KvmletRuntime) -> anyhow::Result<()> {
    ensure!(
        runtime.metadata.deletion_timestamp.is_none(),
        "the KvmletRuntime is being deleted: try again when it is gone"
    );
    Ok(())
}

/// Whether it can be switched on.
fn enabling(runtime: &KvmletRuntime) -> anyhow::Result<()> {
    stays(runtime)?;
    if runtime.spec.enabled {
        bail!("kvmlet is enabled already");
    }
    Ok(())
}

/// What is written to switch on; what is not said here stays as it is.
fn enabled(use_emulation: Option<bool>) -> Value {
    let mut spec = json!({"enabled": true});
    if let Some(use_emulation) = use_emulation {
        spec["useEmulation"] = use_emulation.into();
    }
    spec
}

/// How it is switched off.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// At once: nobody is there.
    Off,
    /// With all pods deleted.
    Delete,
    /// Likewise, if whoever sits there agrees.
    Ask,
}

/// Whether it can be switched off while these pods are there, and how.
fn disabling(runtime: Option<&KvmletRuntime>, pods: &[String], force: bool) -> anyhow::Result<Step> {
    let Some(runtime) = runtime else {
        bail!("there is no KvmletRuntime: nobody has enabled kvmlet, and its nodes take pods without one (`kvmlet enable` makes it)");
    };
    stays(runtime)?;
    if !runtime.spec.enabled {
        bail!("kvmlet is disabled already");
    }
    let asks = runtime.annotations().get(ASK).is_some_and(|value| value == "true");
    match (pods.is_empty(), asks, force) {
        (true, ..) => Ok(Step::Off),
        (_, true, _) => Ok(Step::Ask),
        (_, false, true) => Ok(Step::Delete),
        (_, false, false) => bail!(
            "{} pods are on kvmlet's nodes: {}. Move them away, or delete them with --force",
            pods.len(),
            pods.join(", ")
        ),
    }
}

/// Asks whoever sits there.
fn has_agreed(pods: &[String], mut answers: impl BufRead) -> anyhow::Result<bool> {
    print!("{} pods are deleted: {}. Disable kvmlet? [y/N] ", pods.len(), pods.join(", "));
    io::stdout().flush().context("ask")?;
    let mut answer = String::new();
    answers.read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn switch(enabled: bool, annotations: Value) -> KvmletRuntime {
        let object = json!({"metadata": {"name": NAME, "annotations": annotations}, "spec": {"enabled": enabled}});
        serde_json::from_value(object).unwrap()
    }

    fn refusal<T: std::fmt::Debug>(done: anyhow::Result<T>) -> String {
        done.unwrap_err().to_string()
    }

    #[test]
    fn who_enables_twice_is_told() {
        assert!(enabling(&switch(false, json!({}))).is_ok());
        assert_eq!(refusal(enabling(&switch(true, json!({})))), "kvmlet is enabled already");
        let mut going = switch(false, json!({}));
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(refusal(enabling(&going)).contains("is being deleted"));
    }

    #[test]
    fn who_enables_again_keeps_what_was_said_of_emulation_unless_he_says_it_himself() {
        assert_eq!(enabled(None), json!({"enabled": true}));
        for said in [true, false] {
            assert_eq!(enabled(Some(said)), json!({"enabled": true, "useEmulation": said}));
        }
        let of = |words: &[&str]| match Cli::parse_from(words).command {
            Command::Enable(arguments) => arguments.use_emulation,
            other => panic!("{other:?}"),
        };
        assert_eq!(of(&["kvmlet", "enable"]), None);
        assert_eq!(of(&["kvmlet", "enable", "--use-emulation"]), Some(true));
        assert_eq!(of(&["kvmlet", "enable", "--use-emulation=false"]), Some(false));
    }

    #[test]
    fn pods_that_are_there_are_named_unless_they_may_be_deleted() {
        let (on, pods) = (switch(true, json!({})), ["a/b".to_owned(), "c/d".to_owned()]);
        let said = refusal(disabling(Some(&on), &pods, false));
        assert!(
            said.contains("2 pods are on kvmlet's nodes: a/b, c/d") && said.contains("--force"),
            "{said}"
        );
        assert_eq!(disabling(Some(&on), &pods, true).unwrap(), Step::Delete);
        assert_eq!(disabling(Some(&on), &[], false).unwrap(), Step::Off);
    }

    #[test]
    fn what_is_off_or_was_never_on_is_not_switched_off() {
        assert!(refusal(disabling(None, &[], true)).contains("there is no KvmletRuntime"));
        assert_eq!(
            refusal(disabling(Some(&switch(false, json!({}))), &[], true)),
            "kvmlet is disabled already"
        );
    }

    #[test]
    fn where_it_is_wished_somebody_has_to_agree_before_pods_are_deleted() {
        let (careful, pods) = (switch(true, json!({ASK: "true"})), ["a/b".to_owned()]);
        assert_eq!(disabling(Some(&careful), &pods, false).unwrap(), Step::Ask);
        assert_eq!(disabling(Some(&careful), &pods, true).unwrap(), Step::Ask);
        assert_eq!(disabling(Some(&careful), &[], false).unwrap(), Step::Off);
        assert_eq!(
            disabling(Some(&switch(true, json!({ASK: "no"}))), &pods, true).unwrap(),
            Step::Delete
        );
        for (answer, is_agreed) in [("y\n", true), ("yes\n", true), ("n\n", false), ("\n", false), ("", false)] {
            assert_eq!(has_agreed(&pods, answer.as_bytes()).unwrap(), is_agreed, "{answer:?}");
        }
    }
}

//! Images that no pod needs go when their disk is nearly full, those first that have been idle the longest: as the kubelet's image garbage
//! collector does (pkg/kubelet/images/image_gc_manager.go); and where the node says so, those that have been idle for too long go before that; copies that were made for who may not share them go with the last pod of their namespace. What is chosen is a pure function; when a use was is remembered by this daemon
//! alone, so after its restart every image counts as found then.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tracing::{info, warn};

use crate::{act::chain, config::ImageGc, context::Context, events::Note, kubelet::Pods, readings};

/// How often the disk is looked at (the kubelet's ImageGCPeriod).
const PERIOD: Duration = Duration::from_secs(300);

/// When images were last used, by id.
#[derive(Debug, Default)]
pub struct Uses(Mutex<HashMap<String, Timestamp>>);

impl Uses {
    /// A pod is about to need this image.
    pub fn note(&self, id: &str) {
        self.0.lock().expect("no holder panics").insert(id.to_owned(), Timestamp::now());
    }

    /// Images here, and those of them in use: notes both; answers with the idle ones and since when they are.
    fn idle(&self, here: &HashSet<String>, in_use: &HashSet<String>, now: Timestamp) -> Vec<(String, Timestamp)> {
        let mut last = self.0.lock().expect("no holder panics");
        last.retain(|id, _| here.contains(id));
        let mut idle = Vec::new();
        for id in here {
            let since = last.entry(id.clone()).or_insert(now);
            if in_use.contains(id) {
                *since = now;
            } else {
                idle.push((id.clone(), *since));
            }
        }
        idle
    }
}

/// The images that may go, in this order: idle for long enough, the longest first.
fn choose(mut idle: Vec<(String, Timestamp)>, now: Timestamp, min_age: SignedDuration) -> Vec<String> {
    idle.retain(|(_, since)| now.duration_since(*since) >= min_age);
    idle.sort_by(|(id, since), (other, after)| (since, id).cmp(&(after, other)));
    idle.into_iter().map(|(id, _)| id).collect()
}

/// Bytes to be freed of a file system of this capacity with so many available; none below the upper mark.
fn wanted(capacity: u64, available: u64, gc: &ImageGc) -> u64 {
    let used_percent = 100 - (u128::from(available) * 100 / u128::from(capacity.max(1))).min(100);
    if used_percent < u128::from(gc.high_threshold_percent) {
        return 0;
    }
    let free_at_low = u128::from(capacity) * (100 - u128::from(gc.low_threshold_percent)) / 100;
    u64::try_from(free_at_low).unwrap_or(u64::MAX).saturating_sub(available)
}

/// Looks at the disk for ever.
pub async fn keep(context: Arc<Context>, pods: Pods) {
    let mut ticks = tokio::time::interval(PERIOD);
    loop {
        ticks.tick().await;
        context.copies.sweep(&namespaces(&pods));
        if let Err(why) = collect(&context, &pods).await {
            warn!(why, "remove images that no pod needs");
            let name = &context.config.node_name;
            context.recorder.node(name, Note::warning("FreeDiskSpaceFailed", None, why));
        }
    }
}

/// Those of the pods of this node.
fn namespaces(pods: &Pods) -> BTreeSet<String> {
    let pods = pods.lock().expect("no holder panics");
    pods.values().map(|handle| handle.view.borrow().desired.namespace.clone()).collect()
}

/// Images that pods of this node need, by id.
fn in_use(pods: &Pods) -> HashSet<String> {
    let pods = pods.lock().expect("no holder panics");
    let views = pods.values().map(|handle| handle.view.borrow().clone());
    let needing = views.filter(|view| !view.state.released);
    needing
        .flat_map(|view| {
            let mut needed = view.state.needed_images(true);
            // A container may have gone on to another one, which its machine has all the same.
            needed.extend(view.state.device_images());
            needed
        })
        .collect()
}

/// Frees what is to be freed. The error says that there was not enough.
async fn collect(context: &Context, pods: &Pods) -> Result<(), String> {
    let gc = &context.config.images.gc;
    if gc.max_age_seconds > 0 {
        free(context, pods, u64::MAX, gc.max_age_seconds).await?;
    }
    let disk = readings::disk(context.images.dir()).map_err(|error| format!("look at the images' disk: {error}"))?;
    let wanted = wanted(disk.capacity, disk.available, gc);
    let freed = free(context, pods, wanted, gc.min_age_seconds).await?;
    if freed < wanted {
        return Err(format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
        ));
    }
    Ok(())
}

/// Removes all images that no pod needs, but none that has been idle for less than it may be; answers with their bytes (the kubelet's
/// DeleteUnusedImages).
///
/// # Errors
/// What keeps them from being removed, for people.
pub async fn remove_unneeded(context: &Context, pods: &Pods) -> Result<u64, String> {
    free(context, pods, u64::MAX, context.config.images.gc.min_age_seconds).await
}

/// Removes images that have been idle for so many seconds until so many bytes are free of them, or none is left; notes which are in use. Answers
/// with the bytes.
async fn free(context: &Context, pods: &Pods, wanted: u64, age: u32) -> Result<u64, String> {
    let store = &context.images;
    let here = store.list().into_iter().map(|image| image.id).collect::<HashSet<_>>();
    let now = Timestamp::now();
    let idle = context.image_uses.idle(&here, &in_use(pods), now);
    let mut freed = 0;
    for id in choose(idle, now, SignedDuration::from_secs(age.into())) {
        if freed >= wanted {
            break;
        }
        // A pod may have come for it meanwhile.
        let needed = in_use(pods);
        if needed.contains(&id) {
            continue;
        }
        store.remove(&id).await.map_err(|error| chain(&error))?;
        let needed: Vec<String> = needed.into_iter().collect();
        let collected = store.gc(&needed).await.map_err(|error| chain(&error))?;
        freed += collected.bytes;
        info!(id, bytes = collected.bytes, "an image that no pod needs is removed");
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GC: ImageGc = ImageGc {
        high_threshold_percent: 85,
        low_threshold_percent: 80,
        min_age_seconds: 120,
        max_age_seconds: 0,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn nothing_is_wanted_below_the_upper_mark_and_then_enough_for_the_lower_one() {
        assert_eq!(wanted(1000, 151, &GC), 49, "per cent are whole, as with the kubelet");
        assert_eq!(wanted(1000, 160, &GC), 0);
        assert_eq!(wanted(1000, 150, &GC), 50);
        assert_eq!(wanted(1000, 0, &GC), 200);
        assert_eq!(wanted(0, 0, &GC), 0, "a file system without a size");
    }

    #[test]
    fn the_image_idle_for_longest_goes_first_and_a_young_one_not_at_all() {
        let idle = vec![("b".into(), at(100)), ("young".into(), at(881)), ("a".into(), at(50))];
        assert_eq!(choose(idle, at(1000), SignedDuration::from_secs(120)), ["a", "b"]);
    }

    #[test]
    fn an_image_is_idle_since_its_last_use_or_since_it_was_found() {
        let ids = |all: &[&str]| all.iter().map(|id| (*id).to_owned()).collect::<HashSet<_>>();
        let uses = Uses::default();
        let mut idle = uses.idle(&ids(&["a", "b"]), &ids(&["a"]), at(10));
        assert_eq!(idle, [("b".to_owned(), at(10))]);
        idle = uses.idle(&ids(&["a", "b"]), &ids(&["a"]), at(20));
        assert_eq!(idle, [("b".to_owned(), at(10))]);
        idle = uses.idle(&ids(&["a"]), &ids(&[]), at(30));
        assert_eq!(idle, [("a".to_owned(), at(20))], "the other one is gone");
        idle = uses.idle(&ids(&["a", "b"]), &ids(&["a"]), at(40));
        assert_eq!(idle, [("b".to_owned(), at(40))], "one that comes back is new");
    }
}

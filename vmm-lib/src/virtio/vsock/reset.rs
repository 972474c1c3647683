//! Tells a guest that its connections are gone: it was stopped, or is a copy of one that had them. Nobody is let in before it has heard
//! that, as a connection that it accepted before would go with the others.

use std::time::{Duration, Instant};

use crate::virtio::{
    ring::Ring,
    worker::{Poller, STOP, WorkError, broke},
};

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2, 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;
/// A guest that takes longer keeps what it has.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at whether the guest has heard: a driver with more buffers need not say so.
const LOOK: Duration = Duration::from_millis(1);

/// Sends the event and waits until its driver has given the buffer anew. `false`: the device shall stop.
pub(super) fn connections(poller: &Poller, mut events: Ring<'_>) -> Result<bool, WorkError> {
    let Some(chain) = events.pop()? else {
        // A driver that wants no events has no connections of ours.
        return Ok(true);
    };
    chain.writable.write(0, &TRANSPORT_RESET.to_le_bytes())?;
    let before = events.available()?;
    events.give_back(chain.head, 4)?;
    events.notify()?;
    let deadline = Instant::now() + DEADLINE;
    let mut stopped = false;
    while !stopped && events.available()? == before && Instant::now() < deadline {
        poller
            .wait(Some(LOOK), |token, _| stopped |= token == STOP)
            .map_err(broke("wait for the guest"))?;
    }
    Ok(!stopped)
}

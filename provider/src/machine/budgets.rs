//! Waits for what a machine's process tells of its logs, in the event loop: a machine that says nothing costs nothing.

use std::{
    os::{fd::AsFd, unix},
    sync::Arc,
    time::Duration,
};

use kvmlet_machine::{Event, Events, Machine};
use tokio::{net::UnixStream, sync::mpsc};

use super::blocking;
use crate::act::chain;

/// Tells of budgets that are spent, by one connection, until that is cut (an error) or nobody listens.
pub(super) async fn tell(machine: &Arc<Machine>, spent: &mpsc::Sender<String>) -> Result<(), String> {
    let machine = machine.clone();
    let mut events = blocking(move || machine.events().map_err(|e| chain(&e))).await?;
    let socket = watched(&events).map_err(|e| format!("watch a connection: {e}"))?;
    loop {
        match events.next(Some(Duration::ZERO)).map_err(|e| chain(&e))? {
            Some(Event::BudgetSpent { container }) => {
                if spent.send(container).await.is_err() {
                    return Ok(());
                }
            }
            Some(Event::Ended) => {}
            None => {
                socket.readable().await.map_err(|e| e.to_string())?;
                // What was ready is read above; only then does the next wait mean something new.
                let _ = socket.try_io(tokio::io::Interest::READABLE, || {
                    Err::<(), _>(std::io::ErrorKind::WouldBlock.into())
                });
            }
        }
    }
}

/// The connection as the event loop sees it. It never blocks from here on, so a message that comes in part is an error, and not waited for.
fn watched(events: &Events) -> std::io::Result<UnixStream> {
    let socket = unix::net::UnixStream::from(events.as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

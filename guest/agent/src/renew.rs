//! Makes a copy of another machine one of its own: random numbers, time, devices, processors. What was running when the snapshot was taken is this
//! agent alone, which has no secret.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kvmlet_protocol::{ErrorKind, Failure, Renewal};

use crate::failure::{Attempt, fail};
use crate::{cpus, setup, stats, sys};

/// How long memory may take to come: a guest whose processors get little time plugs a gigabyte in some seconds.
const GROWTH: Duration = Duration::from_secs(60);

/// Does all of it, random numbers first: nothing that was made with those of before is given away.
pub(crate) fn renew(renewal: &Renewal) -> Result<(), Failure> {
    let random = fs::File::open("/dev/urandom").attempt("open the source of random numbers")?;
    sys::reseed(&random, &renewal.entropy).attempt("renew the source of random numbers")?;
    setup::set_clock(renewal.time)?;
    let before = stats::memory_total();
    for number in &renewal.devices {
        probe(*number).attempt(format_args!("have the driver look at device {number}"))?;
    }
    cpus::bring_up(renewal.cpus)?;
    grown(before.saturating_add(renewal.memory))
}

/// Waits until the kernel has this much memory.
fn grown(wanted: u64) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let present = stats::memory_total();
        if present >= wanted {
            return Ok(());
        }
        if begun.elapsed() > GROWTH {
            let what = format!(
                "the guest has {present} bytes of memory after {} s, and {wanted} are wanted",
                GROWTH.as_secs()
            );
            return Err(fail(ErrorKind::Internal, what));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Has the kernel look for a driver of the virtio device on a PCI function.
fn probe(number: u8) -> std::io::Result<()> {
    let function = PathBuf::from(format!("/sys/bus/pci/devices/0000:00:{number:02x}.0"));
    for entry in fs::read_dir(&function)? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().starts_with(b"virtio") {
            let driver = function.join(&name).join("driver");
            if !driver.exists() {
                fs::write("/sys/bus/virtio/drivers_probe", name.as_encoded_bytes())?;
            }
            // A driver that refused has said why in the kernel's log.
            return if driver.exists() {
                Ok(())
            } else {
                Err(std::io::Error::other("its driver did not take it"))
            };
        }
    }
    Err(std::io::ErrorKind::NotFound.into())
}

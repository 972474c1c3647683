//! virtio-balloon (virtio 1.2, 5.5), by which a guest gives memory back that it does not use. It reports free pages by itself (5.5.6.7, free
//! page reporting), and takes them again by touching them; the balloon as such is never asked to grow, and gives pages back if it does.
//!
//! What is given back reads as zeros and costs the host nothing until the guest writes to it again. Only whole pages of the guest's own RAM
//! can be given back; anything else is refused.

use vm_memory::{GuestAddress, Permissions};

use super::{
    chain::{ChainError, Segments},
    device::{ActivateError, Activation, GuestSpace, VirtioDevice},
    ring::{RING_FEATURES, Ring},
    worker::{Poller, STOP, WorkError, Worker, broke, required},
};
use crate::threads::ThreadKind;

/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM and VIRTIO_BALLOON_F_REPORTING.
const FEATURES: u64 = 1 << 2 | 1 << 5;
const QUEUE_SIZE: u16 = 128;
/// Pages of the balloon are of this size, whatever the guest's are (5.5.6).
const PAGE: u64 = 4096;
/// Numbers of pages that are read at once.
const BATCH: usize = 256;
pub(crate) const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// As Linux numbers it where the queues between are not agreed on.
const REPORT: usize = 2;

/// The device.
#[derive(Debug, Default)]
pub(crate) struct Balloon {
    worker: Option<Worker>,
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u16 {
        5
    }

    fn name(&self) -> &str {
        "balloon"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn features(&self) -> u64 {
        RING_FEATURES | FEATURES
    }

    /// `num_pages` is what the balloon shall hold: nothing.
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let mut queues = vec![
            (INFLATE, required(&mut activation, INFLATE)?),
            (DEFLATE, required(&mut activation, DEFLATE)?),
        ];
        queues.extend(activation.queues[REPORT].take().map(|queue| (REPORT, queue)));
        let Activation {
            memory,
            features,
            threads,
            failed,
            ..
        } = activation;
        let work = move |poller: Poller| {
            let rings = queues.into_iter().map(|(kind, queue)| (kind, Ring::new(&memory, queue, features)));
            serve(&poller, &memory, rings.collect())
        };
        self.worker = Some(Worker::spawn(self.name(), (&threads, ThreadKind::Balloon), failed, work)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

fn serve(poller: &Poller, memory: &GuestSpace, mut rings: Vec<(usize, Ring<'_>)>) -> Result<(), WorkError> {
    for (kind, ring) in &rings {
        poller.add_kick(ring.kick(), *kind as u64).map_err(broke("watch a queue"))?;
    }
    loop {
        let (mut stop, mut kicked) = (false, [false; 3]);
        poller
            .wait(None, |token, _| match token {
                STOP => stop = true,
                kind => kicked[kind as usize] = true,
            })
            .map_err(broke("wait for events"))?;
        if stop {
            return Ok(());
        }
        for (kind, ring) in &mut rings {
            if kicked[*kind] {
                turn(*kind, ring, memory)?;
            }
        }
    }
}

/// Serves what is available, one queue's length at most before the stop event is looked at again: a guest cannot hold the thread.
pub(crate) fn turn(kind: usize, ring: &mut Ring<'_>, memory: &GuestSpace) -> Result<(), WorkError> {
    for _ in 0..QUEUE_SIZE {
        let Some(chain) = ring.pop()? else { break };
        match kind {
            INFLATE => inflate(&chain.readable, memory)?,
            REPORT => chain.writable.discard(memory.backing()).map_err(broke("give memory back"))?,
            // A page that is taken back is there when it is touched.
            _ => {}
        }
        ring.give_back(chain.head, 0)?;
    }
    Ok(ring.settle()?)
}

/// Gives back the pages of these numbers (le32).
fn inflate(numbers: &Segments<'_>, memory: &GuestSpace) -> Result<(), WorkError> {
    let mut block = [0; 4 * BATCH];
    let mut place = 0;
    while place < numbers.len() {
        let part = block.len().min(numbers.len() - place);
        numbers.read(place, &mut block[..part])?;
        let (numbers, rest) = block[..part].as_chunks();
        if !rest.is_empty() {
            return Err(ChainError::TooShort.into());
        }
        for number in numbers {
            let address = GuestAddress(u64::from(u32::from_le_bytes(*number)) * PAGE);
            let mut page = Segments::default();
            page.push(memory, address, PAGE as u32, Permissions::Write)?;
            page.discard(memory.backing()).map_err(broke("give memory back"))?;
        }
        place += part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestMemoryBackend};

    use crate::virtio::chain::{Backing, FILE_PIECE};
    use crate::virtio::device::Memory;
    use crate::virtio::testing::{BUFFERS, Driver, Faults, MEMORY, activate, memory, memory_of};

    const AREA: usize = 64 << 10;

    /// Drivers of the three queues of a device, with an area of memory that is all 0x5a.
    fn rig() -> (Balloon, [Driver; 3], Faults) {
        let (device, drivers, faults) = rig_on(&memory());
        drivers[0].write(BUFFERS, &[0x5a; AREA]);
        (device, drivers, faults)
    }

    /// The same in memory that is as it is.
    fn rig_on(memory: &Memory) -> (Balloon, [Driver; 3], Faults) {
        let mut device = Balloon::default();
        let drivers = [0, 1, 2].map(|index| Driver::new(memory, index, QUEUE_SIZE));
        let faults = activate(&mut device, &[&drivers[0], &drivers[1], &drivers[2]], 1 << 29);
        (device, drivers, faults)
    }

    fn offer(driver: &mut Driver, buffers: &[(u64, u32, bool)]) {
        driver.chain(0, buffers);
        driver.offer(0);
        driver.kick();
    }

    /// Where the area is no longer 0x5a; it must be zero there.
    fn gone(driver: &Driver) -> Vec<usize> {
        let bytes = driver.read(BUFFERS, AREA);
        assert!(bytes.iter().all(|byte| matches!(byte, 0 | 0x5a)));
        (0..AREA / 4096)
            .filter(|page| bytes[page * 4096..][..4096] != [0x5a; 4096])
            .collect()
    }

    #[test]
    fn free_pages_that_are_reported_read_as_zeros_and_their_neighbours_as_before() {
        let (_device, mut drivers, faults) = rig();
        offer(
            &mut drivers[REPORT],
            &[(BUFFERS + 4096, 8192, true), (BUFFERS + 5 * 4096, 4096, true)],
        );
        assert_eq!(drivers[REPORT].wait_used(), (0, 0));
        assert_eq!(gone(&drivers[0]), [1, 2, 5]);
        assert!(faults.none());
    }

    #[test]
    fn pages_that_are_free_in_part_are_kept() {
        let (_device, mut drivers, faults) = rig();
        let report = [(BUFFERS + 100, 3 * 4096, true), (BUFFERS + 8 * 4096 + 8, 4080, true)];
        offer(&mut drivers[REPORT], &report);
        drivers[REPORT].wait_used();
        assert_eq!(gone(&drivers[0]), [1, 2]);
        assert!(faults.none());
    }

    /// Reports of free memory, each of a piece of `unit` bytes that was full, in 1 MiB that holds `before`: after each the piece is all zeros, a
    /// part of it is used again, and the rest stays zero; pieces that were not reported keep what they had.
    fn rounds(memory: &Memory, unit: usize, before: u8) {
        let (_device, mut drivers, faults) = rig_on(memory);
        let host = memory.get_host_address(GuestAddress(BUFFERS)).expect("it is RAM").addr();
        // The host's pages count, wherever the mapping begins.
        let start = BUFFERS + (host.next_multiple_of(unit) - host) as u64;
        let count = (1 << 20) / unit;
        let mut expected = vec![[before; 2]; count];
        for round in 0..10_000u32 {
            // Each piece again and again, in no regular order.
            let piece = (round.wrapping_mul(2_654_435_761) >> 16) as usize % count;
            let (address, stamp) = (start + (piece * unit) as u64, 1 + (round % 200) as u8);
            drivers[REPORT].write(address, &vec![stamp; unit]);
            offer(&mut drivers[REPORT], &[(address, unit as u32, true)]);
            assert_eq!(drivers[REPORT].wait_used(), (0, 0));
            let seen = drivers[REPORT].read(address, unit);
            assert!(seen.iter().all(|byte| *byte == 0), "round {round}: a byte of before");
            drivers[REPORT].write(address, &vec![stamp; unit / 2]);
            expected[piece] = [stamp, 0];
        }
        for (piece, halves) in expected.into_iter().enumerate() {
            let seen = drivers[0].read(start + (piece * unit) as u64, unit);
            let (used, free) = seen.split_at(unit / 2);
            assert!(used.iter().all(|byte| *byte == halves[0]), "piece {piece}");
            assert!(free.iter().all(|byte| *byte == halves[1]), "piece {piece}");
        }
        assert!(faults.none());
    }

    #[test]
    fn a_page_that_is_given_back_and_taken_again_holds_nothing_of_before_ten_thousand_times() {
        let memory = memory();
        memory.write_slice(&[0x5a; 2 << 20], GuestAddress(BUFFERS)).expect("it is RAM");
        assert_eq!(memory.backing(), Backing::Anonymous);
        rounds(&memory, PAGE as usize, 0x5a);
    }

    #[test]
    fn what_a_clone_gives_back_is_zeros_ten_thousand_times_and_never_its_templates_bytes_again() {
        let template = tempfile::tempfile().expect("a file can be made");
        let bytes = vec![0xf1; MEMORY as usize];
        template.write_all_at(&bytes, 0).expect("it can be written");
        let memory = memory_of(&template);
        // Rings begin as zeros.
        memory.write_slice(&[0; BUFFERS as usize], GuestAddress(0)).expect("it is RAM");
        assert_eq!(memory.backing(), Backing::File);
        rounds(&memory, FILE_PIECE, 0xf1);
        let mut now = vec![0; MEMORY as usize];
        template.read_exact_at(&mut now, 0).expect("it is as long");
        assert!(now == bytes, "other clones see what was written");
    }

    #[test]
    fn the_balloon_takes_pages_by_number_and_gives_them_as_they_are_touched() {
        let (_device, mut drivers, faults) = rig();
        let numbers = [3u32, 7].map(|page| (BUFFERS as u32 / 4096 + page).to_le_bytes()).concat();
        drivers[0].write(BUFFERS + (1 << 20), &numbers);
        let list = [(BUFFERS + (1 << 20), 8, false)];
        offer(&mut drivers[INFLATE], &list);
        drivers[INFLATE].wait_used();
        assert_eq!(gone(&drivers[0]), [3, 7]);
        offer(&mut drivers[DEFLATE], &list);
        drivers[DEFLATE].wait_used();
        assert!(faults.none());
    }

    #[test]
    fn pages_that_the_guest_does_not_have_are_refused() {
        for (numbers, words) in [(vec![0xff; 4], "not in guest memory"), (vec![0; 6], "too short")] {
            let (_device, mut drivers, faults) = rig();
            drivers[0].write(BUFFERS + (1 << 20), &numbers);
            offer(&mut drivers[INFLATE], &[(BUFFERS + (1 << 20), numbers.len() as u32, false)]);
            assert!(faults.wait().what.contains(words));
            assert_eq!(gone(&drivers[0]), [0usize; 0]);
        }
    }
}

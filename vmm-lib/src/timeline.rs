//! When a machine came to be: the host's steps from [`Builder::build`](crate::Builder::build) to the guest's first instruction and its end.
//! Costs a reading of the clock a step; decides nothing. What the guest does meanwhile is the guest's to say.

use std::fmt;
use std::time::{Duration, Instant};

/// A step of the host's, in the order in which they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// The specification is checked.
    Check,
    /// `/dev/kvm` is opened and asked what it has, CPUID among it.
    Kvm,
    /// KVM makes the virtual machine.
    VirtualMachine,
    /// Guest memory is mapped and given to KVM.
    Memory,
    /// KVM makes its interrupt controllers.
    Interrupts,
    /// Processors are made, with their CPUID and MSRs.
    Processors,
    /// Files of devices are opened, devices made and put on the bus.
    Devices,
    /// Kernel and initramfs are opened. This and the three behind it are another thread's, beside those from [`Phase::Interrupts`] on.
    Files,
    /// ACPI tables and command line are written.
    Tables,
    /// The kernel is read into guest memory.
    Kernel,
    /// The initramfs is read into guest memory, and what both boot protocols hand over is written.
    Initramfs,
    /// Devices are made, and what is loaded beside them not yet.
    Loading,
    /// In place of the five before: the state of a snapshot is taken up.
    Restore,
    /// What a snapshot's machines touch first is brought into memory.
    Prefetch,
    /// The boot processor's registers are set.
    Registers,
    /// The machine is made and nobody has run it yet.
    Waiting,
    /// Threads are started, up to the boot processor's first KVM_RUN.
    Threads,
    /// The guest runs, until its last processor has left it.
    Guest,
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Check => "check the specification",
            Self::Kvm => "open and ask KVM",
            Self::VirtualMachine => "create the virtual machine",
            Self::Memory => "map guest memory",
            Self::Interrupts => "create interrupt controllers",
            Self::Processors => "create processors",
            Self::Devices => "make devices",
            Self::Files => "open kernel and initramfs",
            Self::Tables => "write ACPI tables and command line",
            Self::Kernel => "load the kernel",
            Self::Initramfs => "load the initramfs",
            Self::Loading => "wait for kernel and initramfs",
            Self::Restore => "take up the snapshot",
            Self::Prefetch => "bring in the working set",
            Self::Registers => "set registers",
            Self::Waiting => "made, not yet run",
            Self::Threads => "start threads, until the first KVM_RUN",
            Self::Guest => "run the guest",
        })
    }
}

/// One step, done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub phase: Phase,
    /// When it began, from the beginning of the timeline.
    pub begin: Duration,
    /// How long it took.
    pub took: Duration,
}

impl Step {
    /// When it ended, from the beginning of the timeline.
    pub fn end(&self) -> Duration {
        self.begin + self.took
    }
}

/// The steps that are done. Those of one thread lie one behind the other without a gap. Times are monotonic.
#[derive(Debug, Clone)]
pub struct Timeline {
    begun: Instant,
    /// End of this thread's last step, from the beginning.
    at: Duration,
    steps: Vec<Step>,
}

impl Timeline {
    /// Begins now.
    pub(crate) fn begin() -> Self {
        Self {
            begun: Instant::now(),
            at: Duration::ZERO,
            // All there can be: a confined thread that adds one needs no memory for it.
            steps: Vec::with_capacity(Phase::Guest as usize + 1),
        }
    }

    /// What was done since the step before was this.
    pub(crate) fn done(&mut self, phase: Phase) {
        // Saturates, were the clock ever to go back.
        let took = self.begun.elapsed().saturating_sub(self.at);
        let begin = self.at;
        self.steps.push(Step { phase, begin, took });
        self.at = begin + took;
    }

    /// Another thread's, which begins now.
    pub(crate) fn beside(&self) -> Self {
        Self {
            begun: self.begun,
            at: self.begun.elapsed(),
            steps: Vec::new(),
        }
    }

    /// What another thread has done, which is over.
    pub(crate) fn join(&mut self, other: Self) {
        self.steps.extend(other.steps);
        self.steps.sort_by_key(|step| step.begin);
    }

    /// When it began: when [`Builder::build`](crate::Builder::build) was called.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// All steps, in the order in which they began.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// When the guest was first entered, if it was.
    pub fn entered(&self) -> Option<Duration> {
        self.steps.iter().find(|step| step.phase == Phase::Threads).map(Step::end)
    }

    /// From the beginning to the end of the last step.
    pub fn total(&self) -> Duration {
        self.steps.iter().map(Step::end).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_one_another_without_a_gap() {
        let mut timeline = Timeline::begin();
        assert_eq!((timeline.total(), timeline.entered()), (Duration::ZERO, None));
        for phase in [Phase::Check, Phase::Kvm, Phase::Threads, Phase::Guest] {
            std::thread::sleep(Duration::from_millis(1));
            timeline.done(phase);
        }
        let steps = timeline.steps();
        assert!(steps.windows(2).all(|pair| pair[0].end() == pair[1].begin));
        assert!(steps.iter().all(|step| step.took >= Duration::from_millis(1)), "{steps:?}");
        assert_eq!(timeline.entered(), Some(steps[2].end()));
        assert_eq!(timeline.total(), steps.iter().map(|step| step.took).sum());
    }

    #[test]
    fn steps_of_two_threads_lie_beside_one_another() {
        let mut timeline = Timeline::begin();
        let mut beside = timeline.beside();
        timeline.done(Phase::Devices);
        std::thread::sleep(Duration::from_millis(1));
        beside.done(Phase::Kernel);
        timeline.join(beside);
        timeline.done(Phase::Loading);
        let [kernel, waited] =
            [Phase::Kernel, Phase::Loading].map(|phase| *timeline.steps().iter().find(|step| step.phase == phase).unwrap());
        assert!(kernel.begin < waited.begin && kernel.end() <= waited.end());
        assert!(timeline.steps().is_sorted_by_key(|step| step.begin));
        assert_eq!(timeline.total(), waited.end());
    }
}

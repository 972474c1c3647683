//! Traces of pods' starts, for an OpenTelemetry collector: one a pod, with a span for each phase ([`plan`]), told when the pod runs ([`tell`]). Nothing is
//! measured for them: phases of the machine are those that its record has, the others what figures are reckoned from. No pod waits for one, and one
//! that the collector does not take is lost.

pub mod plan;
mod tell;

pub use self::tell::Traces;

//! PID 1 in the guest: starts containers, streams, reaps.
fn main() {}

//! The kvmlet binary.
fn main() {}

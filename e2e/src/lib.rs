//! A real cluster with real KVM hosts, and the tests that run in it.

//! A pod's network namespace, CNI and tap.

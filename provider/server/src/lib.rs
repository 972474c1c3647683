//! The kubelet port: logs, exec, health.

//! The port as its clients see it: over TLS, with a backend whose containers are made up.

mod attach;
mod exec_spdy;
mod exec_websocket;
mod fake;
mod guard;
mod large;
mod logs;
mod node_logs;
mod port_forward;
mod port_forward_websocket;
mod spdy_connection;
mod support;

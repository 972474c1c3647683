//! The port as its clients see it: over TLS, with a backend whose containers are made up.

mod exec_spdy;
mod exec_websocket;
mod fake;
mod guard;
mod logs;
mod spdy_connection;
mod support;

//! What a kubelet does: pods of the API server become machines.
//!
//! Data flows one way: [`kubelet`] watches, [`desired`] reads a pod, [`driver`] runs [`lifecycle`] and [`act`]s, [`lower`] turns the pod
//! into a machine and its guest's orders, [`agent`] speaks with the guest, [`status`] and [`report`] tell the API server. Events of guests
//! and processes re-enter the same per-pod queue, ahead of the API server's.

pub mod act;
pub mod agent;
pub mod backend;
pub mod bandwidth;
pub mod certificates;
pub mod cgroup;
pub mod config;
pub mod context;
pub mod desired;
pub mod downward;
pub mod driver;
pub mod env;
pub mod env_file;
pub mod events;
pub mod eviction;
pub mod expand;
pub mod figures;
pub mod follow;
pub mod guard;
pub mod hooks;
pub mod host_path;
pub mod image_gc;
pub mod image_volumes;
pub mod kubelet;
pub mod late_image;
pub mod leave;
pub mod ledger;
pub mod lifecycle;
pub mod logs;
pub mod lower;
pub mod machine;
pub mod names;
pub mod node;
pub mod objects;
pub mod prepare;
pub mod pressure;
pub mod priority;
pub mod probe;
pub mod pull;
pub mod quantity;
mod random;
mod readings;
pub mod report;
pub mod resize;
pub mod routes;
pub mod scratch;
pub mod seccomp;
pub mod shared;
pub mod sharing;
pub mod shutdown;
pub mod size;
pub mod started;
pub mod state;
pub mod status;
pub mod store;
pub mod streams;
pub mod sub_path;
pub mod supported;
pub mod template;
pub mod token;
pub mod traces;
pub mod volumes;
mod write;

//! Machine processes: what one runs, and how the daemon starts and adopts it.

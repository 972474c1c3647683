//! A registry in this process.

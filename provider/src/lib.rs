//! What a kubelet does: pods of the API server become machines.

//! What refusals of the API server mean.

/// Whether a write was refused because of what its object has become.
pub fn is_outrun(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Takes away the failure of what was to be done to an object that has gone.
///
/// # Errors
/// Any other.
pub fn unless_gone<T>(done: kube::Result<T>) -> kube::Result<Option<T>> {
    match done {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        other => other.map(Some),
    }
}

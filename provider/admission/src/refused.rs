//! What refusals of the API server mean.

/// Whether a write was refused because of what its object has become.
pub fn is_outrun(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether a refusal with this code is of what was asked, and not of whoever asks (401) or of the time (429, and what a server fails of itself).
pub fn is_of_the_object(code: u16) -> bool {
    (400..500).contains(&code) && !matches!(code, 401 | 429)
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

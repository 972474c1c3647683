//! OCI images pulled into EROFS layers that machines read.

//! What host and guest agent say to one another.

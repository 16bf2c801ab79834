//! What descriptors the pump takes, and what it does to them.

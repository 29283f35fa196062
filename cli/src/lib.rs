//! The turbo command.

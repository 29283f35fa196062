//! The Turbo VM: a virtual filesystem of layers, host and sandbox, run in user namespaces without privilege.

//! The Turbo registry: native API, storage, metadata, models.

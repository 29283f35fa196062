//! Suites that put the parts together: client, registry, filesystem, damage, faults.

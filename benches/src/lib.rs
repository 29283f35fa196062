//! Benchmarks, and the emulated WAN link they run over.

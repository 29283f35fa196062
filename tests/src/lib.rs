//! What the suites share: real binaries, a real registry on loopback, homes, a small root filesystem, and a proxy that
//! misbehaves on request.
//!
//! Everything is started by the test that needs it, on ports of its own, and stopped by pid when it is dropped. As root
//! the client runs as an ordinary user (`TURBO_TEST_UID`, default 65533), as it would in real life.

pub mod binaries;
pub mod crash;
pub mod docker;
pub mod nginx;
pub mod packages;
pub mod proxy;
pub mod pty;
pub mod registry;
pub mod rootfs;
pub mod taught;
pub mod turbo;

pub use binaries::binary;
pub use docker::Docker;
pub use nginx::Nginx;
pub use packages::Packages;
pub use proxy::Proxy;
pub use pty::Pty;
pub use registry::TestRegistry;
pub use turbo::{Home, Outcome};

//! The OCI image formats, as far as Turbo reads and writes them: digests, descriptors, manifests and indexes, and the
//! configuration of a container image, with what it means for an image of ours. Docker's schema 2 is the same with other
//! media types.
//!
//! Specifications: <https://github.com/opencontainers/image-spec> 1.1,
//! <https://github.com/opencontainers/distribution-spec> 1.1.

mod config;
mod digest;
mod manifest;

pub use config::{ImageConfig, RootFs, RunConfig, architecture_of, oci_architecture};
pub use digest::{Algorithm, OciDigest, ParseOciDigestError};
pub use manifest::{Descriptor, ManifestKind, OciManifest, Platform};

/// Media types of OCI and docker.
pub mod media {
    /// An image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// A list of manifests, for several platforms, say.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// The artifact manifest of release candidates of OCI 1.1.
    pub const ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
    /// docker's image manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// docker's list of manifests.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// The configuration of a container image.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// docker's configuration of a container image.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// A layer, not compressed.
    pub const LAYER_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

    /// Whether a layer of this type is a tar, plain or compressed with gzip or zstd.
    pub fn is_layer(media_type: &str) -> bool {
        matches!(
            media_type,
            LAYER_TAR
                | "application/vnd.oci.image.layer.v1.tar+gzip"
                | "application/vnd.oci.image.layer.v1.tar+zstd"
                | "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        ) || is_foreign(media_type)
    }

    /// Whether a layer of this type is kept elsewhere, so that a registry need not have it.
    pub fn is_foreign(media_type: &str) -> bool {
        media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
            || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
    }

    /// Whether a blob of this type is the configuration of a container image.
    pub fn is_config(media_type: &str) -> bool {
        media_type == CONFIG || media_type == DOCKER_CONFIG
    }
}

/// Whether the text can be a JSON object: a struct could be read from an array, too.
fn is_object(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().first() == Some(&b'{')
}

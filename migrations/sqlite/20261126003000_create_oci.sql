-- The OCI side. Digests are text as clients write them: `sha256:…` or `sha512:…`. Everything belongs to one repository:
-- no query crosses from one to another, but mounts, which name both.

-- A blob that a repository has. Its row is written once its bytes are durable and their digest was checked.
CREATE TABLE oci_blob (
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    digest TEXT NOT NULL CHECK (digest GLOB 'sha256:*' OR digest GLOB 'sha512:*'),
    size_bytes INTEGER NOT NULL,
    -- Where the bytes are, one of three: here, if they are few;
    content BLOB,
    -- in chunks of the namespace, in the order of this recipe node (docs/formats/recipe.md);
    recipe BLOB,
    -- nowhere: they are the tree with this root, written as a tar.
    root BLOB CHECK (length(root) = 32),
    stored_at INTEGER NOT NULL,
    CHECK ((content IS NOT NULL) + (recipe IS NOT NULL) + (root IS NOT NULL) = 1),
    PRIMARY KEY (repository_id, digest)
);

-- A blob that is being pushed. Any server that shares database and storage can go on with it.
CREATE TABLE oci_upload (
    -- 32 random hex digits.
    id TEXT PRIMARY KEY,
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    -- Hash function of `hash`.
    algorithm TEXT NOT NULL,
    -- Bytes that are durable.
    received INTEGER NOT NULL,
    -- Finished recipe nodes, chunks after them, bytes after those, and the hash so far: see service/oci/session.rs.
    nodes BLOB NOT NULL,
    chunks BLOB NOT NULL,
    tail BLOB NOT NULL,
    hash BLOB NOT NULL,
    touched_at INTEGER NOT NULL
);

-- Serves the removal of uploads that no one went on with.
CREATE INDEX oci_upload_by_time ON oci_upload (touched_at);
-- Serves the bound of open uploads of a repository.
CREATE INDEX oci_upload_by_repository ON oci_upload (repository_id);

CREATE TABLE oci_manifest (
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    -- As received: the digest covers these bytes.
    bytes BLOB NOT NULL,
    -- What a list of referrers says of it: kind of artifact, and annotations as JSON; NULL without.
    artifact_type TEXT,
    annotations TEXT,
    -- The manifest that it is about, which need not be there.
    subject TEXT,
    pushed_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, digest)
);

-- Serves lists of referrers.
CREATE INDEX oci_manifest_by_subject ON oci_manifest (repository_id, subject) WHERE subject IS NOT NULL;

CREATE TABLE oci_tag (
    repository_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    moved_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, name),
    FOREIGN KEY (repository_id, digest) REFERENCES oci_manifest (repository_id, digest) ON DELETE CASCADE
);

-- Serves the cascade above.
CREATE INDEX oci_tag_by_manifest ON oci_tag (repository_id, digest);

-- Which image of table `manifest` is the same as which OCI manifest.
CREATE TABLE oci_image (
    repository_id INTEGER NOT NULL,
    manifest_digest TEXT NOT NULL,
    image_digest BLOB NOT NULL CHECK (length(image_digest) = 32),
    -- 0: the image was made of the manifest; 1: the manifest was made of the image.
    rendered INTEGER NOT NULL,
    PRIMARY KEY (repository_id, manifest_digest),
    FOREIGN KEY (repository_id, manifest_digest) REFERENCES oci_manifest (repository_id, digest) ON DELETE CASCADE
);

CREATE INDEX oci_image_by_image ON oci_image (repository_id, image_digest);

-- Layers that were taken apart, so that the next image with the same layer need not be.
CREATE TABLE oci_layer (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    blob_digest TEXT NOT NULL,
    root BLOB NOT NULL CHECK (length(root) = 32),
    entries INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (namespace_id, blob_digest)
) WITHOUT ROWID;

-- The other way: trees that were written as tars once, to know digest and length.
CREATE TABLE oci_tar (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    root BLOB NOT NULL CHECK (length(root) = 32),
    digest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (namespace_id, root)
) WITHOUT ROWID;

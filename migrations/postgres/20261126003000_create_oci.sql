-- Comments: sqlite/20261126003000_create_oci.sql
CREATE TABLE oci_blob (
    repository_id BIGINT NOT NULL REFERENCES repository (id),
    digest TEXT COLLATE "C" NOT NULL CHECK (digest LIKE 'sha256:%' OR digest LIKE 'sha512:%'),
    size_bytes BIGINT NOT NULL,
    content BYTEA,
    recipe BYTEA,
    root BYTEA CHECK (length(root) = 32),
    stored_at BIGINT NOT NULL,
    CHECK (num_nonnulls(content, recipe, root) = 1),
    PRIMARY KEY (repository_id, digest)
);

CREATE TABLE oci_upload (
    id TEXT COLLATE "C" PRIMARY KEY,
    repository_id BIGINT NOT NULL REFERENCES repository (id),
    algorithm TEXT COLLATE "C" NOT NULL,
    received BIGINT NOT NULL,
    nodes BYTEA NOT NULL,
    chunks BYTEA NOT NULL,
    tail BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    touched_at BIGINT NOT NULL
);

CREATE INDEX oci_upload_by_time ON oci_upload (touched_at);

CREATE INDEX oci_upload_by_repository ON oci_upload (repository_id);

CREATE TABLE oci_manifest (
    repository_id BIGINT NOT NULL REFERENCES repository (id),
    digest TEXT COLLATE "C" NOT NULL,
    media_type TEXT COLLATE "C" NOT NULL,
    bytes BYTEA NOT NULL,
    artifact_type TEXT COLLATE "C",
    annotations TEXT COLLATE "C",
    subject TEXT COLLATE "C",
    pushed_at BIGINT NOT NULL,
    PRIMARY KEY (repository_id, digest)
);

CREATE INDEX oci_manifest_by_subject ON oci_manifest (repository_id, subject) WHERE subject IS NOT NULL;

CREATE TABLE oci_tag (
    repository_id BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    digest TEXT COLLATE "C" NOT NULL,
    moved_at BIGINT NOT NULL,
    PRIMARY KEY (repository_id, name),
    FOREIGN KEY (repository_id, digest) REFERENCES oci_manifest (repository_id, digest) ON DELETE CASCADE
);

CREATE INDEX oci_tag_by_manifest ON oci_tag (repository_id, digest);

CREATE TABLE oci_image (
    repository_id BIGINT NOT NULL,
    manifest_digest TEXT COLLATE "C" NOT NULL,
    image_digest BYTEA NOT NULL CHECK (length(image_digest) = 32),
    rendered BIGINT NOT NULL,
    PRIMARY KEY (repository_id, manifest_digest),
    FOREIGN KEY (repository_id, manifest_digest) REFERENCES oci_manifest (repository_id, digest) ON DELETE CASCADE
);

CREATE INDEX oci_image_by_image ON oci_image (repository_id, image_digest);

CREATE TABLE oci_layer (
    namespace_id BIGINT NOT NULL REFERENCES namespace (id),
    blob_digest TEXT COLLATE "C" NOT NULL,
    root BYTEA NOT NULL CHECK (length(root) = 32),
    entries BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    PRIMARY KEY (namespace_id, blob_digest)
);

CREATE TABLE oci_tar (
    namespace_id BIGINT NOT NULL REFERENCES namespace (id),
    root BYTEA NOT NULL CHECK (length(root) = 32),
    digest TEXT COLLATE "C" NOT NULL,
    size_bytes BIGINT NOT NULL,
    PRIMARY KEY (namespace_id, root)
);

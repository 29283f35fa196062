-- Comments: sqlite/20261126050000_add_rebuilds.sql
ALTER TABLE oci_blob ADD COLUMN rebuild BYTEA;

CREATE INDEX oci_blob_by_digest ON oci_blob (digest);

CREATE TABLE oci_pending (
    namespace_id BIGINT NOT NULL REFERENCES namespace (id),
    digest TEXT COLLATE "C" NOT NULL,
    due_at BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    PRIMARY KEY (namespace_id, digest)
);

CREATE INDEX oci_pending_by_due_at ON oci_pending (due_at);

CREATE TABLE oci_saving (
    namespace_id BIGINT NOT NULL REFERENCES namespace (id),
    digest TEXT COLLATE "C" NOT NULL,
    pushed_bytes BIGINT NOT NULL,
    plain_bytes BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL,
    encoder TEXT COLLATE "C",
    reason TEXT COLLATE "C",
    done_at BIGINT NOT NULL,
    CHECK ((encoder IS NULL) <> (reason IS NULL)),
    PRIMARY KEY (namespace_id, digest)
);

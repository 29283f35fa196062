-- Blobs that are made again from plain chunks: docs/formats/rebuild.md.

-- Head of a rebuild. If it is there, `recipe` describes what the blob is made of, and not the blob itself.
ALTER TABLE oci_blob ADD COLUMN rebuild BLOB;

-- The other repositories of a namespace that have a blob, when one of them is rebuilt.
CREATE INDEX oci_blob_by_digest ON oci_blob (digest);

-- Blobs of a namespace that are still to be looked at.
CREATE TABLE oci_pending (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    digest TEXT NOT NULL,
    -- Milliseconds since 1970; later while a server works on it.
    due_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    PRIMARY KEY (namespace_id, digest)
) WITHOUT ROWID;

-- The next one to look at.
CREATE INDEX oci_pending_by_due_at ON oci_pending (due_at);

-- What came of it: each blob of a namespace that was looked at.
CREATE TABLE oci_saving (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    digest TEXT NOT NULL,
    pushed_bytes INTEGER NOT NULL,
    -- 0 if it was not decompressed.
    plain_bytes INTEGER NOT NULL,
    -- What was written for it and was not there before.
    stored_bytes INTEGER NOT NULL,
    -- Who compressed it, if it is rebuilt;
    encoder TEXT,
    -- why it is kept as it was pushed, if it is.
    reason TEXT,
    done_at INTEGER NOT NULL,
    CHECK ((encoder IS NULL) <> (reason IS NULL)),
    PRIMARY KEY (namespace_id, digest)
) WITHOUT ROWID;

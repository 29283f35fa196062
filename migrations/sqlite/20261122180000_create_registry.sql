-- The registry's tables. Times are milliseconds since 1970. A digest is 32 raw bytes (BLAKE3-256).

-- The border of deduplication and of visibility: no query for a caller's objects leaves its namespace.
CREATE TABLE namespace (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

CREATE TABLE repository (
    id INTEGER PRIMARY KEY,
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    -- With its namespace: `tools/scipy`.
    name TEXT NOT NULL UNIQUE,
    -- The learned model that launches use, in `model`; NULL before the first trace.
    model_digest BLOB CHECK (length(model_digest) = 32),
    created_at INTEGER NOT NULL
);

-- A stored pack. The row is written after its bytes are on stable storage, in the transaction of its object rows.
CREATE TABLE pack (
    id INTEGER PRIMARY KEY,
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    size_bytes INTEGER NOT NULL,
    object_count INTEGER NOT NULL,
    -- Per frame 24 bytes: u32 offset, u32 encoded length, 16 bytes of the BLAKE3 of the encoded frame.
    frames BLOB NOT NULL,
    stored_at INTEGER NOT NULL,
    UNIQUE (namespace_id, digest)
);

-- Where a namespace finds an object: one row and one ranged read of the pack. If several packs hold it, the first.
CREATE TABLE object (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    pack_id INTEGER NOT NULL REFERENCES pack (id),
    frame_offset INTEGER NOT NULL,
    frame_len INTEGER NOT NULL,
    -- Position in the frame.
    slot INTEGER NOT NULL,
    -- Uncompressed bytes.
    len INTEGER NOT NULL,
    PRIMARY KEY (namespace_id, digest)
) WITHOUT ROWID;

-- Objects that refer to others and whose whole closure is in the namespace, so that the next version of an image
-- checks only what changed. Whoever removes objects must remove what leads to them here, first.
CREATE TABLE verified (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    -- What it was verified as: see db/verified.rs.
    kind INTEGER NOT NULL,
    -- Recipe nodes: bytes of the file that it describes; else 0.
    len INTEGER NOT NULL,
    PRIMARY KEY (namespace_id, digest, kind, len)
) WITHOUT ROWID;

CREATE TABLE manifest (
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    -- As received: the digest covers these bytes.
    bytes BLOB NOT NULL,
    layer_count INTEGER NOT NULL,
    -- The model that it pins: kept as long as the image is.
    model_digest BLOB CHECK (length(model_digest) = 32),
    pushed_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, digest)
);

-- Releases, and `head`, which follows every push.
CREATE TABLE tag (
    repository_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    moved_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, name),
    FOREIGN KEY (repository_id, digest) REFERENCES manifest (repository_id, digest) ON DELETE CASCADE
);

-- Serves the cascade above, and "which releases name this image".
CREATE INDEX tag_by_manifest ON tag (repository_id, digest);

CREATE TABLE model (
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    bytes BLOB NOT NULL,
    learned_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, digest)
);

CREATE TABLE trace_statistics (
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    entry_point TEXT NOT NULL,
    architecture TEXT NOT NULL,
    trace_count INTEGER NOT NULL,
    event_count INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, entry_point, architecture)
);

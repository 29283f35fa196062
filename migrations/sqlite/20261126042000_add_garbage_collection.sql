-- Garbage collection, an undo window for deletes, and scrubbing. Rules and order of removal: docs/garbage-collection.md.

-- Under which name the storage keeps the pack: random, so that a pack that is stored again is never hit by the removal of the
-- old one. NULL in rows of before: then it is `digest`.
ALTER TABLE pack ADD COLUMN name BLOB CHECK (length(name) = 32);
-- 1: `digest` is the BLAKE3 of its bytes; 0: it is random, since objects of the pack were removed or moved, and the pack can
-- be pushed again; NULL: not known.
ALTER TABLE pack ADD COLUMN is_whole INTEGER;
-- Since when no object is found here any more. The bytes go when all readers that may still know it are done.
ALTER TABLE pack ADD COLUMN retired_at INTEGER;
-- When every byte was read and found right last.
ALTER TABLE pack ADD COLUMN scrubbed_at INTEGER;

-- Since when no manifest of the repository refers to the blob; NULL while one does, or nobody has looked.
ALTER TABLE oci_blob ADD COLUMN unused_since INTEGER;

CREATE TABLE gc_state (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    -- Odd while candidates are being recorded. A put that began under another epoch remembers no closures.
    epoch INTEGER NOT NULL,
    -- When a collection ended last; NULL before.
    finished_at INTEGER,
    PRIMARY KEY (namespace_id)
) WITHOUT ROWID;

-- Objects that nothing led to at `since`, in the order of their removal's review. Whoever is told that an object is
-- present takes its row away, first.
CREATE TABLE gc_candidate (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    since INTEGER NOT NULL,
    PRIMARY KEY (namespace_id, digest)
) WITHOUT ROWID;

-- Who relies on a namespace, until when. A dead holder frees itself by time.
CREATE TABLE lease (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    -- 1: the collector of the namespace; 2: a push in progress.
    kind INTEGER NOT NULL,
    -- Of a push: which; empty for the collector, of which there is one.
    holder TEXT NOT NULL,
    -- Random: who took it.
    token TEXT NOT NULL,
    since INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (namespace_id, kind, holder)
);

-- What was deleted, for as long as it can be brought back. It keeps objects alive like what is visible.
CREATE TABLE trash (
    id INTEGER PRIMARY KEY,
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    -- image, release, state, oci-manifest, oci-tag, oci-blob.
    kind TEXT NOT NULL,
    -- The digest, or the name of a release or tag.
    name TEXT NOT NULL,
    -- Bytes of a manifest; what a blob's row said of its content; empty for a name.
    content BLOB NOT NULL,
    -- JSON: the other columns.
    detail TEXT NOT NULL,
    deleted_at INTEGER NOT NULL,
    deleted_by TEXT NOT NULL
);

-- Serves "what of this repository can be brought back", newest first.
CREATE INDEX trash_by_repository ON trash (repository_id, deleted_at);
-- Serves the end of the undo window.
CREATE INDEX trash_by_time ON trash (deleted_at);

-- Without the reference to `pack`: each removal of a pack would have to look through all objects for one that refers to it.
-- Whoever removes a pack's row has seen, in the same transaction as its last object's, that there is none.
CREATE TABLE object_without_reference (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    pack_id INTEGER NOT NULL,
    frame_offset INTEGER NOT NULL,
    frame_len INTEGER NOT NULL,
    -- Position in the frame.
    slot INTEGER NOT NULL,
    -- Uncompressed bytes.
    len INTEGER NOT NULL,
    PRIMARY KEY (namespace_id, digest)
) WITHOUT ROWID;
INSERT INTO object_without_reference SELECT namespace_id, digest, pack_id, frame_offset, frame_len, slot, len FROM object;
DROP TABLE object;
ALTER TABLE object_without_reference RENAME TO object;

-- Containers at one moment. What the sandbox of a state needs is in the namespace of its repository: checked at the put.
CREATE TABLE state (
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    -- The manifest as received: the digest covers these bytes.
    bytes BLOB NOT NULL,
    -- The layer whose tree is the sandbox: whoever removes objects keeps what it needs.
    sandbox_digest BLOB NOT NULL CHECK (length(sandbox_digest) = 32),
    -- Bytes of all files of the sandbox.
    sandbox_bytes INTEGER NOT NULL,
    -- What the container was called, for people; NULL if the client did not say.
    container TEXT,
    pushed_at INTEGER NOT NULL,
    -- Serves prefixes of ids, too: they are ranges.
    PRIMARY KEY (repository_id, digest)
);

-- Serves the list of a repository's states, newest first.
CREATE INDEX state_by_time ON state (repository_id, pushed_at);

-- Comments: sqlite/20261125210000_create_state.sql
CREATE TABLE state (
    repository_id BIGINT NOT NULL REFERENCES repository (id),
    digest BYTEA NOT NULL CHECK (length(digest) = 32),
    bytes BYTEA NOT NULL,
    sandbox_digest BYTEA NOT NULL CHECK (length(sandbox_digest) = 32),
    sandbox_bytes BIGINT NOT NULL,
    container TEXT COLLATE "C",
    pushed_at BIGINT NOT NULL,
    PRIMARY KEY (repository_id, digest)
);

CREATE INDEX state_by_time ON state (repository_id, pushed_at);

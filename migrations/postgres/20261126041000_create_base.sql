-- Comments: sqlite/20261126041000_create_base.sql
CREATE TABLE base (
    namespace_id BIGINT NOT NULL REFERENCES namespace (id),
    digest BYTEA NOT NULL CHECK (length(digest) = 32),
    pack_id BIGINT NOT NULL REFERENCES pack (id),
    PRIMARY KEY (namespace_id, digest, pack_id)
);

CREATE INDEX base_pack ON base (pack_id);

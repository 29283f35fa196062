-- What the delta frames of a pack are compressed against: objects of the same namespace, in plain frames of other packs. As
-- long as anything of the pack is needed, so are these; whoever moves them moves them together, or reading a delta frame
-- takes more than one read more.
CREATE TABLE base (
    namespace_id INTEGER NOT NULL REFERENCES namespace (id),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    pack_id INTEGER NOT NULL REFERENCES pack (id),
    PRIMARY KEY (namespace_id, digest, pack_id)
) WITHOUT ROWID;

-- What a pack needs, and to forget it with the pack.
CREATE INDEX base_pack ON base (pack_id);

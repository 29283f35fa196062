-- Learning in production: a model for each image, traces held out to judge models, and pins.

-- The models of one image. A repository's `model_digest` follows the newest image's.
CREATE TABLE image_model (
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    image_digest BLOB NOT NULL CHECK (length(image_digest) = 32),
    -- What launches of the image get, in `model`; NULL if nothing is known that suits it.
    served_digest BLOB CHECK (length(served_digest) = 32),
    -- What new traces go into when that did not do better than the served one: the model's bytes, served to no one.
    candidate BLOB,
    -- How many rounds the candidate has lost.
    lost_rounds INTEGER NOT NULL DEFAULT 0,
    -- Of which image's model it was made; NULL if it was learned from its own traces alone.
    carried_from BLOB CHECK (length(carried_from) = 32),
    -- Counts changes: who writes names the revision that it read.
    revision INTEGER NOT NULL DEFAULT 0,
    learned_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, image_digest)
);

-- Serves "which models are still somebody's" when old ones are forgotten.
CREATE INDEX image_model_by_served ON image_model (repository_id, served_digest);

-- Traces that no model has learned, to compare models by. Never served to anyone.
CREATE TABLE held_trace (
    id INTEGER PRIMARY KEY,
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    image_digest BLOB NOT NULL CHECK (length(image_digest) = 32),
    entry_point TEXT NOT NULL,
    architecture TEXT NOT NULL,
    bytes BLOB NOT NULL,
    -- What the run touched: how many things, and the bytes of all objects that answer for them.
    used_touches INTEGER NOT NULL,
    used_bytes INTEGER NOT NULL,
    held_at INTEGER NOT NULL
);

-- Serves the repository's held traces, oldest first.
CREATE INDEX held_trace_by_repository ON held_trace (repository_id, id);

-- Which model launches of a release, or of an image, get, whatever is learned. The manifest's own pin goes first.
CREATE TABLE model_pin (
    repository_id INTEGER NOT NULL REFERENCES repository (id),
    -- A release, or `b3:` and 64 hex digits of an image.
    reference TEXT NOT NULL,
    model_digest BLOB NOT NULL CHECK (length(model_digest) = 32),
    pinned_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, reference)
);

-- Traces taken of an entry point, held ones too: every fourth is held out. NULL in rows of before.
ALTER TABLE trace_statistics ADD COLUMN accepted_count INTEGER;
-- The median of what held traces touched; NULL if there are too few.
ALTER TABLE trace_statistics ADD COLUMN usual_touches INTEGER;
ALTER TABLE trace_statistics ADD COLUMN usual_bytes INTEGER;

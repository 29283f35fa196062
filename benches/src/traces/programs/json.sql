CREATE TABLE docs (body jsonb);
INSERT INTO docs SELECT jsonb_build_object('n', n, 'tags', jsonb_build_array('a', n % 7)) FROM generate_series(1, 2000) AS n;
CREATE INDEX ON docs USING gin (body);
SELECT count(*) FROM docs WHERE body @> '{"tags": [3]}';
SELECT to_tsvector('english', 'launches of applications are walks through files') @@ to_tsquery('walk');

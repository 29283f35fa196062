CREATE TABLE points (id int, at timestamptz, value float8);
INSERT INTO points SELECT n % 10, '2026-01-01 00:00 Europe/Berlin'::timestamptz + n * interval '1 minute', sin(n) FROM generate_series(1, 4000) AS n;
SELECT id, at, avg(value) OVER (PARTITION BY id ORDER BY at ROWS 10 PRECEDING) FROM points ORDER BY id, at LIMIT 20;
SELECT date_trunc('hour', at AT TIME ZONE 'Asia/Tokyo'), percentile_cont(0.5) WITHIN GROUP (ORDER BY value) FROM points GROUP BY 1 ORDER BY 1 LIMIT 5;

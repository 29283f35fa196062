CREATE TABLE orders (id serial PRIMARY KEY, customer int, total numeric(10, 2), at timestamptz DEFAULT now());
INSERT INTO orders (customer, total) SELECT n % 50, n * 1.25 FROM generate_series(1, 5000) AS n;
CREATE INDEX ON orders (customer);
ANALYZE orders;
SELECT customer, sum(total) FROM orders GROUP BY customer ORDER BY 2 DESC LIMIT 5;

PRAGMA page_size = 4096;
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INT, day TEXT, cents INT, note TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
INSERT INTO customers SELECT i, printf('customer %d', i * 7919 % 3001), printf('city %d', i * 31 % 90) FROM n;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 90000)
INSERT INTO orders SELECT i, i * 4409 % 3000 + 1, date('2025-01-01', (i * 7 % 365) || ' days'), i * 977 % 50000, printf('note %x of order %d', i * 2654435761 % 4294967296, i) FROM n;
CREATE INDEX orders_customer ON orders (customer);
CREATE INDEX orders_day ON orders (day);

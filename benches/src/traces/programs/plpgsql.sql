CREATE FUNCTION fib(n int) RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE a bigint := 0; b bigint := 1; t bigint; BEGIN FOR i IN 1..n LOOP t := a + b; a := b; b := t; END LOOP; RETURN a; END $$;
SELECT fib(80);
CREATE VIEW numbers AS SELECT n, fib(n) FROM generate_series(1, 40) AS n;
SELECT * FROM numbers;

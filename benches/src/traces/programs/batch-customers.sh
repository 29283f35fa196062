sqlite3 -readonly /app/shop.db "SELECT name, sum(cents) FROM customers JOIN orders ON customer = customers.id WHERE customers.id BETWEEN 100 AND 140 GROUP BY 1"
gzip -dc /app/log-2.gz | gawk '$3 >= 500 { errors++ } END { print errors }'

sqlite3 -readonly /app/shop.db "SELECT count(*) FROM orders WHERE note LIKE '%ff%'"
gzip -dc /app/log-1.gz | head -1000 | gawk '{ print $1 }' | sort -u | wc -l

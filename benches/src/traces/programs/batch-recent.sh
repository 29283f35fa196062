sqlite3 -readonly /app/shop.db "SELECT id, cents FROM orders WHERE day >= '2025-12-20' ORDER BY cents DESC LIMIT 20" | gzip -9 | gzip -dc | wc -l
gzip -dc /app/log-2.gz | gawk '{ bytes += $4 } END { print bytes }'

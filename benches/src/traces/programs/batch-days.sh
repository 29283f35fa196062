sqlite3 -readonly /app/shop.db "SELECT substr(day, 1, 7), count(*), sum(cents) FROM orders GROUP BY 1" | gawk -F'|' '{ print $1, $3 / $2 }'
gzip -dc /app/log-1.gz | gawk '{ bytes[$2] += $4 } END { for (name in bytes) print name, bytes[name] }' | sort

for log in /app/log-*.gz; do gzip -dc "$log"; done | gawk '{ hits[$3]++ } END { for (code in hits) print code, hits[code] }' | sort -n
sqlite3 -readonly /app/shop.db "SELECT city, count(*) FROM customers GROUP BY city ORDER BY 2 DESC LIMIT 3"

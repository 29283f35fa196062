cd /app/text
ls -l | sort -k5n | tail -3
grep -c files *.txt | awk -F: '{ sum += $2 } END { print sum }'
wc -l *.txt | less -FX
find /app -name '*.txt' -newer /app/main.sh | xargs -r stat -c %s

cd /app/text
cat *.txt | tr -c 'a-z' '\n' | sort | uniq -c | sort -rn | head
diff 1.txt 2.txt | sed -n 1,5p
sed -e 's/launch/run/g' -e '/^$/d' 3.txt | awk 'NR % 10 == 0' | cut -c1-40 | paste -sd' '
head -c 1000 4.txt | md5sum

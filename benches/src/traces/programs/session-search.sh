cd /tmp && export HOME=/tmp
git init -q all && cd all && git config user.name user && git config user.email user@example.org
cp /app/text/*.txt . && git add . && git commit -q -m all
git grep -n walk | head -3
grep -rhoE '\w+ing' . | sort | uniq -c | sort -rn | head -3
awk '{ words += NF } END { print words }' *.txt
git stash list; git status --short; git archive HEAD | wc -c

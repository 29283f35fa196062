cd /tmp && mkdir repo && cd repo
export HOME=/tmp
git init -q . && git config user.name user && git config user.email user@example.org
cp /app/text/*.txt . && git add . && git commit -q -m first
grep -n launch *.txt | head -5
sed -i s/launch/start/ 1.txt && git diff --stat && git commit -q -am second && git log --oneline

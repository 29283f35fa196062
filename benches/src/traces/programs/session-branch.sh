cd /tmp && mkdir repo && cd repo
export HOME=/tmp
git init -q . && git config user.name user && git config user.email user@example.org
cp /app/text/1.txt . && git add . && git commit -q -m first
git checkout -q -b other && echo more >> 1.txt && git commit -q -am more && git checkout -q - && git merge -q other && git branch -d other
git log --stat | less -FX

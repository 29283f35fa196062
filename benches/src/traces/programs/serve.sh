/usr/sbin/nginx -e stderr -c /app/nginx.conf &
server=$!
until [ -S /tmp/nginx.sock ]; do sleep 0.05; done
for page in "$@"; do
    curl -sf --compressed --unix-socket /tmp/nginx.sock -o /dev/null "http://localhost/$page" || exit 1
done
kill $server
wait $server

set -e
export PGDATA=/tmp/pg LC_ALL=C.UTF-8 PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin
initdb -U postgres -A trust --no-sync >/dev/null
pg_ctl -o "-k /tmp -c listen_addresses=" -l /tmp/log -w start >/dev/null
psql -q -h /tmp -U postgres -v ON_ERROR_STOP=1 -f "$1" >/dev/null
pg_ctl -m fast -w stop >/dev/null

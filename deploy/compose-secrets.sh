#!/bin/sh
# Makes the secrets of compose.yaml, once: random passwords and keys, and a certificate for localhost that is signed by itself
# (put a real one in its place). A file that is there stays, so that running it again changes nothing.
#   compose-secrets.sh [FOLDER]          default: secrets, beside this script
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
# The folder is closed to others; the files in it are not, since the containers' users, who are not yours, read them where they are
# mounted.
chmod 0700 "$folder"
cd "$folder"

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
keep() { # keep NAME: writes its standard input to a file that is not there yet
    if [ -s "$1" ]; then cat >/dev/null; else cat >"$1.new"; mv "$1.new" "$1"; fi
}

random 24 | keep postgres-password
printf 'postgres://turbo:%s@postgres/turbo' "$(cat postgres-password)" | keep database-url
random 10 | keep s3-key-id
random 24 | keep s3-secret
keep s3.json <<END
{
  "identities": [
    {
      "name": "turbo",
      "credentials": [{ "accessKey": "$(cat s3-key-id)", "secretKey": "$(cat s3-secret)" }],
      "actions": ["Admin:turbo", "Read:turbo", "List:turbo", "Tagging:turbo", "Write:turbo"]
    }
  ]
}
END
random 12 | keep admin-password
if ! [ -s tls-cert.pem ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 825 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout tls-key.pem -out tls-cert.pem 2>/dev/null
fi
chmod 0444 ./*
echo "secrets are in $folder; the administrator's password is in admin-password"

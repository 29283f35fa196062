#!/bin/sh
# A session begun on one machine and continued on another. Two home folders stand for the two machines.
set -eu

work=$(mktemp -d)
registry=
cleanup() {
    test -z "$registry" || kill "$registry"
    rm -rf "$work"
}
trap cleanup EXIT
port=${PORT:-5017}
export TURBO_HUB="http://127.0.0.1:$port"
laptop() { TURBO_HOME="$work/laptop" turbo "$@"; }
desktop() { TURBO_HOME="$work/desktop" turbo "$@"; }
say() { printf '\n# %s\n' "$*"; }

turbo-registry serve --listen "127.0.0.1:$port" --data "$work/registry" 2> "$work/registry.log" &
registry=$!
until laptop doctor > /dev/null 2>&1 || ! kill -0 "$registry"; do sleep 0.1; done

# A notebook: adds what it is told to its pages, and prints them.
mkdir -p "$work/tree/bin" "$work/tree/pages"
echo 'the first page comes with the image' > "$work/tree/pages/0"
cat > "$work/tree/bin/note" <<'NOTE'
#!/bin/sh
cd /opt/notebook/pages
test $# -eq 0 || echo "$*" > "$(ls | wc -l)"
for page in *; do echo "  page $page: $(cat "$page")"; done
NOTE
chmod +x "$work/tree/bin/note"

say 'on the laptop: an image, two sessions of work, each ends in a state'
laptop import dir "$work/tree" --at /opt/notebook --name examples/notebook:1 --startup-file /opt/notebook/bin/note > /dev/null
laptop push examples/notebook:1 > /dev/null
laptop run --name notes examples/notebook -- 'written on the laptop'
early=$(laptop save notes)
laptop start notes -- 'written on the laptop, later'
late=$(laptop save notes)
echo "states: $early and $late"

say 'on the desktop, which has never seen any of it: go on where the laptop stopped'
desktop continue "$late" -- 'written on the desktop'

say 'an earlier state is still there: a second container goes on from it, the first stays as it is'
desktop continue "$early" -- 'another history'
desktop sessions

say 'and what the desktop wrote comes back'
back=$(desktop save notes)
laptop continue "$back"

#!/bin/sh
# Two versions of one tool, side by side: the same paths, other files, a sandbox each.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TURBO_HOME="$work/home" TURBO_HUB=http://127.0.0.1:1

say() { printf '\n# %s\n' "$*"; }

# A tool that reads its own version and keeps a counter of its runs: in the same places in both versions.
for version in 1.0 2.0; do
    tree="$work/tool-$version"
    mkdir -p "$tree/bin" "$tree/share/greet" "$tree/var"
    echo "$version" > "$tree/share/greet/version"
    cat > "$tree/bin/greet" <<'TOOL'
#!/bin/sh
runs=$(cat /opt/greet/var/runs 2> /dev/null || echo 0)
echo $((runs + 1)) > /opt/greet/var/runs
echo "greet $(cat /opt/greet/share/greet/version), run $((runs + 1))"
TOOL
    chmod +x "$tree/bin/greet"
    turbo import dir "$tree" --at /opt/greet --name "examples/greet:$version" --startup-file /opt/greet/bin/greet > /dev/null
done

say 'each version has its own files and remembers its own runs'
turbo run --name one examples/greet:1.0
turbo run --name two examples/greet:2.0
turbo run --name one examples/greet:1.0

say 'what a container wrote, and nothing of it on the host'
turbo diff one
test ! -e /opt/greet && echo 'the host has no /opt/greet'

say 'version 2.0 with the data of the first container: a copy, on other images'
turbo fork one upgraded --images examples/greet:2.0 > /dev/null
turbo start upgraded

say 'back to how it came'
turbo revert one > /dev/null
turbo start one

#!/bin/sh
# One application image, and a small settings layer for each group: stacked at launch, nothing is built twice.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TURBO_HOME="$work/home" TURBO_HUB=http://127.0.0.1:1

say() { printf '\n# %s\n' "$*"; }

# A "browser": reads its policy, keeps a profile, may save to the downloads of its user and nowhere else.
mkdir -p "$work/browser/bin" "$work/browser/policy" "$work/browser/profile"
echo 'home page: about:blank' > "$work/browser/policy/settings"
cat > "$work/browser/bin/browse" <<'BROWSER'
#!/bin/sh
sed 's/^/  /' /opt/browser/policy/settings
test -z "${PROXY:-}" || echo "  proxy: $PROXY"
echo visited >> /opt/browser/profile/history
echo "  pages in the history: $(wc -l < /opt/browser/profile/history)"
BROWSER
chmod +x "$work/browser/bin/browse"
turbo import dir "$work/browser" --at /opt/browser --name examples/browser:1 --startup-file /opt/browser/bin/browse > /dev/null

# The settings of two groups: layers without a startup file. Research may not see the host's own policies.
for group in accounting research; do
    mkdir -p "$work/$group"
    echo "home page: https://$group.example/" > "$work/$group/settings"
done
turbo import dir "$work/accounting" --at /opt/browser/policy --name examples/accounting:1 --env PROXY=proxy.accounting.example > /dev/null
turbo import dir "$work/research" --at /opt/browser/policy --name examples/research:1 --isolate /opt/browser/policy=full > /dev/null

say 'without settings'
turbo run --name plain examples/browser

say 'accounting'
turbo run --name accounting examples/browser,examples/accounting

say 'research'
turbo run --name research examples/browser,examples/research

say 'who wins, told before anything runs'
turbo inspect examples/browser,examples/research

say 'the same image three times, three profiles'
turbo sessions

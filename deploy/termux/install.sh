#!/data/data/com.termux/files/usr/bin/sh
# SPDX-License-Identifier: EUPL-1.2
# A probe for hotspots on an Android telephone, in Termux (from F-Droid; the one in Google's store is too old).
# Measures a little whenever the telephone is on a Wi-Fi without metering, every 15 minutes at most, by Android's own
# job scheduler, which knows when the battery is low. Usage: sh install.sh https://COLLECTOR
set -eu

collector="${1:-}"
case "$collector" in
    https://*) ;;
    *)
        echo "usage: sh install.sh https://COLLECTOR" >&2
        exit 2
        ;;
esac
case "$collector" in
    *[!A-Za-z0-9.:/_#=~%-]*)
        echo "install.sh: $collector is not an address like https://collector.example.org" >&2
        exit 2
        ;;
esac
if ! command -v pkg >/dev/null 2>&1; then
    echo "install.sh: this is for Termux; elsewhere use: pipx install evenlane" >&2
    exit 3
fi

state="$HOME/.local/state/evenlane/probe"
turn="$HOME/.local/bin/evenlane-turn"

pkg install -y python
if ! command -v evenlane >/dev/null 2>&1; then
    pip install evenlane
fi
evenlane probe enrol --collector "$collector" --declared-position hotspot --state "$state"

mkdir -p "$HOME/.local/bin"
cat >"$turn" <<END
#!/data/data/com.termux/files/usr/bin/sh
exec evenlane probe once --state "$state"
END
chmod 700 "$turn"

# Android's scheduler where Termux:API is installed, else cron, which runs only while Termux does.
if command -v termux-job-scheduler >/dev/null 2>&1; then
    termux-job-scheduler --script "$turn" --job-id 4481 --period-ms 900000 --network unmetered --battery-not-low true \
        --persisted true
    echo "installed: a turn every 15 minutes, on Wi-Fi that is not metered; results: evenlane probe status --state $state"
else
    pkg install -y cronie termux-services
    { crontab -l 2>/dev/null | grep -v evenlane-turn || true; echo "*/15 * * * * $turn"; } | crontab -
    sv-enable crond || true
    echo "installed: a turn every 15 minutes while Termux runs; with the app Termux:API (pkg install termux-api) it also" \
        "runs when Termux does not. Results: evenlane probe status --state $state"
fi

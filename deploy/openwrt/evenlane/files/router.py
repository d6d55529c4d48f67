#!/usr/bin/python3
# SPDX-License-Identifier: EUPL-1.2
"""`evenlane` on a router: the same command as everywhere, as the probe's own user and with the probe's directories.

Whoever logs in to a router is root. A key made by root could not be read by the service, and a probe that runs as root
is more than it needs: so `evenlane probe …` becomes the user `evenlane` first, and finds what the service finds. What
an owner answers while enrolling goes into /etc/config/evenlane, where LuCI shows it: one place for one setting.
"""

import json
import os
import pwd
import sys

USER = "evenlane"
STATE = "/etc/evenlane"
RUN = "/var/run/evenlane"
RENDERED = "/var/etc/evenlane/settings.json"
INIT = "/etc/init.d/evenlane"
FOLLOWS = ("agent", "doctor", "once", "status")
"""Commands that read the settings: by hand they follow the router's configuration, as the service does."""
OPTIONS = (
    *("collector", "collector_key", "daily_mb", "monthly_mb", "quiet_hours", "metered", "declared_position", "hotspot"),
    *("brand", "tariff", "contract_down_mbps", "contract_up_mbps", "opt_in_filters", "language"),
)
"""What enrolling may ask. Paths and programs are not in here: only root may name those."""
MOST_BYTES = 65536


def main():
    """Become the user, run the command, keep the answers."""
    argv = sys.argv[1:]
    if argv[:1] != ["probe"] or len(argv) < 2 or os.geteuid() != 0:
        return run(argv)
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        print(f"evenlane: the user {USER} is missing; install the package again", file=sys.stderr)
        return 3
    if not {"-h", "--help"} & set(argv) and not is_told("--state", argv):
        argv += ["--state", STATE]
        if argv[1] in FOLLOWS and not is_told("--settings", argv) and os.path.exists(RENDERED):
            argv += ["--settings", RENDERED]
    for path in (STATE, RUN):
        os.makedirs(path, 0o755, exist_ok=True)
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        os.environ["RUNTIME_DIRECTORY"] = RUN
        os.environ["HOME"] = STATE
        if argv[1] == "enrol":
            lend_answers(os.path.join(STATE, "settings.json"))
        os._exit(run(argv))
    code = os.waitstatus_to_exitcode(wait(child))
    if code == 0 and argv[1] == "enrol" and is_enabled():
        keep_answers(os.path.join(STATE, "settings.json"), user.pw_uid)
    return code if code >= 0 else 128 - code


def is_told(option, argv):
    """Whether an option stands on the command line, in either spelling."""
    return option in argv or any(part.startswith(f"{option}=") for part in argv)


def wait(child):
    """The child's end; Ctrl-C is the child's to answer."""
    while True:
        try:
            return os.waitpid(child, 0)[1]
        except KeyboardInterrupt:
            continue


def run(argv):
    """The command itself."""
    from evenlane.cli import main as command

    try:
        return command(argv)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def lend_answers(path):
    """Who joins again finds earlier answers: those that the router's configuration holds."""
    try:
        with open(RENDERED, "rb") as file:
            told = file.read(MOST_BYTES)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(told)
    except OSError:
        return


def keep_answers(path, owner):
    """Move what was answered into the router's configuration: one setting, one place."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            told = json.loads(file.read(MOST_BYTES)) if os.fstat(file.fileno()).st_uid == owner else None
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(told, dict):
        return
    for name in OPTIONS:
        value = told.get(name)
        if isinstance(value, bool):
            value = "1" if value else "0"
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = ",".join(value)
        if isinstance(value, (str, int, float)) and "\n" not in str(value):
            uci("set", f"evenlane.main.{name}={value}")
    if uci("commit", "evenlane"):
        os.unlink(path)
        os.spawnvp(os.P_WAIT, INIT, [INIT, "reload"])


def is_enabled():
    """Whether the service renders the configuration; where only cron makes turns, the probe's own file holds."""
    return os.spawnvp(os.P_WAIT, INIT, [INIT, "enabled"]) == 0


def uci(*words):
    """Whether uci did it."""
    try:
        return os.spawnvp(os.P_WAIT, "uci", ["uci", "-q", *words]) == 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())

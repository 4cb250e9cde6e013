# shellcheck shell=sh
# For the scripts that are a machine's first process, before systemd is. There is no shell to fall into: whoever stands before the
# console of a sealed machine is not thereby its administrator.

stop() { # REASON
    trap - EXIT
    # shellcheck disable=SC2013  # words are wanted
    for console in $(cat /sys/class/tty/console/active); do
        echo "obelisk: STOPPED: $1. This machine restarts in 60 seconds." >"/dev/$console"
    done
    sleep 60
    sync
    echo b >/proc/sysrq-trigger
    sleep 60
}

trap 'stop "this machine cannot start; the reason stands above"' EXIT

passed() { # MILESTONE: keeps in $milestones when it was passed, in seconds since the kernel started
    read -r uptime _ </proc/uptime
    export milestones="${milestones-}$1 $uptime
"
}

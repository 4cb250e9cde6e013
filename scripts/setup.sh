# shellcheck shell=sh
# The environment that this checkout runs in: the programs that Obelisk needs from its host, and in .venv the Python packages of a lock
# file, no more and no less. Sourced with $root naming the checkout.
#
#   ready LOCK   returns when .venv holds what LOCK names. At once, without starting Python, when it does already; else it installs what
#                is missing and tells on stderr what it does. Any number of processes may call it together, and any may be killed.
#
# .venv/checkout   the path that .venv was made for; a checkout that moved gets a new one
# .venv/LOCK       a copy of each lock file that .venv holds; written last, so an interrupted set-up leaves none and starts anew
# .venv.lock       held while .venv changes
# .cache/setup.log the output of the programs that a set-up ran

# shellcheck disable=SC2154  # root: by the caller
venv=$root/.venv
setup_log=$root/.cache/setup.log

ready() {
    holds "$1" || set_up "$1"
}

holds() {
    [ -x "$venv/bin/python" ] && [ -r "$venv/checkout" ] && read -r place <"$venv/checkout" && [ "$place" = "$root" ] &&
        cmp -s "$root/$1" "$venv/$1"
}

set_up() (
    set -eu
    [ -w "$root" ] || fail "cannot write to $root" "work in a clone of your own"
    mkdir -p "${setup_log%/*}"
    exec 9>"$root/.venv.lock"
    if ! flock -n 9; then
        say "waiting for another process that sets up $root"
        flock 9
        if holds "$1"; then return; fi
    fi
    : >"$setup_log"
    install_programs "$1"
    make_environment "$1"
    say "ready"
)

# Host programs

install_programs() {
    packages=
    need apt-get apt
    need bwrap bubblewrap
    need mmdebstrap mmdebstrap
    need mount mount
    need newuidmap uidmap
    # For services, and for instances on hosts.
    need ip iproute2
    need nft nftables
    need virsh libvirt-clients
    if [ "$1" = requirements-dev.txt ]; then
        # For archives that tests make and sign.
        need gpg gpg
        need gpg-agent gpg-agent
        need gpgconf gpgconf
        # For repositories elsewhere.
        need rsync rsync
        need rclone rclone
        # For keys on tokens.
        need softhsm2-util softhsm2
        # For applications with a network.
        need pasta passt
        # For guests that are up in seconds.
        need busybox busybox-static
        # For applications as services, and in others' formats.
        need systemd-analyze systemd
        need crun crun
        # For desktop programs, and sessions without a screen to run them in.
        need xdg-dbus-proxy xdg-dbus-proxy
        need dbus-daemon dbus-daemon
        need Xwayland xwayland
        need Xephyr xserver-xephyr
        need Xvfb xvfb
        need cage cage
        need grim grim
        need xdotool xdotool
        need desktop-file-validate desktop-file-utils
        need /usr/libexec/xdg-desktop-portal xdg-desktop-portal
        # For services under load.
        need wrk wrk
    fi
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages="$packages debian-archive-keyring"
    [ -e /usr/share/zoneinfo/UTC ] || packages="$packages tzdata"
    find_python || packages="$packages python3 python3-venv"
    [ -n "$packages" ] || return 0

    as_root=
    if ! command -v apt-get >/dev/null; then
        missing "this system has no apt-get to install them with"
    elif [ "$(id -u)" -eq 0 ]; then
        apt_install
    elif may_sudo; then
        as_root=sudo
        apt_install
    else
        missing "installing them takes root rights or sudo"
    fi
    find_python || fail "no Python 3.11 or newer with the modules venv and ensurepip" "install one; Debian 12 and later have it in python3-venv"
}

may_sudo() {
    command -v sudo >/dev/null || return 1
    sudo -n true 2>>"$setup_log" && return
    [ -t 2 ] || return 1 # nobody there to type a password
    say "to install$packages, sudo asks for your password"
    sudo -v
}

need() {
    command -v "$1" >/dev/null || packages="$packages $2"
}

# Obelisk can do much of its work without mmdebstrap and its like, and says so itself where it cannot; without Python it can do nothing.
missing() {
    say "not installed, by Debian's names:$packages"
    say "$1"
    find_python || fail "no Python 3.11 or newer with the modules venv and ensurepip" "install the packages above, then try again"
}

apt_install() {
    # An archive that cannot be reached matters only when a package has to come from it, and then the installation says so.
    step "reading the package lists" apt_percent apt_get update || say "the package lists could not be refreshed; going on with what is here"
    # shellcheck disable=SC2086  # a list of names
    step "installing$packages" apt_percent apt_get install --no-install-recommends $packages ||
        fail "apt-get could not install:$packages" "the end of $setup_log says why"
}

apt_get() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o APT::Status-Fd=1 -o DPkg::Lock::Timeout=300 "$@"
}

# Sets $python to the real path of an interpreter that can make a virtual environment, the system's own before any other: it is there
# tomorrow, and its security updates arrive by themselves. The real path has the minor version in it, so that the environment is made
# anew when the system moves to the next one.
find_python() {
    for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.14; do
        python=$(command -v "$python") || continue
        python=$("$python" -I -c '
import sys
assert sys.version_info >= (3, 11)
import ensurepip, os, venv
print(os.path.realpath(sys.executable))' 2>>"$setup_log") && return
    done
    return 1
}

# The Python environment

make_environment() {
    if [ -x "$venv/bin/python" ] && [ -e "$venv/requirements.txt" ] && [ "$(cat "$venv/checkout")" = "$root" ]; then
        rm -f "$venv"/requirements*.txt
    else
        step "making a Python environment in $venv" nothing_more "$python" -m venv --clear "$venv" ||
            fail "$python could not make $venv" "the end of $setup_log says why"
        # The environment's Python imports Obelisk from this checkout. setuptools hooks into every start of Python, and nothing needs it.
        for site in "$venv"/lib/python3.*/site-packages; do
            printf '%s\n' "$root/src" >"$site/obelisk.pth"
            rm -f "$site/distutils-precedence.pth"
        done
        printf '%s\n' "$root" >"$venv/checkout"
    fi
    total=$(grep -c == "$root/$1")
    step "installing the $total Python packages of $1" pip_percent \
        "$venv/bin/python" -I -m pip install --disable-pip-version-check --no-input --no-warn-script-location --progress-bar off \
        --only-binary :all: --require-hashes -r "$root/$1" ||
        fail "pip could not install the packages of $1" "the end of $setup_log says why"
    # Every other lock is contained in this one.
    record requirements.txt
    record "$1"
}

record() {
    cp "$root/$1" "$venv/$1.new"
    mv "$venv/$1.new" "$venv/$1"
}

# Telling

say() {
    printf 'obelisk: %s\n' "$1" >&2
}

fail() {
    say "$1"
    say "$2"
    exit 1
}

# step TITLE FILTER COMMAND… runs the command with its output in the log; FILTER makes percentages from it.
step() {
    title=$1 filter=$2
    shift 2
    printf '\n## %s\n' "$title" >>"$setup_log"
    before=$(wc -l <"$setup_log")
    rm -f "$setup_log.failed"
    { "$@" </dev/null 2>&1 9>&- || echo "$?" >"$setup_log.failed"; } | tee -a "$setup_log" | "$filter" | draw "$title"
    [ -e "$setup_log.failed" ] || return 0
    tail -n "+$((before + 1))" "$setup_log" | tail -n 20 >&2
    return 1
}

# A terminal gets one line that moves, anything else a line at the start and at each further quarter.
draw() {
    if [ -t 2 ]; then
        printf 'obelisk: %s' "$1" >&2
        while read -r percent; do printf '\r\033[Kobelisk: %3s %% %s' "$percent" "$1" >&2; done
        printf '\r\033[Kobelisk: %s\n' "$1" >&2
    else
        say "$1"
        next=25
        while read -r percent; do
            [ "$percent" -ge "$next" ] || continue
            say "$percent % $1"
            next=$((percent - percent % 25 + 25))
        done
    fi
}

# apt-get tells the percentage of the download, then that of the installation: one half each.
apt_percent() {
    while IFS=: read -r kind _ percent _; do
        percent=${percent%%.*}
        case $kind:$percent in
            dlstatus:*[!0-9]* | pmstatus:*[!0-9]* | *:) ;;
            dlstatus:*) echo $((percent / 2)) ;;
            pmstatus:*) echo $((50 + percent / 2)) ;;
        esac
    done
}

# pip names each package as it comes to it, then installs them all in the last fifth of the time.
pip_percent() {
    seen=0
    while read -r word _; do
        case $word in Collecting | Processing | Requirement) seen=$((seen + 1)) ;; *) continue ;; esac
        echo $((80 * seen / total))
    done
}

nothing_more() {
    cat >/dev/null
}

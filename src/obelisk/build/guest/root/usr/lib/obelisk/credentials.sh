# shellcheck shell=sh
# Takes the credentials that this machine is given: by its firmware (SMBIOS), by whoever made the VM (fw_cfg), on its ESP. Part of `start`.
#
# systemd would take the first two by itself, and with them what is no data: units, rules of udev, lines of fstab, a login without a
# password. What an image runs is in the image. So they are taken here, and systemd is told that this is done.

credentials=/run/credentials/@system
firmware=/sys/firmware

make_place() { # in memory that is never swapped out
    mkdir -p /run/credentials
    mkdir -m 0700 "$credentials"
    mount -t ramfs -o nosuid,nodev,noexec,mode=0700 ramfs "$credentials"
}

take_credential() { # NAME COMMAND...: what the command writes is the credential of that name, unless there is one already
    name=$1
    shift
    case $name in
    "" | .* | *[/:]* | *[![:graph:]]*) return 0 ;;
    systemd.* | udev.* | tmpfiles.* | sysctl.* | fstab.* | sysusers.* | passwd.* | firstboot.* | userdb.* | home.* | import.* | \
        agetty.* | getty.* | tty.* | login.noauth | shell.*)
        echo "obelisk: the credential $name is left out: what runs and who may log in, the image says" >/dev/kmsg
        return 0
        ;;
    esac
    [ -d "$credentials" ] || make_place
    [ ! -e "$credentials/$name" ] || return 0
    if (umask 0377 && "$@" >"$credentials/.new") 2>/dev/kmsg; then
        mv "$credentials/.new" "$credentials/$name"
    else
        rm -f "$credentials/.new"
        echo "obelisk: the credential $name is left out: this machine cannot open it" >/dev/kmsg
    fi
}

plain() { printf %s "$1" | tr '\001' '\n'; }
decoded() { printf %s "$1" | base64 -d; }

take_smbios() { # RAW: a structure of type 11. Source: DMTF DSP0134, 7.12: five bytes, then strings, each with a zero behind it
    tail -c +6 "$1" | tr '\n\000' '\001\n' | while IFS= read -r text; do
        value=${text#*=}
        text=${text%%=*}
        [ "$text" != "$value" ] || continue
        case $text in
        io.systemd.credential:*) take_credential "${text#*:}" plain "$value" ;;
        io.systemd.credential.binary:*) take_credential "${text#*:}" decoded "$value" ;;
        esac
    done
}

[ -d "$firmware/dmi/entries" ] || modprobe -qb dmi-sysfs || true
for raw in "$firmware"/dmi/entries/11-*/raw; do
    [ ! -r "$raw" ] || take_smbios "$raw" || true
done

vendor=
[ ! -r /sys/class/dmi/id/sys_vendor ] || read -r vendor </sys/class/dmi/id/sys_vendor || true
[ "$vendor" != QEMU ] || modprobe -qb qemu_fw_cfg || true
for raw in "$firmware"/qemu_fw_cfg/by_name/opt/io.systemd.credentials/*/raw; do
    [ -r "$raw" ] || continue
    name=${raw%/raw}
    take_credential "${name##*/}" cat "$raw"
done

# Whoever holds the disk can put a file on the ESP: what neither this machine's TPM nor its own key opens is no credential.
for file in /run/obelisk/credentials/*.cred; do
    [ -e "$file" ] || continue
    name=${file##*/}
    name=${name%.cred}
    take_credential "$name" systemd-creds --name="$name" decrypt "$file" -
done
rm -rf /run/obelisk/credentials

# systemd takes nothing more where this is set. Its generators complain of a place that does not exist.
mkdir -p "$credentials"
export CREDENTIALS_DIRECTORY="$credentials"

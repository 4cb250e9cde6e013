# shellcheck shell=sh
# shellcheck disable=SC2034  # what `start` reads
# For `start`, in images whose state is encrypted: LUKS2, and the TPM has a key to it that it gives out as long as PCR 7 has the value that
# it had when the volume was made. PCR 7: Secure Boot's setting, its keys, and whose signatures the firmware has accepted.
# Without udev, device-mapper makes its nodes itself. Discards are not passed on: they would show what of the volume is in use.

repart="env DM_DISABLE_UDEV=1 SYSTEMD_REPART_MKFS_OPTIONS_BTRFS=--quiet systemd-repart --tpm2-device=auto --tpm2-pcrs=7"
PATIENCE=900

prepare_encryption() { # before systemd-repart makes the volume
    # The drivers are built into the kernel: a TPM that is there is known before any process starts.
    [ -c /dev/tpmrm0 ] || stop "this image encrypts its state by a TPM 2, and this machine has none: switch it on in the firmware's setup"
    modprobe -qa loop dm_crypt
    incomplete="the disk /dev/$disk has no room for all slots and the state volume, or the TPM keeps no key; the reason stands above"
}

open_encrypted() { # opens the volume $device and sets $device to what is in it
    sealed=$device
    device=/dev/mapper/state
    if attach tpm2-device=auto,token-timeout=1s,headless=yes 2>/run/obelisk/refusal; then
        echo tpm2 >/run/obelisk/opened
        return 0
    fi
    type=$(blkid --probe --output value --match-tag TYPE "$sealed") || true
    [ "$type" = crypto_LUKS ] || stop "the state volume $sealed holds ${type:-nothing that is known}, and this image keeps its state \
encrypted: attach the right disk, or delete that partition, and the next boot makes a new one"
    why="this machine's TPM does not: Secure Boot's setting or keys have changed, or the disk was in another machine"
    [ -c /dev/tpmrm0 ] || why="this machine has no TPM 2 that answers"
    reason=
    read -r reason </run/obelisk/refusal || true
    why="$why (${reason:-no reason given})"
    slots=$(systemd-cryptenroll "$sealed") || stop "the header of the encrypted state volume $sealed is damaged; put a copy of it back"
    case $slots in
    *recovery*) ask_for_key ;;
    *) stop "nothing opens the state volume $sealed: $why; and it has no recovery key. Undo that change" ;;
    esac
    echo recovery-key >/run/obelisk/opened
}

ask_for_key() {
    # A boot on trial ends at its deadline, as it would later; any other tries the TPM again after a while.
    patience=$PATIENCE trial=
    mount -t efivarfs -o nosuid,nodev,noexec efivarfs /sys/firmware/efi/efivars 2>/dev/null || true
    [ ! -e "$COUNTED" ] || patience=$deadline trial=yes
    umount /sys/firmware/efi/efivars 2>/dev/null || true
    # shellcheck disable=SC2013  # words are wanted
    for console in $(cat /sys/class/tty/console/active); do
        printf '\r\nobelisk: LOCKED: the state volume %s should open by itself, and %s.\r\n%s\r\n' "$sealed" "$why" \
            "obelisk: type its recovery key, then run: obelisk host enrol-tpm. Without a key, this machine restarts in $patience seconds." \
            >"/dev/$console" || true
    done
    mkdir -p /run/systemd/ask-password # the one that asks and the one who answers meet there, whoever comes first
    SYSTEMD_LOG_LEVEL=warning systemd-tty-ask-password-agent --watch --console &
    agent=$!
    attach "tries=0,timeout=$patience" </dev/null || {
        [ -z "$trial" ] || echo b >/proc/sysrq-trigger
        stop "nobody typed the recovery key of the state volume $sealed"
    }
    kill "$agent" || true
    wait "$agent" 2>/dev/null || true
}

attach() { # OPTIONS
    # Without its plug-in for tokens, which would ask the TPM whatever the options say; and without what libraries tell of a refusal.
    SYSTEMD_CRYPTSETUP_USE_TOKEN_MODULE=0 SYSTEMD_LOG_LEVEL=warning TSS2_LOG=all+none DM_DISABLE_UDEV=1 \
        systemd-cryptsetup attach state "$sealed" - "luks,$1"
}

"""Words of the kernel command line that an image does not take.

The command line is signed together with the root hash. These words would start something else than the verified root, or open a root
shell on the console before anybody logs in, so they are refused with the reason.

Source: kernel-command-line(7), systemd-veritysetup-generator(8), systemd-gpt-auto-generator(8); dm-init and dm-verity in the kernel's
administration guide.
"""

import re

_SHELL = "opens a root shell on the console"
_OTHER_ROOT = "the root is found by its verified hash, which Obelisk writes"
_REASONS = (
    (re.compile(r"(mount\.)?(root|usr)(fstype|flags|delay|hash)?|ro|rw|rootovl|nfsroot"), _OTHER_ROOT),
    (
        re.compile(r"(roothash|usrhash)(sig)?|(rd\.)?systemd\.(verity.*|image_policy|gpt_auto)|dm_mod\..*"),
        _OTHER_ROOT,
    ),
    (re.compile(r"dm_verity\..*"), "weakens what happens when a block is damaged"),
    (re.compile(r"systemd\.set_credential(_binary)?"), "everybody can read it, in every copy of the image"),
    (re.compile(r"lockdown|module\.sig_enforce"), "say it under `hardening`, where the image knows of it"),
    (re.compile(r"init|rdinit|initrd|noinitrd|--"), "starts something else than the image's own system"),
    (re.compile(r"(rd\.)?systemd\.(unit|run|run_.*|wants|crash_shell)"), "starts something else than the image's own system"),
    (re.compile(r"(systemd\.)?(volatile|mount_extra)|(rd\.)?systemd\.(volatile|mount_extra)"), "lays something over the verified root"),
    (re.compile(r"(rd\.)?systemd\.debug_shell|rd\.(break|shell|emergency)|emergency|rescue|single|s|S|1|-s|-b"), _SHELL),
)


def refused(word: str) -> str:
    """Why `word` may not be on the command line, or nothing when it may."""
    if "SYSTEMD_SULOGIN_FORCE" in word:
        return _SHELL
    key = word.split("=", 1)[0]
    if key != "--" and not key.startswith("-"):
        key = key.replace("-", "_")  # the kernel and systemd take both spellings
    return next((reason for pattern, reason in _REASONS if pattern.fullmatch(key)), "")

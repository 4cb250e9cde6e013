# shellcheck shell=sh
# Programs of installed applications.
PATH=$PATH:/var/lib/obelisk/bin

#!/bin/sh
# Takes out of the image what belongs to one machine: the data of the cluster, and the key that ssl-cert made up for "snakeoil".
set -eu

rm -rf /var/lib/postgresql/17/main
rm -f /etc/ssl/private/ssl-cert-snakeoil.key
for link in /etc/ssl/certs/*.0; do
    if [ "$(readlink "$link")" = ssl-cert-snakeoil.pem ]; then rm "$link"; fi
done
rm -f /etc/ssl/certs/ssl-cert-snakeoil.pem

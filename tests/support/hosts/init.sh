#!/usr/bin/env bash
# A namespace's first process: it arranges what the namespace sees, says so, and takes in orphans.
#
#   init.sh                                    the switch: a bridge
#   init.sh NAME HOSTS KEPT FOLDER [SSH]       a host
# HOSTS becomes its /etc/hosts; KEPT is seen as FOLDER; SSH's ssh_config is that of every user.
set -euo pipefail

if [ $# = 0 ]; then
    ip link add bridge type bridge
    ip link set bridge up
else
    hostname "$1"
    mount --bind "$2" /etc/hosts
    mount --bind "$3" "$4"
    mount -t tmpfs tmpfs /dev/shm
    mount -t tmpfs tmpfs /run
    mkdir /run/sshd /run/lock
    if [ -n "${5:-}" ]; then # and no file of the user's own has a say
        mount --bind "$5/ssh_config" /etc/ssh/ssh_config
        [ ! -d ~/.ssh ] || mount -t tmpfs tmpfs ~/.ssh
        [ ! -e ~/.bashrc ] || mount --bind /dev/null ~/.bashrc
    fi
fi
echo ready
exec >/dev/null 2>&1
while :; do sleep 3600; done

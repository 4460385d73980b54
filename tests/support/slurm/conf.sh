#!/usr/bin/env bash
# Writes FOLDER/slurm.conf of a small cluster for tests.
#
#   conf.sh FOLDER CONTROL PORT NODE [NODE ...]
# CONTROL is where slurmctld runs (NAME or NAME(ADDRESS)), and PORT its port; NODE is a node's name
# with what slurm.conf says of it. OWN: the folder of what each machine keeps for itself (FOLDER).
set -euo pipefail

folder=$1 control=$2 port=$3
shift 3
own=${OWN:-$folder}
{
    cat <<CONF
ClusterName=ds_moe_mtl
SlurmctldHost=$control
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$own/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$own/spool/%n
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$own/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
MinJobAge=3600
SlurmdTimeout=30
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
CONF
    for node in "$@"; do echo "NodeName=$node CPUs=4 State=UNKNOWN"; done
    cat <<CONF
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
CONF
} >"$folder/slurm.conf"

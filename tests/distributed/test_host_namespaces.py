"""What tests/support/hosts promises: hosts with a network of their own, and faults that end.

Skipped, with the reason printed, where hosts cannot be had; DS_MOE_MTL_HOSTS=0 leaves them out.
"""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.support.hosts.fixture import hosts_or_skip
from tests.support.hosts.hosts import Hosts
from tests.support.launch import rank_environ

GREETING = ["timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/node1/22 && head -c 3 <&3"]
KILLED = """
import sys, time
from pathlib import Path
from tests.support.hosts.hosts import Hosts
hosts = Hosts(Path(sys.argv[1]))
process = hosts[0].popen(["sleep", "100"])
print(*(each.pid for host in hosts for each in host.processes()), flush=True)
time.sleep(100)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Return two hosts with ssh, which faults of one test leave as they were."""
    yield from hosts_or_skip(tmp_path_factory.mktemp("hosts") / "of", ssh=True, faults=True)


def greeting(hosts: Hosts) -> str:
    """Return what node1's sshd says to node0 within a second."""
    return hosts[0].run(GREETING).stdout


def test_hosts_have_names_addresses_and_folders_of_their_own_and_one_that_they_share(hosts):
    for host in hosts:
        (host.kept / "who").write_text(host.name)
    (hosts.shared / "both").write_text("all")
    command = f"hostname; cat {hosts.folder}/who; cat {hosts.shared}/both; ip route"
    said = [host.run(["sh", "-c", command]).stdout for host in hosts]
    for number, text in enumerate(said):
        assert text.startswith(f"node{number}\nnode{number}all10.77.0.0/24 dev eth0")
        assert text.count("\n") == 2 and "default" not in text
    assert hosts[0].run(["ssh", "node1", "hostname"]).stdout == "node1\n"


def test_each_fault_cuts_node1_off_and_is_healed(hosts):
    faulty = hosts[1]
    faults = {
        "nothing comes in": lambda: faulty.link("down", "in"),
        "nothing goes out": lambda: faulty.link("down", "out"),
        "firewall": lambda: faulty.drop(22),
    }
    assert greeting(hosts) == "SSH"
    for name, make in faults.items():
        make()
        assert greeting(hosts) == "", name
        faulty.heal()
        assert greeting(hosts) == "SSH", name


def test_a_frozen_host_goes_on_and_a_killed_one_is_booted(hosts):
    with hosts[1].popen(["sleep", "100"]) as running:
        hosts[1].freeze()
        assert greeting(hosts) == ""
        hosts[1].thaw()
        assert greeting(hosts) == "SSH" and running.process.poll() is None
        hosts[1].kill(silently=True)
        assert running.process.wait(5) == -signal.SIGKILL and greeting(hosts) == ""
    hosts.boot(hosts[1])
    assert greeting(hosts) == "SSH"


def test_nothing_of_a_host_outlives_a_test_that_is_killed(hosts, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "of")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=rank_environ()) as test:
        pids = [int(word) for word in test.stdout.readline().split()]
        test.kill()
    until = time.monotonic() + 10
    while left := [pid for pid in pids if psutil.pid_exists(pid)]:
        assert time.monotonic() < until, left
        time.sleep(0.05)
    assert len(pids) == 3  # two waiting first processes, and what was started
    assert "bridge" not in subprocess.run(["ip", "link"], capture_output=True, text=True).stdout


def test_a_slow_link_is_as_slow_as_it_is_told(hosts):
    send = ["bash", "-c", "head -c 1000000 /dev/zero | ssh node1 'cat >/dev/null'"]
    hosts[0].shape("4mbit")
    slow = hosts[0].run(send)
    hosts[0].heal()
    assert slow.returncode == 0 and slow.seconds > 1_000_000 * 8 / 4e6 * 0.9

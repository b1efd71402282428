"""Cases about network devices of the host that a container gets."""

import contextlib
import json
import os
import subprocess

from case import case, expect, expect_in


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def ours(name):
    """What the host says of a device; none where it has none."""
    done = subprocess.run(["ip", "-j", "addr", "show", "dev", name], capture_output=True, text=True, check=False)
    return json.loads(done.stdout)[0] if done.returncode == 0 else None


@contextlib.contextmanager
def device():
    """A device of the host; its other end is here, too, and takes it with it in the end."""
    name = f"cf{os.getpid()}"
    ip("link", "add", name, "type", "veth", "peer", "name", name + "p")
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name + "p"], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def namespace():
    """The path of a network namespace that nobody is in."""
    name = f"conf-{os.getpid()}"
    ip("netns", "add", name)
    try:
        yield f"/run/netns/{name}"
    finally:
        ip("netns", "del", name)


@case("linux.netDevices", "config-linux.md: netDevices; moved, under its name")
def moved(c):
    with device() as name:
        c.linux["netDevices"] = {name: {}}
        c.script("ip link show")
        expect_in("the devices", name, c.run())


@case("linux.netDevices.name", "config-linux.md: netDevices; name in the container")
def renamed(c):
    with device() as name:
        c.linux["netDevices"] = {name: {"name": "inside0"}}
        c.script("ip link show")
        expect_in("the devices", "inside0", c.run())


@case("linux.netDevices, addresses", "config-linux.md: netDevices; permanent addresses of global scope come along")
def addresses(c):
    with device() as name:
        ip("addr", "add", "10.123.1.7/24", "dev", name)
        ip("-6", "addr", "add", "fd00:123::7/64", "dev", name, "nodad")
        ip("addr", "add", "10.123.2.7/24", "dev", name, "valid_lft", "900", "preferred_lft", "900")
        ip("addr", "add", "169.254.9.9/16", "scope", "link", "dev", name)
        ip("link", "set", name, "up")
        c.linux["netDevices"] = {name: {"name": "inside0"}}
        c.script("ip addr show dev inside0")
        text = c.run()
        for address in ("10.123.1.7/24", "fd00:123::7/64"):
            expect_in("the addresses", address, text)
        for address in ("10.123.2.7", "169.254.9.9"):
            expect(f"{address} is there", address in text, False)


@case("linux.netDevices, attributes", "config-linux.md: netDevices; attributes are preserved, and it is up")
def attributes(c):
    with device() as name:
        ip("link", "set", name, "address", "02:00:00:00:00:07", "mtu", "1400")
        c.linux["netDevices"] = {name: {}}
        c.script(f"ip link show dev {name}")
        text = c.run()
        for part in ("mtu 1400", "02:00:00:00:00:07", "UP"):
            expect_in("the device", part, text)


@case("linux.netDevices, %d", "config-linux.md: netDevices; a template finds a free name")
def template(c):
    with device() as name, namespace() as path:
        ip("-n", os.path.basename(path), "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        c.join("network", path)
        c.linux["netDevices"] = {name: {"name": "eth%d"}}
        c.script("ls /sys/class/net | grep -c eth; ip link show")
        text = c.run()
        expect("the number of devices", text.splitlines()[0], "3")
        expect_in("the devices", "eth2", text)


@case("linux.netDevices, a name that is taken", "config-linux.md: netDevices; MUST be an error")
def taken(c):
    with device() as name, namespace() as path:
        ip("-n", os.path.basename(path), "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        ip("addr", "add", "10.123.1.7/24", "dev", name)
        c.join("network", path)
        c.linux["netDevices"] = {name: {"name": "eth0"}}
        c.write()
        c.fails("create", "--bundle", c.bundle, c.id)
        seen = ours(name)
        expect("the host has it", seen is not None, True)
        expect("its address", seen["addr_info"][0]["local"], "10.123.1.7")


@case("linux.netDevices, not there", "config-linux.md: netDevices; an error")
def missing(c):
    c.linux["netDevices"] = {f"cf{os.getpid()}none": {}}
    c.write()
    c.fails("create", "--bundle", c.bundle, c.id)
    c.fails("state", c.id)


@case("linux.netDevices in the host's network", "config-linux.md: netDevices; needs a network namespace")
def of_host(c):
    with device() as name:
        c.without("network")
        c.linux["netDevices"] = {name: {"name": "inside0"}}
        c.write()
        c.fails("create", "--bundle", c.bundle, c.id)
        expect("the host has it", ours(name) is not None, True)


@case("linux.netDevices, a create that fails", "runtime.md: errors; the host has its device again")
def failed(c):
    with device() as name:
        ip("addr", "add", "10.123.1.7/24", "dev", name)
        ip("link", "set", name, "up")
        c.linux["netDevices"] = {name: {"name": "inside0"}}
        c.process["args"] = ["no-such-program"]
        c.write()
        c.fails("run", "--bundle", c.bundle, c.id)
        seen = ours(name)
        expect("the host has it", seen is not None, True)
        expect("its address", seen["addr_info"][0]["local"], "10.123.1.7")


@case("linux.netDevices in a namespace of others", "config-linux.md: netDevices; it stays where its namespace stays")
def stays(c):
    with device() as name, namespace() as path:
        c.join("network", path)
        c.linux["netDevices"] = {name: {"name": "inside0"}}
        c.script("ip link show")
        expect_in("the devices", "inside0", c.run())
        expect_in("what is there afterwards", "inside0", ip("-n", os.path.basename(path), "link", "show"))


@case("linux.netDevices in a user namespace", "config-linux.md: netDevices")
def mapped(c):
    with device() as name:
        c.in_user_namespace()
        c.linux["netDevices"] = {name: {"name": "inside0"}}
        c.script("ip link show")
        expect_in("the devices", "inside0", c.run())

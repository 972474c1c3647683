"""The images that Kubernetes' own specifications run, under their own names.

Owns what is in them besides Debian's files and the programs that
controlplane/programs.sh makes of the module's sources (agnhost, pause, nnp).
Names and versions are those of k8s.io/kubernetes/test/utils/image/manifest.go.
"""

import debian
from good import GROUP, PASSWD, PATH, debian_root
from layer import Layer, directory, file, symlink
from store import Repository

TOOLS = ["bash", "dash", "coreutils", "grep", "sed", "hostname", "libc-bin", "curl", "dnsutils", "iperf", "iproute2"]
TOOLS += ["netcat-openbsd", "util-linux"]
PEOPLE = ("user-defined-in-image:x:1000:1000::/home:/bin/sh\n", "user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n")


def _debian(debs):
    """A small root of Debian's with the tools that the specifications call."""
    root = debian_root(debs)
    # What the packages' scripts would have made.
    root.add(symlink("usr/bin/nc", "nc.openbsd"), symlink("usr/bin/which", "which.debianutils"))
    return root.finish()


def make(out, programs, busybox, debs, shell, nginx):
    """All of them. `programs` is the folder of agnhost, pause and nnp; `shell` the package bash-static; `nginx` the layers of that image."""

    def image(name, version, layers, config):
        Repository(out, name).image(layers, {"Env": [PATH], **config}, tags=(version,) if isinstance(version, str) else version)

    def program(name):
        return (programs / name).read_bytes()

    tools = _debian(debs)
    agnhost = Layer().add(
        directory("uploads"),
        file("agnhost", program("agnhost"), mode=0o755),
        file("localhost.crt", program("localhost.crt")),
        file("localhost.key", program("localhost.key")),
        symlink("agnhost-2", "agnhost"),
        file("etc/passwd", PASSWD + PEOPLE[0]),
        file("etc/group", GROUP + PEOPLE[1]),
    )
    ports = {f"{port}/tcp": {} for port in (80, 8080, 8081, 9376, 5000)}
    config = {"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "ExposedPorts": ports}
    image("e2e-test-images/agnhost", ("2.63.0", "2.55"), [tools, agnhost.finish()], config)
    image("e2e-test-images/glibc-dns-testing", "2.0.0", [tools], {"Cmd": ["bash"]})
    # Debian's busybox hides variables with odd names (as data-1) from what its shell starts, unlike busybox's own.
    sh = Layer().add(file("bin/sh", debian.one_file(shell, "./bin/bash-static"), mode=0o755)).finish()
    image("e2e-test-images/busybox", "1.37.0-1", [busybox, sh], {"Cmd": ["sh"]})
    image("e2e-test-images/nonroot", "1.5", [busybox], {"Cmd": ["sh"], "User": "1234"})
    escalate = Layer().add(directory("usr/local"), directory("usr/local/bin"), file("usr/local/bin/nnp", program("nnp"), mode=0o6755))
    image("e2e-test-images/nonewprivs", "1.4", [busybox, escalate.finish()], {"Cmd": ["nnp"]})
    pause = Layer().add(file("pause", program("pause"), mode=0o755))
    image("pause", "3.10.2", [pause.finish()], {"Entrypoint": ["/pause"], "User": "65535:65535"})
    image("e2e-test-images/nginx", "1.15-4", nginx, {"Cmd": ["nginx", "-g", "daemon off;"], "StopSignal": "SIGQUIT"})

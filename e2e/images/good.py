"""The images that work: busybox, nginx, users.

Owns what is in them besides Debian's files. They are as like the public images
of the same names as the tests and common examples need, and no more.
"""

import subprocess
import tempfile
from pathlib import Path

import debian
from layer import Layer, directory, file, hardlink, symlink
from store import Repository

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUP = """root:x:0:
daemon:x:1:
bin:x:2:
www-data:x:33:
nogroup:x:65534:
"""
# One configuration for root and for any other user: whatever is written lies in /tmp.
NGINX_CONF = """worker_processes 1;
error_log stderr notice;
pid /tmp/nginx.pid;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /dev/stdout combined;
    client_body_temp_path /tmp/client_body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    sendfile on;
    keepalive_timeout 65;
    include /etc/nginx/conf.d/*.conf;
}
"""
NGINX_SITE = """server {
    listen 80;
    server_name localhost;
    location / {
        root /usr/share/nginx/html;
        index index.html;
    }
}
"""


def base_tree():
    """Folders and account files that every image starts with."""
    return [
        *(directory(path) for path in ("dev", "etc", "home", "proc", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/www")),
        directory("root", mode=0o700),
        directory("tmp", mode=0o1777),
        directory("var/spool/mail"),
        file("etc/passwd", PASSWD),
        file("etc/group", GROUP),
        file("etc/shadow", "root:*:::::::\n", mode=0o640, gid=0),
    ]


def busybox_layer(deb):
    """The root of the busybox image: one binary and a hard link for each applet."""
    binary = debian.one_file(deb, "./bin/busybox")
    # The package is of this machine's architecture, so it can list its applets itself.
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "busybox"
        program.write_bytes(binary)
        program.chmod(0o755)
        listed = subprocess.run([program, "--list"], stdout=subprocess.PIPE, check=True, text=True)
    applets = [name for name in listed.stdout.split() if name != "busybox"]
    root = Layer().add(*base_tree(), directory("bin"), directory("sbin"), file("bin/busybox", binary, mode=0o755))
    root.add(*(hardlink(f"bin/{name}", "bin/busybox") for name in applets))
    root.add(symlink("usr/bin/env", "../../bin/env"), symlink("sbin/init", "../bin/init"))
    return root.finish()


def busybox(out, root):
    """library/busybox: an index as a public one is, and the same in Docker's media types."""
    here = {"os": "linux", "architecture": "amd64"}
    there = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    nowhere = {"os": "unknown", "architecture": "unknown"}
    marker = Layer().add(directory("etc"), file("etc/architecture", "arm64: stands in for another architecture, runs nothing\n"))
    foreign, config = marker.finish(), {"Cmd": ["sh"], "Env": [PATH]}
    repository = Repository(out, "library/busybox")
    for docker, tags in ((False, ("latest", "1.36")), (True, ("docker",))):
        arm = repository.image([foreign], config, architecture="arm64", docker=docker)
        amd = repository.image([root], config, docker=docker)
        entries = [(arm, there, None), (amd, here, None)]
        if not docker:
            # What BuildKit adds to each image: a manifest for no platform.
            proof = repository.image([foreign], {}, architecture="unknown")
            entries.append((proof, nowhere, {"vnd.docker.reference.type": "attestation-manifest"}))
        repository.multi(entries, tags, docker=docker)
    repository.image([root], config, tags=("single",))
    private = Repository(out, "private/busybox", registry="private")
    private.image([root], config, tags=("latest",))


def debian_root(debs, dropped=(), seen=()):
    """A root of Debian's files: not those under `dropped`, nor the paths `seen`, which are to come in another layer."""
    seen = set(seen)
    root = Layer()
    for entry in base_tree():
        seen.add(entry.path.rstrip("/"))
        root.add(entry)
    seen.discard("usr")
    for entry in debian.entries(debs, seen):
        if not entry.path.startswith(("var/lib/dpkg", "var/cache", *dropped)):
            root.add(entry)
    return root


def nginx(out, debs):
    """library/nginx: Debian's nginx-light, in the foreground, logging to its own output. Returns its layers."""
    root = debian_root(debs, ("etc/nginx/sites", "etc/nginx/modules-enabled"), {"etc/nginx/nginx.conf"})
    site = Layer().add(
        directory("etc/nginx/conf.d"),
        file("etc/nginx/nginx.conf", NGINX_CONF),
        file("etc/nginx/conf.d/default.conf", NGINX_SITE),
        symlink("var/log/nginx/access.log", "/dev/stdout"),
        symlink("var/log/nginx/error.log", "/dev/stderr"),
        directory("docker-entrypoint.d"),
    )
    config = {
        "Cmd": ["nginx", "-g", "daemon off;"],
        "Env": [PATH, "NGINX_VERSION=1.22.1"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    }
    layers = [root.finish(), site.finish()]
    Repository(out, "library/nginx").image(layers, config, tags=("latest", "1.22", "alpine", "stable"))
    return layers


def users(out, root):
    """library/users: who runs, and with what: tags name, number, group, numbers, stop, plain."""
    script = """#!/bin/sh
echo "args: $*"
echo "id: $(id -u):$(id -g) groups: $(id -G)"
echo "cwd: $(pwd) home: $HOME"
echo "env: GREETING=$GREETING EMPTY=[$EMPTY]"
trap 'echo "got USR1"; exit 3' USR1
trap 'echo "got TERM"; exit 4' TERM
[ "$1" = serve ] || exit 0
while :; do sleep 1 & wait $!; done
"""
    people = Layer(gnu=True).add(
        file("etc/passwd", PASSWD + "app:x:1000:1001:An app:/home/app:/bin/sh\nother:x:2000:2000::/home/other:/bin/sh\n"),
        file("etc/group", GROUP + "app:x:1001:\nstaff:x:50:app,other\nvideo:x:44:app\nother:x:2000:\n"),
        directory("home/app", mode=0o750, uid=1000, gid=1001),
        directory("srv/app", uid=1000, gid=1001),
        file("srv/app/owned", "by app\n", mode=0o600, uid=1000, gid=1001),
        file("entry.sh", script, mode=0o755),
    )
    layers = [root, people.finish()]
    config = {
        "User": "app",
        "Entrypoint": ["/entry.sh"],
        "Cmd": ["serve", "with two words"],
        "Env": [PATH, "GREETING=hello there", "EMPTY=", "HOST_PATH=/a=b"],
        "WorkingDir": "/srv/app",
        "Labels": {"io.kvmlet.test": "users"},
    }
    repository = Repository(out, "library/users")
    for tag, change in {
        "latest": {},
        "number": {"User": "1000"},
        "group": {"User": "app:staff"},
        "numbers": {"User": "1234:5678"},
        "root": {"User": ""},
        "stop": {"StopSignal": "SIGUSR1"},
        "plain": {"Entrypoint": None, "Cmd": ["/entry.sh", "plain"]},
        "workdir": {"WorkingDir": "/not/there/yet"},
    }.items():
        repository.image(layers, {key: value for key, value in {**config, **change}.items() if value is not None}, tags=(tag,))

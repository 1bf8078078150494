"""A release folder for tests: this environment's packages, with a small Serve application and a
small gateway in the places of the appliance's own, so that the cluster room is tested by itself."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import appliance
from appliance.layout import Home

# found by every interpreter that has the folder on its path
_FINDER = """
import importlib.abc, importlib.util, pathlib, sys

class StandIns(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        file = pathlib.Path(__file__).parent / f"{name}.py"
        if name.startswith("appliance.") and file.exists():
            return importlib.util.spec_from_file_location(name, file)

sys.meta_path.insert(0, StandIns())
"""

_DEPLOY = """
import socket
import ray
from ray import serve
from appliance.cluster import ports
from starlette.responses import JSONResponse

@serve.deployment(ray_actor_options={"num_cpus": 1})
class Echo:
    async def __call__(self, request):
        try:
            socket.create_connection(("192.0.2.1", 80), 2)
            outcome = "connected"
        except OSError as error:
            outcome = error.strerror
        return JSONResponse({"replica": outcome})

ray.init(address="auto", log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": ports.SERVE})
serve.run(Echo.bind())
"""

_GATEWAY = """
import argparse, http.client, http.server, json, os, socket, ssl, time
from pathlib import Path
from appliance.cluster import ports
from appliance.layout import Home

parser = argparse.ArgumentParser()
parser.add_argument("--fd", type=int)
parser.add_argument("--home", type=Path)
options = parser.parse_args()
home = Home(options.home)

def answer(path):
    if path == "/healthz":
        return {"ok": True}
    if path == "/serve":
        connection = http.client.HTTPConnection(ports.HOST, ports.SERVE, timeout=20)
        connection.request("GET", "/")
        return json.loads(connection.getresponse().read())
    if path in ("/prove/task", "/prove/job"):
        from appliance.cluster import prove
        return prove.as_json(getattr(prove, "prove_from_ray_" + path[7:])(home))
    if path == "/jobs":
        return jobs()
    raise KeyError(path)

def jobs():
    from appliance.cluster.jobs import FINISHED, Jobs
    from appliance.errors import JobUnknown
    known, told = Jobs(), []
    try:
        known.status("no-such-job")
    except JobUnknown as error:
        told.append(error.code)
    argv = ("sh", "-c", 'echo "$SAID"; sleep 100')
    name = known.submit(
        argv, run_dir=home.tmp, env={"SAID": "told"}, metadata={"k": "v"}, submission_id="a-job"
    )
    def said():
        # Ray writes a line of its own about the entry point, before or after the job's first.
        return "told" in known.tail(name, 2).splitlines()

    while not said() and known.status(name).status not in FINISHED:
        time.sleep(0.2)
    assert [job.metadata["k"] for job in known.list() if job.job_id == name] == ["v"]
    told += [known.status(name).status, said(), known.cancel(name)]
    while known.status(name).status not in FINISHED:
        time.sleep(0.2)
    return [*told, known.status(name).status]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(answer(self.path)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "caller"

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(home.tls / "gateway.pem", home.secrets / "gateway.key")

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_UNIX
    def get_request(self):
        plain, _peer = self.socket.accept()
        return context.wrap_socket(plain, server_side=True), ("caller", 0)

server = Server("", Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=options.fd)
server.serve_forever()
"""


def make(home: Home, *, deploy: str = _DEPLOY, gateway: str = _GATEWAY) -> Path:
    """Write the release under ``home`` and return its folder.

    Its virtual environment holds nothing of its own and leads to the packages of the one that runs
    the tests, as a developer's environment does.
    """
    release = home.releases / "test-1-0123456789ab"
    stand_ins = release / "stand-ins"
    stand_ins.mkdir(parents=True)
    (stand_ins / "sitecustomize.py").write_text(_FINDER)
    (stand_ins / "appliance.serving.deploy.py").write_text(deploy)
    (stand_ins / "appliance.gateway.server.py").write_text(gateway)

    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = release / "venv/lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (release / "venv/bin").mkdir()
    (release / "venv/bin/python").symlink_to(base / "bin" / version)
    (release / "venv/pyvenv.cfg").write_text(f"home = {base / 'bin'}\n")
    code = Path(appliance.__file__).parent.parent
    lines = (stand_ins, sysconfig.get_path("purelib"), code)
    (packages / "test.pth").write_text("".join(f"{line}\n" for line in lines))
    return release

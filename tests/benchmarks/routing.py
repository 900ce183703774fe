"""The router: what it adds to a request that is asked of the model's server directly, and what it takes to run.

A small real model is deployed, and one client asks its server and its endpoint in turns, each on a connection that it
keeps: whatever the machine does meanwhile, it does to both.
"""

from __future__ import annotations

import http.client
import socket
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil

from mlinfra_prefect.local import client, router
from tests.benchmarks import rollouts
from tests.benchmarks.homes import bench
from tests.benchmarks.lines import Line
from tests.benchmarks.side_by_side import Effort

AIM = 1.15
REQUESTS = 250
START_SECONDS = 30.0


def overhead(effort: Effort) -> list[Line]:
    """Seconds of a request through the router over those of the same request without it."""
    p50s, p99s = [], []
    ours: list[float] = []
    theirs: list[float] = []
    with bench() as here:
        url = rollouts.deployed(here.context)
        endpoint = here.context.endpoint(rollouts.NAME)
        current = endpoint.current
        assert current is not None
        shown = client.bearer(here.context.platform(endpoint.platform).token(endpoint))
        with closing(_line(url)) as routed, closing(_line(current.urls[0])) as direct:
            for _ in effort.each():
                pairs = [(_asked(routed, shown), _asked(direct, shown)) for _ in range(REQUESTS)]
                through, beside = zip(*pairs[REQUESTS // 10 :], strict=True)  # the first ones warm both up
                p50s.append(statistics.median(through) / statistics.median(beside))
                p99s.append(_p99(through) / _p99(beside))
                ours += through
                theirs += beside
    made_of = (
        f"router p50 {1000 * statistics.median(ours):.2f} ms, p99 {1000 * _p99(ours):.2f} ms | "
        f"direct p50 {1000 * statistics.median(theirs):.2f} ms, p99 {1000 * _p99(theirs):.2f} ms"
    )
    return [
        Line("request through the router / to the server direct, p50", "x", tuple(p50s), AIM, made_of),
        Line("request through the router / to the server direct, p99", "x", tuple(p99s), None, made_of),
    ]


def starts(effort: Effort) -> list[Line]:
    """The router alone: how soon it answers, and its resident memory then."""
    seconds, sizes = [], []
    for _ in effort.each():
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        argv = [sys.executable, "-I", router.__file__, "--name", "bench", "--routes", "/nowhere", "--port", str(port)]
        began = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, cwd=Path("/"))
        try:
            while not _healthy(port):
                if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                    raise RuntimeError("the router does not start")
                time.sleep(0.002)
            seconds.append(time.perf_counter() - began)
            sizes.append(psutil.Process(process.pid).memory_info().rss / 2**20)
        finally:
            process.terminate()
            process.wait()
    return [
        Line("router: start to the first answer", "s", tuple(seconds)),
        Line("router: resident memory", "MiB", tuple(sizes)),
    ]


def _line(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)


def _asked(line: http.client.HTTPConnection, shown: dict[str, str]) -> float:
    began = time.perf_counter()
    headers = {"Content-Type": "application/json", **shown}
    line.request("POST", f"/v2/models/{rollouts.NAME}/infer", rollouts.BODY, headers)
    answer = line.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{line.host}:{line.port} answered {answer.status}")
    return time.perf_counter() - began


def _healthy(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as line:
        try:
            line.request("GET", "/mlinfra/health")
            return line.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _p99(values: list[float] | tuple[float, ...]) -> float:
    return sorted(values)[int(len(values) * 0.99)]

"""The program that the benchmarks start as somebody's flow: it leases, tells its times as JSON lines, and gives back.

It is copied into a project of its own, because the code that travels to a node is the project that a function lies in.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

from mlinfra_prefect import Infra, lease
from mlinfra_prefect.agent.identity import is_alive
from mlinfra_prefect.errors import MlinfraError


def work() -> int:
    return 42


def tell(**said: object) -> None:
    print(json.dumps(said), flush=True)


class Watch:
    """Notes the moment at which the node's process is gone."""

    def __init__(self, node_dir: str) -> None:
        said = json.loads((Path(node_dir) / "agent.json").read_bytes())
        self.pid, self.start_time = int(said["pid"]), str(said["start_time"])
        self.gone_at = 0.0
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        while is_alive(self.pid, self.start_time):
            time.sleep(0.002)
        self.gone_at = time.time()


def hold(arguments: argparse.Namespace) -> None:
    here = arguments.platform == "local"
    for _ in range(arguments.times):
        began = time.perf_counter()
        with lease("cpu", platform=arguments.platform, max_minutes=4 if here else 10) as infra:
            tell(ready=time.perf_counter() - began, id=infra.id, attempt=infra.record.attempts[-1].directory)
            while arguments.for_ever:
                time.sleep(60)
            if arguments.train:
                watch = Watch(infra.record.attempts[-1].node_dir) if here else None
                infra.run(work)
        if arguments.train and watch is not None:
            watch.thread.join(30)
            tell_ending(infra, watch)
        elif arguments.train:
            finished = infra.record.jobs[-1].finished_at
            assert finished is not None
            tell(finished=finished.timestamp())


def be_refused(arguments: argparse.Namespace) -> None:
    for _ in range(arguments.times):
        began = time.perf_counter()
        try:
            with lease(arguments.refused, platform=arguments.platform, max_minutes=10):
                raise RuntimeError("there is one")
        except MlinfraError as error:
            tell(refused=time.perf_counter() - began, why=str(error))


def tell_ending(infra: Infra, watch: Watch) -> None:
    record = infra.record
    finished = record.jobs[-1].finished_at
    gone = record.attempts[-1].gone_at
    assert finished is not None
    assert gone is not None
    tell(process_gone=watch.gone_at - finished.timestamp(), destroyed=(gone - finished).total_seconds())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--for-ever", action="store_true")
    parser.add_argument("--in-flow", action="store_true")
    parser.add_argument("--platform", default="local")
    parser.add_argument("--refused", metavar="ACCELERATOR", help="ask for that, which nobody gets")
    arguments = parser.parse_args()
    if arguments.refused:
        be_refused(arguments)
        return
    if not arguments.in_flow:
        hold(arguments)
        return
    from prefect import flow

    @flow
    def holds() -> None:
        hold(arguments)

    holds()


if __name__ == "__main__":
    main()

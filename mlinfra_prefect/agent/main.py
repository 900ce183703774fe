"""The verbs of the archive: each is one short function, and none of them imports more than it needs.

``spawn SPEC`` and ``revoke GRANT`` (what Terraform calls), ``run SPEC`` (the agent), ``job JOBDIR`` (a launcher),
``train JOBDIR`` (a callable's training process), ``exec PARENT -- ARGV`` (a command's), ``commit-checkpoint`` (for
shell scripts), ``courier BOOT`` (what carries between a bucket and the agent on a cloud's node), ``accept GPUS GIB``
(the test of its GPUs).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

USAGE = (
    "usage: agent.pyz spawn SPEC | revoke GRANT | run SPEC | job JOBDIR --spec SPEC --agent PID | "
    "train JOBDIR --launcher PID | exec PARENT [--keep FD] -- ARGV... | commit-checkpoint [STEP] | "
    "courier BOOT | accept GPUS GIB\n"
)


def main(argv: list[str], archive: Path) -> int:
    """Run one verb; returns the exit code."""
    from . import groups

    keep = int(argv[3]) if argv[:1] == ["exec"] and argv[2:3] == ["--keep"] else None
    groups.close_descriptors(keep)  # before anything else is done: what was inherited must go
    match argv:
        case ["spawn", spec]:
            return _spawn(Path(spec), archive)
        case ["revoke", grant]:
            # What Terraform's destroy provisioner calls; an absent grant is a revoked one.
            Path(grant).unlink(missing_ok=True)
            return 0
        case ["run", spec]:
            from .daemon import run

            return run(Path(spec), archive)
        case ["job", job_dir, "--spec", spec, "--agent", agent]:
            return _job(Path(job_dir), Path(spec), int(agent), archive)
        case ["train", job_dir, "--launcher", launcher]:
            from .runner import main as train

            return train(Path(job_dir), int(launcher))
        case ["exec", parent, "--", *command] | ["exec", parent, "--keep", _, "--", *command] if command:
            return groups.exec_with(int(parent), command)
        case ["courier", boot]:
            from .courier import run as carry

            return carry(boot, archive)
        case ["accept", gpus, memory_gib]:
            from .acceptance import main as accept

            return accept(gpus, memory_gib)
        case ["commit-checkpoint", *step] if len(step) <= 1:
            return _commit(step)
        case _:
            sys.stderr.write(USAGE)
            return 2


def _spawn(spec: Path, archive: Path) -> int:
    from .daemon import spawn
    from .wire import SpecError

    try:
        spawn(spec, archive)
    except (SpecError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _job(job_dir: Path, spec_path: Path, agent: int, archive: Path) -> int:
    from .daemon import load_spec
    from .launcher import Launcher
    from .life import Life
    from .specs import JobSpec
    from .wire import AGENT_LOCK, JOB, read_json

    os.umask(0o077)
    spec = load_spec(spec_path)
    life = Life(spec)
    life.hold((spec.node_dir / AGENT_LOCK).stat())
    job = JobSpec.from_payload(read_json(job_dir / JOB))
    return Launcher(spec, job, job_dir, archive=archive, agent=agent, life=life).run()


def _commit(step: list[str]) -> int:
    from .node import node

    try:
        stored = node().commit_checkpoint(int(step[0]) if step else None)
    except (RuntimeError, ValueError, OSError) as error:
        sys.stderr.write(f"commit-checkpoint: {error}\n")
        return 1
    return 0 if stored else 1

"""The place of one run: a fresh home, its clients, its decoys, its strikes. It ends every process that it started."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlinfra_prefect import killpoints
from mlinfra_prefect.chaos import judge, judge_account
from mlinfra_prefect.chaos.cloud import Cloud, Clouds
from mlinfra_prefect.chaos.judge_shared import SharedLedger
from mlinfra_prefect.chaos.plan import AT_POINT, REAPER_INTERVAL_SECONDS, Plan, Strike
from mlinfra_prefect.model.names import lease_base

CLIENT = Path(__file__).with_name("scripts") / "client.py"
POLL_SECONDS = 0.1
LOOK_SECONDS = 0.01
"""How often a victim is looked for: some live for a tenth of a second."""
VICTIM_SECONDS = 20.0
"""How long a strike waits for a victim that is not there yet."""
POINT_SECONDS = 240.0
"""How long until a run comes by its kill point: a rollout on a busy machine takes minutes."""
AGENT_ROLES = {"node": ("agent", "launcher"), "training": ("work",)}
ON_THE_MACHINE = frozenset({"node", "training", "courier", "agent", "launcher", "work"})
"""Roles that live on a rented machine, where there is one."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs of a campaign share."""

    cache: Path
    engine: str
    scratch: Path
    models: tuple[Path, ...] = ()
    clouds: Clouds | None = None
    """Where the runs that lease on a cloud get their accounts."""


class Place:
    """Where one run happens.

    Args:
        setting: of the campaign.
        plan: of the run.
        cloud: the account in which it leases; None: it leases on this machine.
    """

    def __init__(self, setting: Setting, plan: Plan, cloud: Cloud | None = None) -> None:
        self.setting, self.plan, self._cloud = setting, plan, cloud
        # Sockets and pipes have short names only.
        self.root = Path(tempfile.mkdtemp(prefix="mlc-", dir=setting.scratch))
        self.home = self.root / "h"
        self.canary = f"canary-{secrets.token_hex(12)}"
        self.clients: list[subprocess.Popen[bytes]] = []
        self.reapers: list[subprocess.Popen[bytes]] = []
        self.others: list[judge.Seen] = []
        self.helpers: list[subprocess.Popen[bytes]] = []
        """Prefect's own processes: each leads a session, and is ended with it."""
        self.struck: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.apart_from: set[str] = set()
        self.wanted_until: float | None = None
        """Epoch seconds until when something is wanted by a clock, and not by a client."""
        self.moment: float | None = None
        """Epoch seconds from which strikes are counted; None: from when the first client began."""
        self.settled_after: float | None = None
        """Seconds from the last fault until serving had settled, where that is what counts."""
        self.wrap_reapers: tuple[str, ...] = ()
        """What the reapers are started with, where they are on another host."""
        self.homes = [self.home]
        """The home, and those before it that are lost."""
        self.mounted = False
        self.mark: str | None = None
        """The ledger's uuid, since it was first seen."""
        self.ledger_lost = False
        """Whether the run itself took the ledger away."""
        self.broken: str | None = None
        """A record that the run broke: it must stay as it is."""
        self.began = time.time()
        passed = {name: value for name, value in os.environ.items() if not name.startswith(("MLINFRA_", "PREFECT_"))}
        self.env = {
            **passed,
            "MLINFRA_HOME": str(self.home),
            "MLINFRA_CACHE": str(setting.cache),
            "MLINFRA_TERRAFORM": setting.engine,
            "MLINFRA_KEEPER_PLACE": "process",
            "TMPDIR": str(self.root),
            "CHAOS_SAID": str(self.root / "said"),
            "CHAOS_CANARY": self.canary,
        }
        self.home.mkdir(mode=0o700)
        (self.home / killpoints.MARK).touch(mode=0o600)
        if cloud is not None:
            # The emulator takes any credentials: the secret is one that must not get out of the client's hands.
            self.env |= {**cloud.environment, "AWS_SECRET_ACCESS_KEY": self.canary}
            (self.home / "aws").mkdir(mode=0o700)
            shutil.copy(cloud.note, self.home / "aws")
        self._make_decoys()

    @property
    def platform(self) -> str:
        """On which it leases."""
        return "local" if self._cloud is None else "aws"

    @property
    def cloud(self) -> Cloud:
        """The account of a run that leases in one.

        Raises:
            LookupError: it leases on this machine.
        """
        if self._cloud is None:
            raise LookupError("This run leases on this machine.")
        return self._cloud

    # --- decoys: another ledger's things, and a stranger's ------------------------------------------------------------

    def _make_decoys(self) -> None:
        other = self.root / "other"
        other.mkdir()
        (other / "ledger.sqlite").write_bytes(secrets.token_bytes(64))
        self._other = hashlib.sha256((other / "ledger.sqlite").read_bytes()).hexdigest()
        marks = {"MLINFRA_LEDGER_ID": f"decoy-{self.root.name}", "MLINFRA_LEASE_ID": self.lease_id, "PATH": "/usr/bin"}
        self._decoys = [
            subprocess.Popen(["sleep", "7200"], env=env, cwd=cwd, start_new_session=True)
            for env, cwd in ((marks, other), ({"PATH": "/usr/bin"}, self.home))
        ]

    @property
    def lease_id(self) -> str:
        """The id that the first lease of every run gets: decoys carry it under another ledger."""
        return f"{lease_base('run', 'training', 'one')}-1"

    def decoys_touched(self) -> list[str]:
        """What was done to decoys, in words."""
        found = [f"decoy {each.args!r} was ended" for each in self._decoys if each.poll() is not None]
        path = self.root / "other" / "ledger.sqlite"
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != self._other:
            found.append("the other ledger's file was changed")
        if self.broken is not None and self.broken not in _texts(self.home):
            found.append("a record that nobody could read was changed")
        return found

    def share_ledger(self) -> None:
        """Have the ledger lie in the state bucket of the environment, below a prefix of this run's own."""
        told = json.loads(self.cloud.note.read_bytes())
        shared = SharedLedger(self.cloud.url, str(told["state_bucket"]), f"chaos/{self.root.name}/ledger")
        judge.ELSEWHERE[self.home] = shared
        self.env["MLINFRA_LEDGER"] = shared.address

    def lose_home(self) -> None:
        """Delete the home with everything in it; who comes next has another one, and the shared ledger."""
        self.seen_mark()
        shutil.rmtree(self.home, ignore_errors=True)
        another = self.root / f"h{len(self.homes)}"
        another.mkdir(mode=0o700)
        judge.ELSEWHERE[another] = judge.ELSEWHERE[self.home]
        self.homes.append(another)
        self.home, self.env["MLINFRA_HOME"] = another, str(another)

    def mount(self, megabytes: int) -> None:
        """Give the home a small disk of its own."""
        options = ["-o", f"size={megabytes}m,mode=700", "tmpfs", str(self.home)]
        subprocess.run(["mount", "-t", "tmpfs", *options], check=True, capture_output=True)
        self.mounted = True
        (self.home / killpoints.MARK).touch(mode=0o600)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Place]:
        """Use this place beside another one for a while; it is ended with everything in it."""
        try:
            yield self
        finally:
            self.close(keep=False)

    # --- clients ------------------------------------------------------------------------------------------------------

    def client(
        self, do: str, *, wrap: Sequence[str] = (), points: bool = True, **order: Any
    ) -> subprocess.Popen[bytes]:
        """Start a client; what it reaches is in `said`."""
        if self._cloud is not None:
            order = {"platform": "aws", "request": self.plan.options.get("request", {}), **order}
        process = self._popen(
            [*wrap, sys.executable, "-P", str(CLIENT), json.dumps({"do": do, **order})], points=points
        )
        self.clients.append(process)
        return process

    def reaper(self, *, points: bool = False, **order: Any) -> subprocess.Popen[bytes]:
        """Start one pass of the reaper."""
        argv = [*self.wrap_reapers, sys.executable, "-P", str(CLIENT), json.dumps({"do": "reap", **order})]
        process = self._popen(argv, points=points)
        self.reapers.append(process)
        return process

    def _popen(self, argv: list[str], *, points: bool) -> subprocess.Popen[bytes]:
        env = {**self.env, killpoints.VARIABLE: self.plan.points} if points and self.plan.points else self.env
        with (self.root / "client.err").open("ab") as errors:
            return subprocess.Popen(
                argv, env=env, cwd=self.root, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                start_new_session=True,
            )  # fmt: skip

    def said(self, what: str | None = None) -> list[dict[str, Any]]:
        """What clients have said, oldest first."""
        path, found = self.root / "said", []
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return [each for each in found if what is None or each["what"] == what]

    def wait(self, what: str, seconds: float = 120.0, count: int = 1) -> bool:
        """Wait until clients have said something; False when they have all ended without."""
        until = time.monotonic() + seconds
        while len(self.said(what)) < count:
            if time.monotonic() > until or all(each.poll() is not None for each in self.clients):
                return len(self.said(what)) >= count
            time.sleep(POLL_SECONDS)
        return True

    # --- strikes ------------------------------------------------------------------------------------------------------

    def victims(self, role: str) -> list[judge.Seen]:
        """The living processes of a role, in this moment."""
        popens = {"client": self.clients, "reaper": self.reapers}.get(role)
        if popens is not None:
            return [seen for each in popens if each.poll() is None and (seen := judge.look(each.pid)) is not None]
        roles = AGENT_ROLES.get(role, (role,))
        if self._cloud is not None and role in ON_THE_MACHINE:
            looked = [judge.look(pid) for pid in self._cloud.pids()]
            return [seen for seen in looked if seen is not None and seen.role in roles]
        return [seen for seen in judge.carriers(self.seen_mark()) if seen.role in roles]

    def seen_mark(self) -> str | None:
        """The ledger's uuid: whatever becomes of its file, what carried it is this run's."""
        self.mark = self.mark or judge.ledger_id(self.home)
        return self.mark

    def happened(self, role: str, how: str) -> bool:
        """Note a fault that hits no process; False, and nothing is noted, where nothing goes on that it could hit."""
        if not self.goes_on():
            return False
        self.struck.append({"role": role, "how": how, "at": time.time()})
        return True

    def at_stake(self) -> bool:
        """Whether anything was ever there that could have leaked: a fault before that proves nothing."""
        return bool(self.kills_at_points() or self.said("asked") or self.ledger_lost or judge.texts(self.home))

    def findings(self) -> list[str]:
        """What the judge finds now; also who carries no mark and was started from this place."""
        mark = self.seen_mark()
        found = judge.findings(
            self.home, canary=self.canary, apart_from=self.apart_from, mark=None if self.ledger_lost else mark,
            asked=() if self.ledger_lost else {each["id"] for each in self.said("asked")}, around=self.root,
        )  # fmt: skip
        known = {each.pid for each in (*self.clients, *self.reapers, *self._decoys, *self.helpers)}
        for seen in judge.inside(self.root, apart_from=known):
            marked = seen.environ.get("MLINFRA_LEDGER_ID") == mark
            if not marked and "PREFECT_HOME" not in seen.environ and seen.role not in {"keeper", "pass"}:
                found.append(f"process left, without a mark: {seen}")
        if self._cloud is not None:
            found += self._cloud.findings() + judge_account.told(self._cloud.url, self.canary, self.began)
        return found

    def kills_at_points(self) -> list[tuple[str, float]]:
        """The kill points that have killed, and when (epoch seconds)."""
        counts: dict[str, int] = {}
        wanted_point, _, nth = self.plan.points.partition(":")
        wanted = {wanted_point: int(nth or 1)}
        found = []
        with contextlib.suppress(OSError):
            for line in (self.home / killpoints.MARK).read_text().splitlines():
                point, _, moment = line.split(" ")
                counts[point] = counts.get(point, 0) + 1
                if counts[point] == wanted.get(point):
                    found.append((point, float(moment)))
        return found

    def strike(self, strike: Strike) -> None:
        """Wait for a strike's moment and its first victim, and strike."""
        if strike.at == AT_POINT:
            until = time.time() + POINT_SECONDS
            while not self.kills_at_points() and time.time() < until and self.goes_on():
                time.sleep(LOOK_SECONDS)
            if not self.kills_at_points():
                return
            until = time.time() + VICTIM_SECONDS
        else:
            # Not before it runs: to load the package takes longer than some of its leases live.
            if self.moment is None:
                self.moment = self.said("began")[0]["at"] if self.wait("began", VICTIM_SECONDS) else time.time()
            time.sleep(max(0.0, self.moment + strike.at - time.time()))
            until = time.time() + VICTIM_SECONDS
        while time.time() < until:
            found = [seen for role in strike.victims for seen in self.victims(role)]
            if any(seen for seen in found if strike.at == AT_POINT or self.victims(strike.victims[0])):
                self.hit(found, strike.how, strike.pause)
                return
            if not self.goes_on():
                return
            time.sleep(LOOK_SECONDS)

    def goes_on(self) -> bool:
        """Whether there is still something that could be struck."""
        if any(each.poll() is None for each in self.clients) or judge.left(self.home, mark=self.seen_mark()):
            return True
        return self._cloud is not None and bool(self._cloud.live())

    def hit(self, found: Sequence[judge.Seen], how: str, pause: float = 0.0) -> None:
        """Signal some processes at once, and note it."""
        first, _, second = how.partition("-")
        done = [seen for seen in found if judge.send(seen, signal.Signals[f"SIG{first}"])]
        if second:
            time.sleep(pause)
            for seen in done:
                judge.send(seen, signal.Signals[f"SIG{second}"])
        clients = {each.pid for each in self.clients}
        self.struck += [
            {"role": "client" if seen.pid in clients else seen.role, "pid": seen.pid, "how": how, "at": time.time()}
            for seen in done
        ]

    # --- over ---------------------------------------------------------------------------------------------------------

    def over_since(self) -> float:
        """Since when (epoch seconds) nobody wants anything here, and nothing more is struck."""
        faults = [each["at"] for each in self.struck] + [moment for _, moment in self.kills_at_points()]
        wanted = [self.wanted_until] if self.wanted_until is not None else []
        killed = [each for each in self.clients if each.returncode is not None and each.returncode < 0]
        if not killed or len(killed) < len(self.clients):
            wanted += [each["at"] for each in self.said("over")]
        return max([*faults, *wanted], default=self.began)

    def is_gone(self) -> bool:
        """Whether nothing is left that anybody must still do."""
        if any(each.poll() is None for each in (*self.clients, *self.reapers)):
            return False
        if any(each.partition(" ")[0] not in self.apart_from for each in judge.unproven(self.home)):
            return False
        if self._cloud is not None and self._cloud.live():
            return False
        if judge.left(self.home, mark=self.seen_mark()):  # it reads all of /proc
            return False
        return self._cloud is None or not self._cloud.came()  # last: it looks at a whole account

    def wait_gone(self, until: float, *, reaper: bool) -> float | None:
        """Wait until all is gone, with a reaper that comes now and then. Returns the moment, or None after `until`."""
        next_pass = max(time.time(), self.over_since()) + REAPER_INTERVAL_SECONDS
        while True:
            if self.is_gone():
                return time.time()
            if time.time() >= until:
                return None
            if reaper and time.time() >= next_pass and all(each.poll() is not None for each in self.reapers):
                self.reaper()
                next_pass = time.time() + REAPER_INTERVAL_SECONDS
            time.sleep(POLL_SECONDS)

    def words(self) -> str:
        """Everything that helps to see what happened."""
        parts = [json.dumps(each) for each in self.said()]
        with contextlib.suppress(Exception):
            for record_id in judge.records(self.home):
                parts += [f"{record_id} {line['time'][11:23]} g{line['generation']} {line['state']}: {line['reason']}"
                          for line in judge.history(self.home, record_id)]  # fmt: skip
        for log in (self.root / "client.err", *self.home.glob("keeper/*.log")):
            with contextlib.suppress(OSError):
                parts.append(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")
        parts += [str(seen) for seen in judge.carriers(judge.ledger_id(self.home))]
        if self._cloud is not None:
            with contextlib.suppress(Exception):
                parts += [*self._cloud.came(), *self._cloud.words()]
        return "\n".join(parts)

    def close(self, *, keep: bool) -> None:
        """End everything that was started, by pid and start time, and remove the place unless it is kept for a look."""
        self._end(keep=keep)
        for home in self.homes:
            judge.ELSEWHERE.pop(home, None)

    def _end(self, *, keep: bool) -> None:
        for helper in self.helpers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(helper.pid, signal.SIGKILL)
            helper.wait()
        for seen in judge.carriers_of("PREFECT_HOME", str(self.root / "prefect")) if self.helpers else ():
            judge.end(seen)
        for popen in (*self.clients, *self.reapers, *self._decoys):
            if popen.poll() is None:
                popen.kill()
            popen.wait()
        for _ in range(3):  # a watcher may be spawning while it is ended
            for seen in (*judge.carriers(self.seen_mark()), *self.others):
                judge.end(seen)
        if keep:
            (self.root / "words").write_text(self.words())
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.home)], check=False, capture_output=True)
        if not keep:
            shutil.rmtree(self.root, ignore_errors=True)


def _texts(home: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"file:{home / 'ledger.sqlite'}?mode=ro", uri=True, timeout=10)) as db:
        return [row[0] for row in db.execute("SELECT json FROM records")]

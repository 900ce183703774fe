"""The verbs and their options, as cyclopts reads them. Every body is elsewhere and loaded when its verb is run."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from mlinfra_prefect.cli.options import All, Flag, Json, NoWait, Overrides
from mlinfra_prefect.cli.outcome import DONE, WRONG_INPUT, complain
from mlinfra_prefect.version import __version__

_HELP = """\
Training infrastructure for Prefect flows that exists only while it is needed.

MLINFRA_HOME (default ~/.mlinfra-prefect) names the home: what one home leases, another never sees.
"""
_EPILOGUE = """\
Exit codes: 0 done; 1 it failed; 2 wrong input, nothing was created; 3 reap: something is stuck; 4 no capacity; \
5 keeper: another one keeps this home; 130 interrupted. exec: the command's own.

Errors are one line on standard error; MLINFRA_DEBUG=1 adds where they come from.
"""

app = App(
    name="mlinfra-prefect", help=_HELP, help_epilogue=_EPILOGUE, help_format="plaintext", version=__version__,
    result_action="return_value", default_parameter=Parameter(negative=()),
)  # fmt: skip


def run(words: list[str]) -> int:
    """Parse the words and run the verb; returns its exit code.

    Raises:
        MlinfraError: what the verb raises.
    """
    try:
        code = app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        verb = f" {words[0]}" if words and words[0] in app else ""
        complain(f"{' '.join(str(error).split())} See: mlinfra-prefect{verb} --help")
        return WRONG_INPUT
    return code if isinstance(code, int) else DONE


@app.command(sort_key=0)
def demo(*, keep: Flag = False, emulated_aws: Flag = False, as_json: Json = False) -> int:
    """Train, serve and give back on this machine, with proof.

    Args:
        keep: Leave the endpoint serving for an hour.
        emulated_aws: Train on an emulated AWS, whose machines are processes here; needs the extras aws and emulator.
        as_json: Print one JSON document instead of tables.
    """
    from mlinfra_prefect.demo import run_demo

    return run_demo(keep=keep, emulated_aws=emulated_aws, as_json=as_json)


@app.command(sort_key=1)
def plan(request: str, /, *, overrides: Overrides | None = None, check: Flag = False, as_json: Json = False) -> int:
    """Show what would exist and what it costs; creates nothing.

    Args:
        request: A YAML file with the fields of a request, or an accelerator such as A100:8 or cpu; or a YAML file that
            declares endpoints: what `apply` would change.
        overrides: Fields of the request.
        check: For declared endpoints: end with 2 when anything would change, with 0 when nothing would, else with 1.
        as_json: Print JSON.
    """
    from pathlib import Path

    from mlinfra_prefect.lifecycle.declaration_file import declares_endpoints

    given = (overrides or Overrides()).given()
    if check or declares_endpoints(Path(request)):
        from mlinfra_prefect.cli import applying

        return applying.plan(request, tuple(given), check=check, as_json=as_json)
    from mlinfra_prefect.cli import planning

    return planning.plan(request, given, as_json=as_json)


@app.command(sort_key=1)
def apply(file: str, /, *, check: Flag = False, prune: Flag = False, yes: Flag = False, as_json: Json = False) -> int:
    """Bring serving to what a file declares, without a failed request.

    Args:
        file: A YAML file that declares endpoints.
        check: Change nothing; end with 2 when anything would change, with 0 when nothing would, else with 1.
        prune: Release the endpoints of the same environments that are not declared.
        yes: They may be released.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import applying

    return applying.apply(file, check=check, prune=prune, yes=yes, as_json=as_json)


@app.command(sort_key=2)
def up(request: str, /, *, overrides: Overrides | None = None, no_wait: NoWait = False, as_json: Json = False) -> int:
    """Lease a node that lives until its release or deadline.

    Args:
        request: A YAML file with the fields of a request, or an accelerator such as A100:8 or cpu.
        overrides: Fields of the request.
        no_wait: Return as soon as the keeper has it.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import leasing

    return leasing.up(request, (overrides or Overrides()).given(), wait=not no_wait, as_json=as_json)


@app.command(sort_key=3)
def release(record: str, /, *, no_wait: NoWait = False, as_json: Json = False) -> int:
    """Give a lease or endpoint back and print the receipt.

    What is gone already stays gone: that is no error.

    Args:
        record: The id of a lease or an endpoint, or an endpoint's name.
        no_wait: Return as soon as its release has begun; the keeper goes on.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import leasing

    return leasing.release(record, wait=not no_wait, as_json=as_json)


@app.command(sort_key=3)
def promote(
    endpoint: str, /, *, version: int | None = None, environment: str = "dev", reason: str = "", as_json: Json = False
) -> int:
    """Send all requests of an endpoint to one version.

    Args:
        endpoint: The endpoint's name or id.
        version: Which version; without it, the one that is being rolled out.
        environment: The endpoint's.
        reason: For the history.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import rolling

    return rolling.promote(endpoint, version, environment=environment, reason=reason, as_json=as_json)


@app.command(sort_key=3)
def rollback(endpoint: str, /, *, environment: str = "dev", reason: str = "", as_json: Json = False) -> int:
    """Take a rollout back, or serve the version before again.

    Args:
        endpoint: The endpoint's name or id.
        environment: The endpoint's.
        reason: For the history.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import rolling

    return rolling.rollback(endpoint, environment=environment, reason=reason, as_json=as_json)


@app.command(sort_key=3)
def retire(endpoint: str, version: int, /, *, environment: str = "dev", reason: str = "", as_json: Json = False) -> int:
    """End a version that does not serve alone.

    Args:
        endpoint: The endpoint's name or id.
        version: Which version.
        environment: The endpoint's.
        reason: For the history.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import rolling

    return rolling.retire(endpoint, version, environment=environment, reason=reason, as_json=as_json)


@app.command(sort_key=4)
def ps(*, everything: All = False, as_json: Json = False) -> int:
    """List the leases and endpoints that there are.

    Args:
        everything: Also those that are released.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import listing

    return listing.ps(everything=everything, as_json=as_json)


@app.command(sort_key=5)
def show(record: str, /, *, as_json: Json = False) -> int:
    """Show one of them: record, attempts, history, receipt.

    Args:
        record: The id of a lease or an endpoint, or an endpoint's name.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import showing

    return showing.show(record, as_json=as_json)


@app.command(sort_key=6)
def logs(
    record: str, /, *, job: str | None = None, follow: Annotated[Flag, Parameter(name=["--follow", "-f"])] = False
) -> int:
    """Print the log of a lease's jobs or an endpoint's server.

    Args:
        record: The id of a lease or an endpoint, or an endpoint's name.
        job: Only this job.
        follow: Go on until the job has ended or the lease is released.
    """
    from mlinfra_prefect.cli import logs as reading

    return reading.logs(record, job=job, follow=follow)


@app.command(sort_key=7)
def pull(what: str, destination: str, /, *, as_json: Json = False) -> int:
    """Copy the files of an artifact, verified by sha256.

    Args:
        what: The id of an artifact, of a lease (all it made), or of an endpoint (what it serves).
        destination: A directory; it is made when it is absent.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import pulling

    return pulling.pull(what, destination, as_json=as_json)


@app.command(name="exec", sort_key=8)
def execute(lease: str, /, *command: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run a command on the node: exec LEASE -- COMMAND...

    Its output comes as it is written, and its exit code is the command's.

    Args:
        lease: The id of a lease.
        command: The program and its arguments; no shell reads them.
    """
    from mlinfra_prefect.cli import executing

    return executing.execute(lease, command)


@app.command(sort_key=9)
def reap(
    *, until_quiet: Flag = False, dry_run: Flag = False, environment: str | None = None, as_json: Json = False
) -> int:
    """Take over what nobody keeps any more, and end what no open record names.

    What is taken over goes on under a new keeper, or is released: what its client and its deadline say.

    Args:
        until_quiet: Pass after pass, for an hour at most, until what is left lives or is stuck.
        dry_run: Say what a pass would do; change nothing and start nothing.
        environment: Only what is in this environment.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import reaping

    return reaping.reap(until_quiet=until_quiet, dry_run=dry_run, environment=environment, as_json=as_json)


@app.command(sort_key=9)
def keeper(*, with_reaper: Flag = False, check: Flag = False) -> int:
    """Keep the leases of this home, as a service that runs until it is told to end.

    Flows whose environment says keeper_place = "service", or that run with MLINFRA_KEEPER_PLACE=service, only ask.

    Args:
        with_reaper: Also reap every minute; it is no independent line then, because it ends with the keeper.
        check: Start nothing; end with 0 where a service keeps this home and moves, else with 1.
    """
    from mlinfra_prefect.cli import keeping

    return keeping.keep(with_reaper=with_reaper, check=check)


@app.command(sort_key=10)
def endpoints(*, everything: All = False, repair: Flag = False, token: str | None = None, as_json: Json = False) -> int:
    """List the endpoints with the shares that are served now.

    Args:
        everything: Also those that are released, and versions that are gone.
        repair: Bring back the routers and servers that should answer and do not.
        token: Print the token that clients of this endpoint must show (name or id), and nothing else.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import listing

    if token is not None:
        from mlinfra_prefect.cli import rolling

        return rolling.token(token)
    if repair:
        from mlinfra_prefect.cli import rolling

        return rolling.repair(as_json=as_json)

    return listing.endpoints(everything=everything, as_json=as_json)


@app.command(sort_key=11)
def doctor(*, as_json: Json = False) -> int:
    """Check this machine and say what to do next.

    Args:
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import doctor as examining

    return examining.doctor(as_json=as_json)


@app.command(sort_key=11)
def init(
    platform: Literal["aws"], /, *, environment: str = "dev", region: tuple[str, ...] = (), profile: str = "default",
    egress: str | None = None, mirror: tuple[str, ...] = (), input_bucket: tuple[str, ...] = (),
    secret: tuple[str, ...] = (),
    destroy: Flag = False, yes: Flag = False, as_json: Json = False,
) -> int:  # fmt: skip
    """Make what an environment shares on a cloud, once: buckets, network, roles.

    What it costs at rest is shown before you are asked.

    Args:
        platform: aws.
        environment: Its name, as requests name it.
        region: Where; the first is the home of its buckets. Several: one option each. The AWS configuration's if none.
        profile: default (nodes with a public address and nothing that lets anybody in), or hardened (private subnets).
        egress: What nodes can reach: internet, mirror or none. internet with default, none with hardened.
        mirror: A range of addresses in which package mirrors answer, with egress mirror. Several: one option each.
        input_bucket: A bucket that whoever has the creator's role may name in inputs. Several: one option each. Those
            of before if none; '' for none at all.
        secret: What every node of the environment may read, and so any training: aws-sm:NAME, aws-sm:ARN or ssm:/NAME.
            Several: one option each. Those of before if none; '' for none at all.
        destroy: Destroy what was made, or begun. Refused while anything of it is leased.
        yes: Ask nothing.
        as_json: Print JSON.
    """
    del platform
    from mlinfra_prefect.cli import initialising

    return initialising.init(
        environment=environment, regions=region, profile=profile, egress=egress, mirrors=mirror,
        input_buckets=input_bucket, secrets=secret, destroy=destroy, yes=yes, as_json=as_json,
    )  # fmt: skip


@app.command(sort_key=12)
def emulate(platform: Literal["aws"], /, *, port: int = 0, run_any_user_data: Flag = False, iam: Flag = False) -> int:
    """Run a cloud on this machine, for trying and testing: its machines are processes here.

    Args:
        platform: aws.
        port: Of the loopback interface; a free one when not given.
        run_any_user_data: Unsafe: also run user data that this package did not render. It may say anything.
        iam: Enforce the policies of roles and users.
    """
    del platform
    from mlinfra_prefect.cli import emulating

    return emulating.emulate_aws(port=port, run_any_user_data=run_any_user_data, iam=iam)


@app.command(sort_key=12)
def chaos(
    *,
    platform: Literal["local", "aws"] = "local",
    list_rows: Annotated[Flag, Parameter(name="--list")] = False,
    runs: int = 20,
    seed: int = 1,
    rows: str = "",
    jobs: int = 1,
    json_file: Annotated[str | None, Parameter(name="--json")] = None,
    report: str | None = None,
    go_on: Flag = False,
) -> int:
    """Kill everything at every moment, and count what leaks.

    Each run has a fresh temporary home of its own; yours is not touched. Ends with 1 when anything leaked.

    Args:
        platform: On which it leases: local, or aws (emulated; needs the extras aws and emulator).
        list_rows: Show the rows and the kill points, and run nothing.
        runs: How many faults are to reach their victims.
        seed: Decides rows, moments and victims; the same seed decides the same.
        rows: Only these, separated by commas.
        jobs: How many runs at a time.
        json_file: Write every run and the figures of each row into this file.
        report: Write the figures as a page in Markdown into this file.
        go_on: Go on with the campaign in the file of --json: its runs count, and only the others are done.
    """
    from mlinfra_prefect.cli import breaking

    return breaking.chaos(
        platform=platform, list_rows=list_rows, runs=runs, seed=seed, rows=rows, jobs=jobs, json_file=json_file,
        report=report, go_on=go_on,
    )  # fmt: skip


@app.command(sort_key=20)
def register(
    *, pool: str, create_pool: Flag = False, no_automation: Flag = False, timezone: str = "UTC", as_json: Json = False
) -> int:
    """Put the shipped deployments on the configured Prefect server.

    They are model-lifecycle/on-demand, /nightly and /on-dataset, reap/every-minute and release/for-run.

    Args:
        pool: The work pool whose workers run them.
        create_pool: Make the pool (type process) when it is absent.
        no_automation: Without the automation that starts a release when a run is cancelled, crashes or goes silent.
        timezone: Of the nightly schedule.
        as_json: Print JSON.
    """
    from mlinfra_prefect.cli import registering

    return registering.register(
        pool, create_pool=create_pool, automation=not no_automation, timezone=timezone, as_json=as_json
    )

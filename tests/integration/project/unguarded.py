"""A script that lacks its ``if __name__ == "__main__":`` guard."""

from prefect import flow, task

from mlinfra_prefect import gpu


@task
@gpu("cpu", max_minutes=5)
def add(a: int, b: int) -> int:
    return a + b


@flow
def unguarded() -> int:
    return add(1, 2)


unguarded()

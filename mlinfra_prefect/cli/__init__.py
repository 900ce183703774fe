"""The command line: every verb is a thin reading of the story, and none of them loads Prefect but ``demo``.

Two rules shape it. What only looks (``ps``, ``endpoints``, ``--help``) loads neither the models nor a cloud SDK, so
that it is quick enough to be asked again and again. And what is printed for programs (``--json``) goes to standard
output alone, with keys that stay: `docs/cli.md` lists them.
"""

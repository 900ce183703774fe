"""The story in plain Python, over protocols: plan, ask, provision, train, serve, release. Runs without Prefect."""

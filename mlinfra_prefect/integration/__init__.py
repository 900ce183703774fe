"""The Prefect side: tasks, decorators and the run's identity. The only package that imports prefect."""

"""Programs that a run starts as processes of their own: clients, trainings, reapers. Only these use the package."""

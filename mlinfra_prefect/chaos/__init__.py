"""The fault matrix as a program: kill anything, at any moment, and have a judge say what is left.

``mlinfra-prefect chaos`` makes a fresh home for every run, lets a real client lease, train, serve and give back,
strikes at moments that the seed chose, and asks `judge`, which imports nothing of ours, whether anything is left at the
promised time. What it measures is published as it is (`docs/leak-rate.md`).
"""

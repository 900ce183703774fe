"""Three nights at once: the first model is served, the second replaces it, the third is refused."""

from __future__ import annotations

from retrain_digits import retrain_digits

if __name__ == "__main__":
    retrain_digits(day="2026-11-20")
    retrain_digits(day="2026-11-21")
    # Asking for the impossible shows what a refusal looks like: better by 5 %.
    retrain_digits(day="2026-11-22", tolerance=-0.05)

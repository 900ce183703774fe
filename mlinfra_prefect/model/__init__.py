"""Pure values: requests, offers, plans, leases, artifacts, endpoints and receipts. Imports nothing but pydantic."""
